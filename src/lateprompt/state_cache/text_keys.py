"""`TextKeys`: the keys and values of rows that read-only prompts read again and again, in memory.

They are functions of the text alone, as the states are that they are made from: an epoch makes them, the ones that
follow read them. Rows are kept while there is room; others are made from their states at each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.data.batch import Batch

Keys = dict[int, tuple[torch.Tensor, torch.Tensor]]


class TextKeys:
    """Keys and values in memory, by row number.

    Args:
        layer: the late backbone whose frozen layers make them.
        limit_bytes: most that they may take.

    Example:
        >>> import numpy as np
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.state_cache.text_keys import TextKeys
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertModel(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8, read_only=True))
        >>> keys = TextKeys(model.base_model.layer, limit_bytes=1e9)
        >>> keys.of(np.array([4, 7]), length=5) is None  # nothing was kept yet
        True
    """

    def __init__(self, layer: LateBackbone, limit_bytes: float) -> None:
        self.layer = layer
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._rows: dict[int, torch.Tensor] = {}
        self._layers: list[int] = []

    def of(self, rows: np.ndarray, length: int) -> Keys | None:
        """The keys and values of rows, right padded to a length; None where one of them is not here."""
        found = [self._rows.get(int(row)) for row in rows]
        if not found or any(row is None for row in found):
            return None
        first = found[0]
        assert first is not None
        parts, heads, _, width = first.shape
        together = first.new_zeros(parts, len(found), heads, length, width)
        for place, row in enumerate(found):
            assert row is not None
            together[:, place, :, : row.shape[2]] = row
        return {layer: (together[2 * i], together[2 * i + 1]) for i, layer in enumerate(self._layers)}

    def add(self, rows: np.ndarray, lengths: Sequence[int], batch: Batch) -> Batch:
        """The batch with the keys and values of its rows, which are kept as far as there is room."""
        states = batch.layer_states
        if states is None:
            return batch
        device, dtype = self.layer.placement
        with self.layer.kernels():
            found = self.layer.frozen.text_keys(
                {layer: part.to(device=device, dtype=dtype) for layer, part in states.items()}
            )
        if found is None:
            return batch
        lowest = min(found)
        if device.type == "cpu" and self.nbytes < self.limit_bytes:
            self._keep(rows, lengths, found)
        lean = {lowest: states[lowest]}
        return Batch(**{**vars(batch), "layer_states": lean, "trunk_states": states[lowest], "text_keys": found})

    def _keep(self, rows: np.ndarray, lengths: Sequence[int], found: Keys) -> None:
        self._layers = sorted(found)
        parts = [part for layer in self._layers for part in found[layer]]
        if any(part.shape != parts[0].shape for part in parts):
            return  # layers of several shapes: they are made at each step
        together = torch.stack(parts)
        for place, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
            own = together[:, place, :, :length]
            if row not in self._rows and self.nbytes + own.nbytes <= self.limit_bytes:
                self._rows[row] = own.clone()
                self.nbytes += own.nbytes
