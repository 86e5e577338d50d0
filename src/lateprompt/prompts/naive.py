"""NPG: all prompt vectors from one hidden state (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator, read_state


class NaiveGenerator(PromptGenerator):
    """NPG: one hidden state h to all k vectors, W_up ReLU(W_down h), with W_up: m → k·d.

    h is the hidden state at the first readable position (an encoder's [CLS]), or at the last one (a decoder's last
    source token). Parameters: d·m + m + m·k·d + k·d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.up = nn.Linear(spec.bottleneck_dim, spec.num_prompt_tokens * spec.hidden_size)

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        state = read_state(hidden, source_mask, last=self.spec.reads_last)
        return self.up(torch.relu(self.down(state))).view(hidden.shape[0], self.num_prompt_tokens, -1)  # type: ignore[no-any-return]
