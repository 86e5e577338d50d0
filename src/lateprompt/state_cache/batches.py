"""Batches that carry the trunk's states, read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lateprompt.data.batch import Batch
from lateprompt.data.batches import Batches
from lateprompt.state_cache.store import TrunkStates
from lateprompt.state_cache.text_keys import TextKeys


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
        keys: TextKeys | None = None,
    ) -> None:
        super().__init__(batches.examples, batches.pad_token_id, batches.weights)
        self.store = store
        self.above = tuple(above)
        self.pooled = pooled
        self.keys = keys if self.above else None
        self.numbers, self.label_numbers = numbers[:, 0], numbers[:, 1:]
        self.continued = np.array([len(words) for words in continuations], dtype=np.int64)

    def batch(self, rows: np.ndarray) -> Batch:
        batch = super().batch(rows)
        length = batch.input_ids.shape[1]
        states = self.store.get(self.numbers[rows], length)
        batch = replace(batch, trunk_states=states)
        keys = None if self.keys is None else self.keys.of(rows, length)
        if keys is not None:
            batch = replace(batch, text_keys=keys)
        elif self.above:
            further = {store.prompt_layer: store.get(numbers[rows], length) for store, numbers in self.above}
            batch = replace(batch, layer_states={self.store.prompt_layer: states, **further})
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

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[Batch]:
        """The batches of an order; the next one is read while the model works on this one."""
        with ThreadPoolExecutor(1, thread_name_prefix="states") as reader:
            ahead: tuple[np.ndarray, Future[Batch]] | None = None
            for rows in order:
                following = reader.submit(self.batch, rows)
                if ahead is not None:
                    yield self._with_keys(*ahead)
                ahead = rows, following
        # The reader has ended: a second thread with torch work changes how OpenMP's threads wait for each other.
        if ahead is not None:
            yield self._with_keys(*ahead)

    def _with_keys(self, rows: np.ndarray, ahead: Future[Batch]) -> Batch:
        """The batch that was read, with keys and values that are made here if they are not in memory."""
        batch = ahead.result()
        if self.keys is None or batch.text_keys is not None:
            return batch
        return self.keys.add(rows, [len(self.examples[row].input_ids) for row in rows], batch)


StatesFeed = CachedBatches
"""Its name in earlier releases."""
