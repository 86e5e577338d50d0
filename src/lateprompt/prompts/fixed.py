"""The fixed prompt: the same vectors for every instance."""

from __future__ import annotations

import torch
from torch import nn

from lateprompt.prompts.base import GeneratorSpec, PromptGenerator


class FixedPrompt(PromptGenerator):
    """k free vectors, the same for every instance (the paper's "LPT w/o PG"): k·d parameters."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.prompt = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.hidden_size))
        nn.init.normal_(self.prompt, std=spec.init_std)

    @torch.no_grad()
    def init_from_vocabulary(self, embeddings: torch.Tensor) -> None:
        """Start from the embeddings (vocabulary, hidden) of k random words (Lester et al. 2021)."""
        rows = torch.randint(embeddings.shape[0], (self.num_prompt_tokens,))
        self.prompt.copy_(embeddings[rows.to(embeddings.device)])

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        return self.prompt.expand(hidden.shape[0], -1, -1)
