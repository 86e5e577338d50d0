"""Batches that carry the trunk's states, read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lateprompt.data.batch import Batch
from lateprompt.data.batches import Feed
from lateprompt.state_cache.store import TrunkStates


class StatesFeed(Feed):
    """A `Feed` whose batches carry `trunk_states`.

    Args:
        feed: the rows.
        store: holds the states of every row.
        numbers: the row number in the store of each row of the feed (what `fill` gave).
    """

    def __init__(self, feed: Feed, store: TrunkStates, numbers: np.ndarray) -> None:
        super().__init__(feed.examples, feed.pad_token_id, feed.weights)
        self.store = store
        self.numbers = numbers

    def batch(self, rows: np.ndarray) -> Batch:
        batch = super().batch(rows)
        return replace(batch, trunk_states=self.store.get(self.numbers[rows], batch.input_ids.shape[1]))

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
