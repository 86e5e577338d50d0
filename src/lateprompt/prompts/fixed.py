"""The fixed prompt: the same vectors for every text."""

from __future__ import annotations

import torch
from torch import nn

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator


class FixedPrompt(PromptGenerator):
    """k trained vectors, the same for every text (the paper's "LPT w/o PG").

    Parameters: k·d.

    Example:
        >>> import torch
        >>> from lateprompt.prompts import GENERATORS, GeneratorSpec
        >>> generator = GENERATORS["fixed"](GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8))
        >>> generator(torch.randn(2, 7, 16), source_mask=torch.ones(2, 7)).shape  # (batch, k, hidden)
        torch.Size([2, 3, 16])
        >>> sum(parameter.numel() for parameter in generator.parameters())
        48
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.prompt = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.hidden_size))
        nn.init.normal_(self.prompt, std=spec.init_std)

    @torch.no_grad()
    def init_from_vocabulary(self, embeddings: torch.Tensor) -> None:
        """Set the vectors to the embeddings of k random words (Lester et al. 2021).

        Args:
            embeddings: (vocabulary, hidden) word embeddings.
        """
        rows = torch.randint(embeddings.shape[0], (self.num_prompt_tokens,))
        self.prompt.copy_(embeddings[rows.to(embeddings.device)])

    @torch.no_grad()
    def start_at_zero(self) -> None:
        self.prompt[0] = 0.0

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        return self.prompt.expand(hidden.shape[0], -1, -1)
