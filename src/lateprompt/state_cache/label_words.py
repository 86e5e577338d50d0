"""Kept states of label words of several tokens: each row's source as ever, and each label's words behind it.

A label's words are a row of their own in the store, which holds their positions alone: all but the last word, which is
no input. One packed pass of the trunk gives a source and all its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.packed import branch_trunk
from lateprompt.data.batches import Feed
from lateprompt.data.padding import pad
from lateprompt.readouts import Batch, PhraseReadout
from lateprompt.state_cache import TrunkStates
from lateprompt.state_cache.feed import StatesFeed
from lateprompt.state_cache.keys import row_key
from lateprompt.state_cache.store import batches_of


class PhraseStates:
    """The states of some sources and of the labels' words behind them, in a store.

    Args:
        store: the store.
        readout: whose labels.
        sources: token ids of the sources.
    """

    def __init__(self, store: TrunkStates, readout: PhraseReadout, sources: Sequence[Any]) -> None:
        self.store = store
        self.tokens = readout.tokens[:, :-1]
        self.words = (readout.filled.sum(1) - 1).tolist()
        self.phrases = [self.tokens[label, : self.words[label]].tolist() for label in range(len(self.words))]
        self.sources = [list(source) for source in sources]
        self.keys = [self._keys(source) for source in self.sources]

    def _keys(self, source: list[int]) -> list[bytes | None]:
        """Addresses of a source, then of each label's words (None where they are none)."""
        behind = [row_key(source + words, last=len(words)) if words else None for words in self.phrases]
        return [row_key(source), *behind]

    def missing(self) -> list[int]:
        """The sources some of whose rows are not kept whole."""
        flat = [(i, key) for i, keys in enumerate(self.keys) for key in keys if key is not None]
        return sorted({flat[j][0] for j in self.store.missing_keys([key for _, key in flat])})

    @property
    def positions(self) -> int:
        """How many positions all rows have, repeated sources included."""
        return sum(len(source) + sum(self.words) for source in self.sources)

    @torch.no_grad()
    def fill(self, layer: LateBackbone, prompt_layer: int, progress: Callable[[int], None]) -> np.ndarray:
        """Compute and keep what is missing; row numbers (sources, 1 + labels), -1 for labels of one word."""
        self.store.refresh()
        if not self.missing():  # all there: nothing is locked or written
            progress(len(self.sources))
            return self._held()
        with self.store.writing():
            wanted = {self.keys[i][0]: i for i in self.missing()}
            order = sorted(wanted.values(), key=lambda i: len(self.sources[i]))
            progress(len(self.sources) - len(order))
            branches, width = self.tokens.shape
            layer.late_mode(prompt_layer)
            for batch in batches_of([len(self.sources[i]) + branches * width for i in order]):
                rows = [order[j] for j in batch]
                states = self._states(layer, prompt_layer, [self.sources[i] for i in rows]).cpu()
                self._append(rows, states)
                progress(len(rows))
            self.store.sync()
            return self._held()  # before another may prune them

    def _held(self) -> np.ndarray:
        numbers = np.array(
            [self.store.rows_of([b"" if key is None else key for key in keys]) for keys in self.keys], dtype=np.int64
        )
        self.store.hold(numbers[numbers >= 0])
        return numbers

    def _states(self, layer: LateBackbone, prompt_layer: int, sources: Sequence[list[int]]) -> torch.Tensor:
        device, _ = layer.placement
        ids, mask = pad(sources)
        ends = torch.tensor([len(source) - 1 for source in sources])
        tokens = self.tokens.expand(len(sources), -1, -1)
        given = (part.to(device) for part in (ids, mask, ends, tokens))
        return branch_trunk(layer, prompt_layer, *given)

    def _append(self, rows: Sequence[int], states: torch.Tensor) -> None:
        branches, width = self.tokens.shape
        length = states.shape[1] - branches * width
        found: dict[bytes, torch.Tensor] = {}
        for j, i in enumerate(rows):
            source, *behind = self.keys[i]
            assert source is not None
            found[source] = states[j, : len(self.sources[i])]
            for label, key in enumerate(behind):
                if key is not None:
                    start = length + label * width
                    found[key] = states[j, start : start + self.words[label]]
        keys = list(found)
        absent = [keys[k] for k in self.store.missing_keys(keys)]
        self.store.append(absent, [found[key] for key in absent])


class PhraseFeed(StatesFeed):
    """A feed whose batches carry `trunk_states` and `branch_states`.

    Args:
        feed, store, numbers: as in `StatesFeed`.
        branches: row numbers (rows, labels) of the labels' words, -1 for labels of one word.
        width: the longest label's words, the last left out.
    """

    def __init__(self, feed: Feed, store: TrunkStates, numbers: np.ndarray, branches: np.ndarray, width: int) -> None:
        super().__init__(feed, store, numbers)
        self.branches = branches
        self.width = width

    def batch(self, rows: np.ndarray) -> Batch:
        batch = super().batch(rows)
        wanted = self.branches[rows].reshape(-1)
        there = np.flatnonzero(wanted >= 0)
        kept = self.store.get(wanted[there], self.width)
        states = kept.new_zeros(len(wanted), self.width, kept.shape[-1])
        states[torch.from_numpy(there)] = kept
        return replace(batch, branch_states=states.view(len(rows), -1, self.width, kept.shape[-1]))
