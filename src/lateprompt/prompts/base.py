"""What all prompt generators share: their sizes, the base class, and how they pick the hidden state to read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class GeneratorSpec:
    """Sizes and options of a prompt generator.

    Args:
        hidden_size: d, the width of the backbone's hidden states.
        num_prompt_tokens: k, the number of prompt vectors.
        bottleneck_dim: m, the inner width, between the down and the up projection.
        dropout: dropout rate on the prompt, in training only.
        reads_last: read the last position of the source instead of the first; for decoders, whose last token is the
            only one that has seen the whole text.
        pool_last_source: include the last source position when pooling; the authors' GPT-2 code leaves it out.
        init_std: standard deviation of the normal distribution that freely trained vectors start from.

    Example:
        >>> from lateprompt.prompts import GeneratorSpec
        >>> GeneratorSpec(hidden_size=768, reads_last=True).num_prompt_tokens
        5
    """

    hidden_size: int
    num_prompt_tokens: int = 5
    bottleneck_dim: int = 128
    dropout: float = 0.0
    reads_last: bool = False
    pool_last_source: bool = True
    init_std: float = 0.02


class PromptGenerator(nn.Module):
    """Base class of the prompt generators: a subclass overrides `prompt_of`, dropout is applied here.

    Args:
        spec: sizes and options.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GeneratorSpec, PromptGenerator
        >>> class MeanState(PromptGenerator):  # every prompt vector is the mean of the text's hidden states
        ...     def prompt_of(self, hidden, source_mask):
        ...         return hidden.mean(1, keepdim=True).expand(-1, self.num_prompt_tokens, -1)
        >>> MeanState(GeneratorSpec(hidden_size=16, num_prompt_tokens=3))(torch.randn(2, 7, 16)).shape
        torch.Size([2, 3, 16])
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_prompt_tokens = spec.num_prompt_tokens
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, hidden: torch.Tensor, source_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Make the prompt (batch, k, hidden), with dropout in training.

        Args:
            hidden: (batch, length, hidden) hidden states at the prompt layer.
            source_mask: (batch, length), nonzero where a position may be read; None: everywhere.
        """
        return self.dropout(self.prompt_of(hidden, source_mask))  # type: ignore[no-any-return]

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Make zero from now on, until it is trained (a subclass of one's own says how, or starts as it was made).

        Where vectors that are alike would stay alike, all but the first make little instead.
        """
        up = getattr(self, "up", None)
        if isinstance(up, nn.Linear):
            for parameter in up.parameters():
                parameter.zero_()

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        """Make the prompt (batch, k, hidden) without dropout; arguments as in `forward`."""
        raise TypeError(f"{type(self).__name__} must say how it makes a prompt: override prompt_of")


def read_state(hidden: torch.Tensor, mask: torch.Tensor | None, *, last: bool) -> torch.Tensor:
    """Return the hidden state (batch, hidden) at the first (or last) marked position of each row.

    Args:
        hidden: (batch, length, hidden).
        mask: (batch, length), nonzero at marked positions; None: all are marked.
        last: take the last marked position instead of the first.
    """
    if mask is None:
        return hidden[:, -1 if last else 0]
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), read_position(mask, last=last)]


def read_position(mask: torch.Tensor, *, last: bool) -> torch.Tensor:
    """Return the index (batch,) of the first (or last) marked position in each row of `mask` (batch, length)."""
    order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    # In a row without a marked position all scores are 0, and argmax gives 0. Nothing waits for a GPU.
    return (mask.to(order.dtype) * (order if last else order.flip(0))).argmax(1)
