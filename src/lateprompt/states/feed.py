"""Batches with their kept states: the trunk is not run, and the disk is read ahead of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lateprompt.readout import Batch
from lateprompt.states.store import TrunkStates
from lateprompt.training.feed import Feed


class StatesFeed(Feed):
    """A `Feed` whose batches carry `trunk_states`.

    Args:
        feed: the rows.
        store: holds the states of every row.
        numbers: the row number in the store of each row of the feed (what `fill` gave).
    """

    def __init__(self, feed: Feed, store: TrunkStates, numbers: np.ndarray) -> None:
        super().__init__(feed.examples, feed.pad_token_id)
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
            if ahead is not None:
                yield ahead.result()
