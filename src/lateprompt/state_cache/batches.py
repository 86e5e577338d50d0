"""Batches that carry the trunk's states, read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lateprompt.data.batch import Batch
from lateprompt.data.batches import Batches
from lateprompt.state_cache.store import TrunkStates


class CachedBatches(Batches):
    """`Batches` that carry `trunk_states`, and `packed_states` where labels have several tokens.

    Args:
        batches: the rows.
        store: holds the states of every row.
        numbers: the row numbers in the store (rows, 1 + labels with a continuation): each row's own, then those of the
            labels' words behind it; -1 for rows that are never read.
        continuations: of each label, the token ids behind a source (`Readout.continuations`).
    """

    def __init__(
        self, batches: Batches, store: TrunkStates, numbers: np.ndarray, continuations: Sequence[Sequence[int]] = ()
    ) -> None:
        super().__init__(batches.examples, batches.pad_token_id, batches.weights)
        self.store = store
        self.numbers, self.label_numbers = numbers[:, 0], numbers[:, 1:]
        self.continued = np.array([len(words) for words in continuations], dtype=np.int64)

    def batch(self, rows: np.ndarray) -> Batch:
        batch = super().batch(rows)
        batch = replace(batch, trunk_states=self.store.get(self.numbers[rows], batch.input_ids.shape[1]))
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
            ahead = None
            for rows in order:
                following = reader.submit(self.batch, rows)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
        # The reader has ended: a second thread with torch work changes how OpenMP's threads wait for each other.
        if ahead is not None:
            yield ahead.result()


StatesFeed = CachedBatches
"""Its name in earlier releases."""
