"""Batches that carry the trunk's states, read from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from lateprompt.data.batch import Batch
from lateprompt.data.batches import Batches
from lateprompt.state_cache.keys_memory import KeysMemory
from lateprompt.state_cache.store import TrunkStates


class CachedBatches(Batches):
    """`Batches` that carry `trunk_states`, and `packed_states` where labels have several tokens.

    Args:
        batches: the rows.
        store: holds the states of every row.
        numbers: the row numbers in the store (rows, 1 + labels with a continuation): each row's own, then those of the
            labels' words behind it; -1 for rows that are never read.
        continuations: of each label, the token ids behind a source (`Readout.continuations`).
        above: further stores of higher layers, with their row numbers (rows,): what read-only prompts read besides.
        pooled: the store of the frozen model's pooled output, with its row numbers (rows,).
        keys: keeps the rows' keys and values in memory once they have been made, or None.
    """

    def __init__(
        self,
        batches: Batches,
        store: TrunkStates,
        numbers: np.ndarray,
        continuations: Sequence[Sequence[int]] = (),
        above: Sequence[tuple[TrunkStates, np.ndarray]] = (),
        pooled: tuple[TrunkStates, np.ndarray] | None = None,
        keys: KeysMemory | None = None,
    ) -> None:
        super().__init__(batches.examples, batches.pad_token_id, batches.weights)
        self.store = store
        self.above = tuple(above)
        self.pooled = pooled
        self.keys = keys if self.above else None
        self.numbers, self.label_numbers = numbers[:, 0], numbers[:, 1:]
        self.continued = np.array([len(words) for words in continuations], dtype=np.int64)

    def batch(self, rows: np.ndarray) -> Batch:
        batch = self._with_own(rows)
        if not self.above:
            return batch
        assert batch.trunk_states is not None
        length = batch.input_ids.shape[1]
        return replace(batch, layer_states={self.store.prompt_layer: batch.trunk_states, **self._above(rows, length)})

    def _with_own(self, rows: np.ndarray) -> Batch:
        """The batch with all states but those of higher layers."""
        batch = super().batch(rows)
        batch = replace(batch, trunk_states=self.store.get(self.numbers[rows], batch.input_ids.shape[1]))
        if self.pooled is not None:
            store, numbers = self.pooled
            batch = replace(batch, pooled_states=store.get(numbers[rows], 1)[:, 0])
        if not len(self.continued):
            return batch
        width, labels = int(self.continued.max()), np.flatnonzero(self.continued)
        behind = self.store.get(self.label_numbers[rows].reshape(-1), width)
        states = behind.new_zeros(len(rows), len(self.continued), width, behind.shape[-1])
        states[:, labels] = behind.reshape(len(rows), len(labels), width, behind.shape[-1])
        return replace(batch, packed_states=states)

    def _above(self, rows: np.ndarray, length: int) -> dict[int, torch.Tensor]:
        return {store.prompt_layer: store.get(numbers[rows], length) for store, numbers in self.above}

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[Batch]:
        """The batches of an order; the next one is read while the model works on this one."""
        with ThreadPoolExecutor(1, thread_name_prefix="states") as reader:
            ahead: Future[Callable[[], Batch]] | None = None
            for rows in order:
                following = reader.submit(self._read, rows)
                if ahead is not None:
                    yield ahead.result()()
                ahead = following
        # The reader has ended: a second thread with torch work changes how OpenMP's threads wait for each other.
        if ahead is not None:
            yield ahead.result()()

    def _read(self, rows: np.ndarray) -> Callable[[], Batch]:
        """Read what a batch needs; what is given then makes the batch, with the keys that are not in memory yet."""
        memory = self.keys
        if memory is None:
            batch = self.batch(rows)
            return lambda: batch
        batch = self._with_own(rows)
        length, states = batch.input_ids.shape[1], batch.trunk_states
        assert states is not None
        known, missing = memory.of(self.numbers[rows], length)
        lacking = {self.store.prompt_layer: states[torch.from_numpy(missing)], **self._above(rows[missing], length)}
        lengths = self.lengths[rows].tolist()

        def make() -> Batch:
            keys = memory.complete(self.numbers[rows], lengths, known, missing, lacking)
            return replace(batch, text_keys=keys)

        return make


StatesFeed = CachedBatches
"""Its name in earlier releases."""
