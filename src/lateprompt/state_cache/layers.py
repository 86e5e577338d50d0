"""`LayerStates`: stored states of some rows at several layers, from one pass, for many trainings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lateprompt.data.batches import Batches
from lateprompt.readouts import Readout
from lateprompt.state_cache.admin import prune_stores
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.fill import check_room, needed_states
from lateprompt.state_cache.keys_memory import KeysMemory, machine_memory_bytes
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.state_cache.store import TrunkStates
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError

_TOGETHER = 64
"""Rows whose states are in memory at a time, where they are pooled."""


class LayerStates:
    """Rows with stored states at several layers: `batches` gives any of the rows for a prompt at any of the layers.

    One pass of the longest trunk fills what is missing in the stores of all layers; they are the same stores as those
    of `cache_states`, so that a later training finds its states there.

    Args:
        model: a model with a late backbone.
        readout: who will read the rows; of one kind for all trainings.
        rows: the rows.
        layers: the layers. Read-only prompts read kept states if all layers from theirs to the last but one are there.
        folder: where stores live.
        settings: how states are kept.
        pooling: how the frozen model's own output is pooled for a head: `mean`, `cls` or `last`; None: it is not kept.
        quiet: no progress bar.

    Raises:
        CannotCache: states that do not fit on the disk or into the limit, or a store that cannot be written.
        LatePromptError: a layer or dtype that cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        readout: Readout,
        rows: Batches,
        layers: Sequence[int],
        folder: Path,
        settings: StatesSettings,
        *,
        pooling: str | None = None,
        quiet: bool = True,
    ) -> None:
        self.rows = rows
        self.num_layers = readout.layer.num_layers
        needed = needed_states(readout, rows.examples)
        stores = [TrunkStates.open(folder, model, layer, dtype=settings.states_dtype) for layer in layers]
        if pooling is not None and not readout.continuations():
            stores.append(TrunkStates.open_pooled(folder, model, pooling))
        missing = [needed.missing(store) for store in stores]
        limit = settings.states_limit_gb * 1e9
        check_room(stores, needed, missing, limit)
        computed = any(map(len, missing))
        with Bar("states of all layers", len(needed.keys), quiet=quiet or not computed) as bar:
            numbers = needed.fill(stores, progress=bar.advance)
        if computed:
            with contextlib.suppress(LatePromptError):  # a folder that may be written, but not listed
                held = (store.hold(own.reshape(-1)) for store, own in zip(stores, numbers, strict=True))
                prune_stores(folder, limit, keep=set().union(*held))
        found = list(zip(stores, numbers, strict=True))
        self._stores = {store.prompt_layer: (store, own) for store, own in found if store.pooling is None}
        self._pooled = next(((store, own[:, 0]) for store, own in found if store.pooling is not None), None)
        self._keys: dict[int, KeysMemory] = {}
        self._room = min(settings.keys_memory_gb * 1e9, machine_memory_bytes() / 4)

    @property
    def layers(self) -> list[int]:
        """The layers whose states are kept, the lowest first."""
        return sorted(self._stores)

    @property
    def has_output(self) -> bool:
        """Whether the frozen model's own output is kept, pooled."""
        return self._pooled is not None

    def batches(self, readout: Readout, prompt_layer: int, rows: np.ndarray) -> CachedBatches:
        """Some of the rows, by number, with the states that a prompt layer's readout asks for."""
        part = _some(self.rows, rows)
        store, numbers = self._stores[prompt_layer]
        above, pooled, keys = [], None, None
        whole = all(layer in self._stores for layer in range(prompt_layer, self.num_layers))
        if readout.read_only_adapter() is not None and whole and not readout.continuations():
            own = ((layer, self._stores[layer]) for layer in range(prompt_layer + 1, self.num_layers))
            above = [(other, others[rows, 0]) for _, (other, others) in own]
            if self._pooled is not None and readout.pooled_layer() is not None:
                pooled = (self._pooled[0], self._pooled[1][rows])
            if above and readout.layer.frozen.reads_outside(prompt_layer):
                keys = self._keys.setdefault(prompt_layer, KeysMemory(readout.layer, self._room))
        return CachedBatches(part, store, numbers[rows], readout.continuations(), above, pooled, keys)

    def pooled(self, layer: int, pooling: str, rows: np.ndarray) -> np.ndarray:
        """One state (rows, hidden) of some rows at a layer.

        Args:
            layer: one of `layers`; L, the number of layers, for the model's output, pooled as it is kept.
            pooling: mean, or cls or last for the first or last token's state.
            rows: row numbers.
        """
        if layer == self.num_layers and self._pooled is not None:
            kept, of_rows = self._pooled
            output: np.ndarray = kept.get(of_rows[rows], 1)[:, 0].numpy()
            return output
        store, numbers = self._stores[layer]
        parts = []
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            lengths = torch.from_numpy(self.rows.lengths[some])
            states = store.get(numbers[some, 0], int(lengths.max())).float()  # zeros behind a row's end
            if pooling == "mean":
                parts.append(states.sum(1) / lengths[:, None])
            else:
                places = lengths - 1 if pooling == "last" else torch.zeros_like(lengths)
                parts.append(states[torch.arange(len(some)), places])
        pooled: np.ndarray = torch.cat(parts).numpy()
        return pooled


def _some(batches: Batches, rows: np.ndarray) -> Batches:
    """Some of the rows, by number."""
    weights = None if batches.weights is None else batches.weights[rows]
    return Batches([batches.examples[row] for row in rows], batches.pad_token_id, weights)
