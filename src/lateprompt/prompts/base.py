"""What all prompt generators share: their shape, the base class, and how they find the states that they read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class GeneratorSpec:
    """The shape of a generator.

    Args:
        hidden_size: d, the backbone's width.
        num_prompt_tokens: k.
        bottleneck_dim: m, the width between the two projections.
        dropout: dropout rate on the prompt while training.
        reads_last: read the last source position instead of the first (decoders).
        pool_last_source: whether pooling covers the last source position. The authors' GPT-2 code leaves it out.
        init_std: standard deviation of a free prompt's normal initialisation.
    """

    hidden_size: int
    num_prompt_tokens: int = 5
    bottleneck_dim: int = 128
    dropout: float = 0.0
    reads_last: bool = False
    pool_last_source: bool = True
    init_std: float = 0.02


class PromptGenerator(nn.Module):
    """Base: keeps the spec and the prompt's dropout."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_prompt_tokens = spec.num_prompt_tokens
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, hidden: torch.Tensor, source_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.dropout(self.prompt_of(hidden, source_mask))  # type: ignore[no-any-return]

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} must say how it makes a prompt: override prompt_of")


def read_state(hidden: torch.Tensor, mask: torch.Tensor | None, *, last: bool) -> torch.Tensor:
    """The hidden state (batch, hidden) at each row's first, or last, position of `mask` (None: all positions)."""
    if mask is None:
        return hidden[:, -1 if last else 0]
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), read_position(mask, last=last)]


def read_position(mask: torch.Tensor, *, last: bool) -> torch.Tensor:
    """Each row's first, or last, marked position (batch,) of `mask` (batch, length)."""
    order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    # No position marked: the largest score is 0, argmax gives 0; no host synchronisation either way.
    return (mask.to(order.dtype) * (order if last else order.flip(0))).argmax(1)
