"""RPG: a fixed prompt plus what the instance adds to it. Not in the paper."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.prompts.base import GeneratorSpec, read_state
from lateprompt.prompts.fixed import FixedPrompt


class ResidualGenerator(FixedPrompt):
    """RPG: k free vectors, each corrected by one hidden state h: p_i + m^-1/2 W_up (g_i ⊙ ReLU(W_down h/rms(h))).

    h is the state that NPG reads; g_i is a trained gate of width m per vector, so that one W_up: m → d serves them all.
    W_up starts at zero: a fresh generator is exactly a fixed prompt, and learns how much of it depends on the instance.
    h is divided by its root mean square, because the states in a decoder's middle have very unequal norms. Not in the
    paper. Parameters: k·d + d·m + m + k·m + m·d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.gate = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.bottleneck_dim))
        nn.init.normal_(self.gate)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        state = read_state(hidden, source_mask, last=self.spec.reads_last)
        low = torch.relu(self.down(F.rms_norm(state, state.shape[-1:])))
        return self.prompt + self.up(low[:, None] * self.gate) * self.spec.bottleneck_dim**-0.5  # type: ignore[no-any-return]
