"""`Batch`: padded rows on their way through the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100
"""What stands behind a target's end, as in transformers' labels."""


@dataclass(frozen=True)
class Batch:
    """Right-padded rows on their way through the model.

    Args:
        input_ids: (batch, length) token ids.
        attention_mask: (batch, length), 1 for real tokens.
        read: (batch,) position to read: the mask token, or the last source token; unused by a head. With `targets`
            (batch, width): the positions that predict them, the first of which ends the source.
        labels: (batch,) class indices, or None.
        token_type_ids: (batch, length), or None.
        trunk_states: (batch, length, hidden), kept states at the prompt layer, or None.
        branch_states: (batch, labels, width, hidden), those of label words of several tokens (all but each label's
            last word), or None.
        padded: whether the mask hides anything; known here, so that nobody has to ask the device.
        targets: (batch, width) token ids of the texts that answer, -100 behind their ends, or None.
        weights: (batch,) what a row's loss is multiplied with, 1 on the average of all training rows; None: 1 each.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    read: torch.Tensor
    labels: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    trunk_states: torch.Tensor | None = None
    branch_states: torch.Tensor | None = None
    padded: bool = True
    targets: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, without waiting for the copies."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)

    def backbone_inputs(self) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": self.input_ids}
        if self.padded:
            inputs["attention_mask"] = self.attention_mask
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        if self.trunk_states is not None:
            inputs["trunk_states"] = self.trunk_states
        return inputs
