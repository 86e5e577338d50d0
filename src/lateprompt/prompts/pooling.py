"""MPPG and APPG: one prompt vector per piece of the text (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator


class PoolingGenerator(PromptGenerator):
    """Base of MPPG and APPG: one vector per piece of the text, W_up ReLU(pool(W_down h_1 … W_down h_n)), W_up: m → d.

    The n source tokens of a text are cut into k pieces as in torch's adaptive pooling: piece i has the tokens
    floor(i·n/k) … ceil((i+1)·n/k)-1, so pieces share tokens where n < k. Padding is never pooled. With
    `pool_last_source=False` the last token is left out too, as in the authors' GPT-2 code.
    Parameters: d·m + m + m·d + d.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GeneratorSpec, PoolingGenerator
        >>> class SumPooling(PoolingGenerator):
        ...     def pool(self, slots, inside):
        ...         return slots.masked_fill(~inside[..., None], 0.0).sum(2)
        >>> SumPooling(GeneratorSpec(hidden_size=16, num_prompt_tokens=3))(torch.randn(2, 7, 16)).shape
        torch.Size([2, 3, 16])
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size)

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Pool `slots` (batch, k, width, m) to (batch, k, m), over the positions where `inside` (batch, k, width)."""
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
    """MPPG: the maximum over each piece of the text, as `PoolingGenerator` says.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GENERATORS, GeneratorSpec
        >>> generator = GENERATORS["mppg"](GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8))
        >>> generator(torch.randn(2, 7, 16), source_mask=torch.ones(2, 7)).shape  # (batch, k, hidden)
        torch.Size([2, 3, 16])
        >>> sum(parameter.numel() for parameter in generator.parameters())
        280
    """

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return slots.masked_fill(~inside[..., None], float("-inf")).amax(2)


class AveragePoolingGenerator(PoolingGenerator):
    """APPG: the average over each piece of the text, as `PoolingGenerator` says.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GENERATORS, GeneratorSpec
        >>> generator = GENERATORS["appg"](GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8))
        >>> generator(torch.randn(2, 7, 16), source_mask=torch.ones(2, 7)).shape  # (batch, k, hidden)
        torch.Size([2, 3, 16])
        >>> sum(parameter.numel() for parameter in generator.parameters())
        280
    """

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        weights = inside.to(slots.dtype)
        # Filled, not multiplied by zero: padding may hold inf or nan.
        return slots.masked_fill(~inside[..., None], 0.0).sum(2) / weights.sum(2, keepdim=True)


def pooling_slots(mask: torch.Tensor, k: int, *, skip_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the marked positions of each row into k pieces, as torch's adaptive pooling does.

    Args:
        mask: (batch, length), nonzero where a row may be read.
        k: number of pieces.
        skip_last: leave out each row's last marked position.

    Returns:
        Positions (batch, k, width) in the row, and a mask (batch, k, width) of those that belong to the piece; width
        is ceil(length / k) + 1, the most that a piece can have. A row with nothing marked has its first position.
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
