"""NPG: all prompt vectors from one hidden state (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator, read_state


class NaiveGenerator(PromptGenerator):
    """NPG: all k vectors from one hidden state h, as W_up ReLU(W_down h), with W_up: m → k·d.

    h is the hidden state of the first token ([CLS] of an encoder) or of the last source token (of a decoder).
    Parameters: d·m + m + m·k·d + k·d.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GENERATORS, GeneratorSpec
        >>> generator = GENERATORS["npg"](GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8))
        >>> generator(torch.randn(2, 7, 16), source_mask=torch.ones(2, 7)).shape  # (batch, k, hidden)
        torch.Size([2, 3, 16])
        >>> sum(parameter.numel() for parameter in generator.parameters())
        568
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.up = nn.Linear(spec.bottleneck_dim, spec.num_prompt_tokens * spec.hidden_size)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        rows = self.spec.hidden_size  # of the first vector
        self.up.weight[:rows] = 0.0
        self.up.bias.zero_()
        self.up.weight[rows:] *= self.spec.init_std

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        state = read_state(hidden, source_mask, last=self.spec.reads_last)
        return self.up(torch.relu(self.down(state))).view(hidden.shape[0], self.num_prompt_tokens, -1)  # type: ignore[no-any-return]
