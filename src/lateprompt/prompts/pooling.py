"""MPPG and APPG: one prompt vector per piece of the text (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator


class PoolingGenerator(PromptGenerator):
    """A prompt vector per slot of an adaptive pooling: W_up ReLU(pool(W_down h_1 … W_down h_n)), with W_up: m → d.

    Slot i of k covers the readable positions floor(i·n/k) … ceil((i+1)·n/k)-1 of the n that an instance has; padding is
    never pooled, and with n < k slots share positions. All readable positions are pooled by default; with
    `pool_last_source=False` the last one is left out, as the authors' GPT-2 code does.
    Parameters: d·m + m + m·d + d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size)

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Pool `slots` (batch, k, width, m) over `inside` (batch, k, width) to (batch, k, m)."""
        raise TypeError(f"{type(self).__name__} must say how it pools: override pool")

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        if source_mask is None:
            source_mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        positions, inside = pooling_slots(source_mask, self.num_prompt_tokens, skip_last=not self.spec.pool_last_source)
        low = self.down(hidden)
        batch, k, width = positions.shape
        index = positions.view(batch, k * width, 1).expand(-1, -1, low.shape[-1])
        slots = low.gather(1, index).view(batch, k, width, -1)
        return self.up(torch.relu(self.pool(slots, inside)))  # type: ignore[no-any-return]


class MaxPoolingGenerator(PoolingGenerator):
    """MPPG: adaptive max pooling."""

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return slots.masked_fill(~inside[..., None], float("-inf")).amax(2)


class AveragePoolingGenerator(PoolingGenerator):
    """APPG: adaptive average pooling."""

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        weights = inside.to(slots.dtype)
        # Filled, not multiplied by zero: padding may hold inf or nan.
        return slots.masked_fill(~inside[..., None], 0.0).sum(2) / weights.sum(2, keepdim=True)


def pooling_slots(mask: torch.Tensor, k: int, *, skip_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions each slot of an adaptive pooling covers, over each row's own marked positions.

    Args:
        mask: (batch, length), nonzero where a row may be read.
        k: number of slots.
        skip_last: leave out each row's last marked position.

    Returns:
        positions (batch, k, width) into the row, and which of them belong to the slot (batch, k, width); width is the
        same for all: ceil(length / k) + 1. A row with nothing marked reads its first position.
    """
    mask = mask.bool()
    length = mask.shape[1]
    counts = (mask.sum(1) - int(skip_last)).clamp(min=1)[:, None]
    order = torch.argsort(~mask, dim=1, stable=True)  # marked positions first, in their own order
    slot = torch.arange(k, device=mask.device)[None]
    start = slot * counts // k
    end = -(-(slot + 1) * counts // k)
    width = -(-length // k) + 1
    rank = start[..., None] + torch.arange(width, device=mask.device)
    inside = rank < end[..., None]
    rank = rank.clamp(max=length - 1)
    return order.gather(1, rank.view(rank.shape[0], -1)).view_as(rank), inside
