"""`KeysMemory`: the keys and values of rows that read-only prompts read again and again, in memory.

They are functions of the text alone, as the states are that they are made from: an epoch makes them, the ones that
follow read them. Rows are kept while there is room; others are made from their states at each step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lateprompt.backbone.late_backbone import LateBackbone

Keys = dict[int, tuple[torch.Tensor, torch.Tensor]]


def machine_memory_bytes() -> float:
    """The machine's memory; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


class KeysMemory:
    """Keys and values in memory, by row number.

    Args:
        layer: the late backbone whose frozen layers make them.
        limit_bytes: most that they may take.

    Example:
        >>> import numpy as np
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.state_cache.keys_memory import KeysMemory
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertModel(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8, read_only=True))
        >>> keys = KeysMemory(model.base_model.layer, limit_bytes=1e9)
        >>> keys.of(np.array([4, 7]), length=5)[1].tolist()  # which are missing: nothing was kept yet
        [True, True]
    """

    def __init__(self, layer: LateBackbone, limit_bytes: float) -> None:
        self.layer = layer
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        # As numpy's arrays: a reader's thread that fills torch's has a team of threads, which fights the model's own.
        self._rows: dict[int, np.ndarray] = {}
        self._dtype = torch.float32
        self._layers: list[int] = []

    def of(self, rows: np.ndarray, length: int) -> tuple[torch.Tensor | None, np.ndarray]:
        """What is kept of some rows, right padded to a length: the parts, and which rows are missing (rows,) in them.

        Returns:
            (2 · layers, rows, heads for keys, length, width), keys and values in turn, or None where nothing is kept.
        """
        found = [self._rows.get(int(row)) for row in rows]
        missing = np.array([row is None for row in found], dtype=bool)
        first = next((row for row in found if row is not None), None)
        if first is None:
            return None, missing
        parts, heads, _, width = first.shape
        together = np.zeros((parts, len(found), heads, length, width), dtype=first.dtype)
        for place, row in enumerate(found):
            if row is not None:
                together[:, place, :, : row.shape[2]] = row
        return torch.from_numpy(together).view(self._dtype), missing

    def complete(
        self,
        rows: np.ndarray,
        lengths: Sequence[int],
        known: torch.Tensor | None,
        missing: np.ndarray,
        states: Mapping[int, torch.Tensor],
    ) -> Keys:
        """The keys and values of all rows by layer; what is made for it is kept as far as there is room.

        Args:
            rows: row numbers.
            lengths: their tokens.
            known, missing: what `of` gave for them.
            states: by layer the states (missing rows, length, hidden) of those that are missing.
        """
        if not missing.any():
            assert known is not None
            return self._by_layer(known)
        device, dtype = self.layer.placement
        # In the backbone's own type, whoever asks: evaluation asks within autocast, training does not.
        with torch.autocast(device.type, enabled=False), self.layer.kernels():
            made = self.layer.frozen.text_keys(
                {layer: part.to(device=device, dtype=dtype) for layer, part in states.items()}
            )
        assert made is not None
        self._layers = sorted(made)
        parts = [part for layer in self._layers for part in made[layer]]
        if device.type != "cpu" or any(part.shape != parts[0].shape for part in parts):
            return made  # nothing of theirs is kept, so all of them are here
        together = torch.stack(parts)
        places = np.flatnonzero(missing)
        for place, at in enumerate(places.tolist()):
            own = together[:, place, :, : lengths[at]]
            if int(rows[at]) not in self._rows and self.nbytes + own.nbytes <= self.limit_bytes:
                self._rows[int(rows[at])] = _as_array(own.clone())
                self._dtype = own.dtype
                self.nbytes += own.nbytes
        if known is None:
            return made
        return self._by_layer(known.index_copy_(1, torch.from_numpy(places), together))

    def _by_layer(self, parts: torch.Tensor) -> Keys:
        return {layer: (parts[2 * i], parts[2 * i + 1]) for i, layer in enumerate(self._layers)}


def _as_array(part: torch.Tensor) -> np.ndarray:
    """numpy's array on the same memory; it has no bfloat16, so that whole numbers of the same size carry the bits."""
    array: np.ndarray = (part.view(torch.int16) if part.element_size() == 2 else part).numpy()
    return array
