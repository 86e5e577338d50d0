"""`Batch`: padded rows as tensors, as the model and the readout take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100
"""Fills up targets after their end, as transformers does in `labels`."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right, as tensors.

    Args:
        input_ids: (batch, length) token ids.
        attention_mask: (batch, length), 1 for real tokens.
        read: (batch,) position whose output is read: the mask token, or the last source token; a head does not use it.
            With `targets`: (batch, width), the positions that predict their tokens; the first is the source's last.
        labels: (batch,) class indices; of a multi-label task (batch, labels), 1 for those that a row has; or None.
        token_type_ids: (batch, length), or None.
        trunk_states: (batch, length, hidden), cached hidden states at the prompt layer, or None.
        layer_states: cached hidden states (batch, length, hidden) of several layers by the number of layers below them,
            as read-only prompts read them, or None.
        text_keys: keys and values (batch, heads for keys, length, width) of the text by the number of layers below the
            layer that reads them, or None: they are made from `layer_states`.
        pooled_states: (batch, hidden), the frozen model's own pooled state, cached, or None.
        packed_states: (batch, labels, width, hidden), the same for label words of several tokens (without the last
            token of each word), or None.
        padded: whether any row is padded; kept here because asking the mask would wait for the GPU.
        targets: (batch, width) token ids of the texts to be written, -100 after their ends, or None.
        weights: (batch,) factors of the rows' losses, with a mean of 1 over all training rows; None: all are 1.

    Example:
        >>> import torch
        >>> from lateprompt.data.batch import Batch
        >>> batch = Batch(torch.tensor([[5, 6, 7]]), torch.ones(1, 3), read=torch.tensor([2]), padded=False)
        >>> list(batch.backbone_inputs())
        ['input_ids']
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    read: torch.Tensor
    labels: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    trunk_states: torch.Tensor | None = None
    layer_states: dict[int, torch.Tensor] | None = None
    text_keys: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
    pooled_states: torch.Tensor | None = None
    packed_states: torch.Tensor | None = None
    padded: bool = True
    targets: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, without waiting for the copies to finish."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: moved(part) for key, part in value.items()}
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return Batch(**{name: moved(value) for name, value in vars(self).items()})

    def backbone_inputs(self) -> dict[str, Any]:
        """Return the arguments of a call of the backbone, without those that are None or say nothing."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids}
        if self.padded:
            inputs["attention_mask"] = self.attention_mask
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        states = self.trunk_states if self.layer_states is None else self.layer_states
        if states is not None:
            inputs["trunk_states"] = states
        if self.text_keys is not None:
            inputs["text_keys"] = self.text_keys
        return inputs
