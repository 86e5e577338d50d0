"""The LM head of a Hugging Face model as a function of hidden states, over all words or only some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lateprompt.backbone.kernels.cpu_mode import cpu_kernels
from lateprompt.backbone.split import replace_module, shallow_copy
from lateprompt.utils.errors import LatePromptError, option


class _GivenHidden(nn.Module):
    """Stands for the backbone: hands the hidden states it is given (as `inputs_embeds`) to the head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.__dict__["_backbone"] = backbone

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_backbone"], name)


class _SomeRows(nn.Module):
    """The output embedding restricted to some words: (…, hidden) to (…, words)."""

    def __init__(self, linear: nn.Linear, rows: torch.Tensor) -> None:
        super().__init__()
        self.__dict__["_linear"] = linear
        self.__dict__["_rows"] = rows
        self.__dict__["_own"] = None

    def keep(self) -> None:
        """Hold a copy of the rows: the embedding they come from is about to be freed."""
        self.__dict__["_own"] = tuple(None if part is None else part.detach() for part in self._parts())

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        linear, rows = self.__dict__["_linear"], self.__dict__["_rows"]
        if rows.device != linear.weight.device:
            rows = self.__dict__["_rows"] = rows.to(linear.weight.device)
        return linear.weight[rows], None if linear.bias is None else linear.bias[rows]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, *(self.__dict__["_own"] or self._parts()))


class LMHead:
    """The LM head of a Hugging Face model as a function of hidden states, over all words or some.

    It is a view of the whole model in which the backbone passes hidden states through: whatever transform, norm or
    soft-capping the architecture's head has is its own code.

    Args:
        model: the Hugging Face model with the head.
        layer: the (late) backbone inside it.
        words: vocabulary ids to score, or None for the whole vocabulary.

    Raises:
        LatePromptError: the model has no LM head.
    """

    def __init__(self, model: Any, layer: nn.Module, words: torch.Tensor | None = None) -> None:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if output is None:
            raise LatePromptError(
                f"{type(model).__name__} has no LM head to score label words with; use {option('readout', 'head')}"
            )
        self.words = words
        self.view = shallow_copy(model)
        owned: dict[str, nn.Module] = {}
        names = {id(module): name for name, module in model.named_modules()}
        replace_module(self.view, names[id(layer)], _GivenHidden(layer), owned)
        self.output = output
        self.rows = _SomeRows(output, words) if words is not None and type(output) is nn.Linear else None
        if self.rows is not None:
            replace_module(self.view, names[id(output)], self.rows, owned)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores (batch, words) of hidden states (batch, hidden), or (batch, n, words) of (batch, n, hidden)."""
        flat = hidden if hidden.ndim == 3 else hidden[:, None]
        with cpu_kernels(flat.device, flat.dtype):
            logits: torch.Tensor = self.view(inputs_embeds=flat).logits
        if self.words is not None and logits.shape[-1] != len(self.words):
            logits = logits[..., self.words.to(logits.device)]  # a head we could not restrict
        return logits if hidden.ndim == 3 else logits[:, 0]
