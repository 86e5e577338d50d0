"""From encoded examples to padded batches, grouped by length so that little padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lateprompt.readout import IGNORED, Batch
from lateprompt.tasks import Example

_POOL = 50
"""Batches whose rows are sorted by length together: padding shrinks, the order stays random."""


def batch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch as index arrays: a function of its arguments alone, so a run can resume anywhere.

    Rows are shuffled, cut into pools of 50 batches, sorted by length inside a pool, and the batches are shuffled again.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * _POOL):
        pool = order[start : start + batch_size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(pool[i : i + batch_size] for i in range(0, len(pool), batch_size))
    return [batches[i] for i in random.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All rows in batches of similar length, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Feed:
    """Makes batches of some examples.

    Args:
        examples: the rows, unpadded.
        pad_token_id: what padding is filled with.
    """

    def __init__(self, examples: Sequence[Example], pad_token_id: int) -> None:
        self.examples = examples
        self.pad_token_id = pad_token_id
        self.lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
        self.labels = np.array([example.label for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of the given row numbers, right padded to its longest row."""
        examples = [self.examples[i] for i in rows]
        length = int(self.lengths[rows].max())
        ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        types = np.zeros((len(rows), length), dtype=np.int64) if examples[0].token_type_ids is not None else None
        for i, example in enumerate(examples):  # copies of a few bytes each, not model work
            size = len(example.input_ids)
            ids[i, :size] = example.input_ids
            mask[i, :size] = 1
            if types is not None and example.token_type_ids is not None:
                types[i, :size] = example.token_type_ids
        read, targets = torch.tensor([example.read for example in examples]), None
        if examples[0].target is not None:
            read, targets = _targets(examples)
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            read=read,
            labels=torch.from_numpy(self.labels[rows]),
            token_type_ids=None if types is None else torch.from_numpy(types),
            padded=bool((self.lengths[rows] < length).any()),
            targets=targets,
        )

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[Batch]:
        """The batches of an order, one after the other."""
        for rows in order:
            yield self.batch(rows)


def _targets(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions that predict each target's tokens, and the tokens, both (batch, width)."""
    width = max(0 if example.target is None else len(example.target) for example in examples)
    places = np.zeros((len(examples), width), dtype=np.int64)
    targets = np.full((len(examples), width), IGNORED, dtype=np.int64)
    for i, example in enumerate(examples):
        if example.target is None:
            raise ValueError("some rows have a target and others have none; give each row one")
        size = len(example.target)
        targets[i, :size] = example.target
        places[i] = np.minimum(example.read + np.arange(width), example.read + size - 1)
    return torch.from_numpy(places), torch.from_numpy(targets)
