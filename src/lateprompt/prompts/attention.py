"""ATPG: prompt vectors by attention pooling; ours, not in the paper."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator


class AttentionPoolingGenerator(PromptGenerator):
    """ATPG: vector i is W_up ReLU(Σ_j a_ij W_down h_j), with attention weights a_i = softmax_j(q_i·W_down h_j).

    Each of k trained queries q_i, of width m, attends to all source tokens of the text. (NPG reads one token, MPPG and
    APPG cut the text into k pieces.) Ours, not in the paper. Parameters: d·m + m + k·m + m·d + d.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GENERATORS, GeneratorSpec
        >>> generator = GENERATORS["atpg"](GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8))
        >>> generator(torch.randn(2, 7, 16), source_mask=torch.ones(2, 7)).shape  # (batch, k, hidden)
        torch.Size([2, 3, 16])
        >>> sum(parameter.numel() for parameter in generator.parameters())
        304
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.query = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.bottleneck_dim))
        nn.init.normal_(self.query, std=spec.bottleneck_dim**-0.5)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size)

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        low = self.down(hidden)
        scores = F.linear(low, self.query).transpose(1, 2)  # query @ low.mT rounds differently once query is frozen
        if source_mask is not None:
            seen = source_mask.bool()
            first = torch.arange(seen.shape[1], device=seen.device) == 0
            seen = seen | (first & ~seen.any(1, keepdim=True))  # a row with nothing marked reads its first position
            scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
            low = low.masked_fill(~seen[..., None], 0.0)  # padding may hold inf or nan
        return self.up(torch.relu(scores.softmax(-1) @ low))  # type: ignore[no-any-return]
