"""RPG: a fixed prompt plus a correction that is computed from the text; ours, not in the paper."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.prompts.base import GeneratorSpec, read_state
from lateprompt.prompts.fixed import FixedPrompt


class ResidualGenerator(FixedPrompt):
    """RPG: vector i is p_i + m^-1/2 W_up (g_i ⊙ ReLU(W_down h/rms(h))): a trained p_i, corrected by a hidden state h.

    h is the state that NPG reads, divided by its root mean square because norms differ widely in the middle of a
    decoder. g_i is a trained gate of width m for each vector, so that all vectors share one W_up: m → d. W_up starts at
    zero: a new generator is exactly a fixed prompt, and training decides how much depends on the text. Ours, not in the
    paper. Parameters: k·d + d·m + m + k·m + m·d.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GENERATORS, GeneratorSpec
        >>> generator = GENERATORS["rpg"](GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8))
        >>> generator(torch.randn(2, 7, 16), source_mask=torch.ones(2, 7)).shape  # (batch, k, hidden)
        torch.Size([2, 3, 16])
        >>> sum(parameter.numel() for parameter in generator.parameters())
        336
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.gate = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.bottleneck_dim))
        nn.init.normal_(self.gate)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        super().start_at_zero()
        self.up.weight.zero_()

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        state = read_state(hidden, source_mask, last=self.spec.reads_last)
        low = torch.relu(self.down(F.rms_norm(state, state.shape[-1:])))
        return self.prompt + self.up(low[:, None] * self.gate) * self.spec.bottleneck_dim**-0.5  # type: ignore[no-any-return]
