"""From encoded examples to padded batches of similar lengths, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lateprompt.data import Example
from lateprompt.data.batch import IGNORED, Batch
from lateprompt.data.padding import pad
from lateprompt.utils.errors import LatePromptError

_POOL = 50
"""Rows are sorted by length within this many batches: there is less padding, and the order stays random."""


def batch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of one epoch, as arrays of row numbers.

    Rows are shuffled, cut into pools of 50 batches and sorted by length within a pool; then the batches are shuffled.
    The order depends on the arguments alone, so an interrupted run can resume at any batch.

    Args:
        lengths: (rows,) number of tokens of each row.
        batch_size: rows in a batch; the last batch may have fewer.
        seed: seed of the shuffles.
        epoch: number of the epoch, which gets its own order.
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
    """Return all rows, sorted by length, in batches of row numbers; for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Batches:
    """Encoded rows, from which batches are made.

    Args:
        examples: the rows, without padding.
        pad_token_id: the token id of padding.
        weights: (rows,) factors of the rows' losses, with a mean of 1; None: all are 1.

    Attributes:
        labels: (rows,) class ids; in a multi-label task (rows, labels), 1 for the labels that a row has.
        missed: (rows,) how many labels a row has that the multi-label task has not.

    Example:
        >>> import numpy as np
        >>> from lateprompt.data import Example
        >>> from lateprompt.data.batches import Batches
        >>> rows = [Example(np.array(ids), None, read=-1, label=0) for ids in ([5, 6, 7], [5, 6])]
        >>> Batches(rows, pad_token_id=1).batch(np.array([0, 1])).input_ids.tolist()
        [[5, 6, 7], [5, 6, 1]]
    """

    def __init__(self, examples: Sequence[Example], pad_token_id: int, weights: np.ndarray | None = None) -> None:
        self.examples = examples
        self.weights = None if weights is None else weights.astype(np.float32)
        self.pad_token_id = pad_token_id
        self.lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
        self.labels = np.array([example.label for example in examples], dtype=np.int64)
        self.missed = np.array([example.missed for example in examples], dtype=np.int64)
        if any(example.labels is not None for example in examples):
            self.labels = np.stack([example.labels for example in examples])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: np.ndarray) -> Batch:
        """Make the batch of the given row numbers, padded on the right to its longest row."""
        examples = [self.examples[i] for i in rows]
        ids, mask = pad([example.input_ids for example in examples], self.pad_token_id)
        types = None
        if examples[0].token_type_ids is not None:
            kinds = [() if example.token_type_ids is None else example.token_type_ids for example in examples]
            types, _ = pad(kinds, width=ids.shape[1])
        read, targets = torch.tensor([example.read for example in examples]), None
        if examples[0].target is not None:
            read, targets = _targets(examples)
        return Batch(
            input_ids=ids,
            attention_mask=mask,
            read=read,
            labels=torch.from_numpy(self.labels[rows]),
            token_type_ids=types,
            padded=bool((self.lengths[rows] < ids.shape[1]).any()),
            targets=targets,
            weights=None if self.weights is None else torch.from_numpy(self.weights[rows]),
        )

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Make one batch after the other, from arrays of row numbers."""
        for rows in order:
            yield self.batch(rows)


class SomeBatches(Batches):
    """Some rows of other batches, numbered from 0: cached states and all, nothing is copied.

    Args:
        whole: the batches.
        rows: (some,) row numbers in them.

    Example:
        >>> import numpy as np
        >>> from lateprompt.data import Example
        >>> from lateprompt.data.batches import Batches, SomeBatches
        >>> rows = [Example(np.array(ids), None, read=-1, label=0) for ids in ([5, 6, 7], [5, 6])]
        >>> SomeBatches(Batches(rows, pad_token_id=1), np.array([1])).batch(np.array([0])).input_ids.tolist()
        [[5, 6]]
    """

    def __init__(self, whole: Batches, rows: np.ndarray) -> None:
        weights = None if whole.weights is None else whole.weights[rows]
        super().__init__([whole.examples[i] for i in rows], whole.pad_token_id, weights)
        self.whole, self.rows = whole, rows

    def batch(self, rows: np.ndarray) -> Batch:
        return self.whole.batch(self.rows[rows])

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[Batch]:
        return self.whole.batches([self.rows[rows] for rows in order])


Feed = Batches
"""Its name in earlier releases."""


def _targets(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions that predict the targets' tokens, and the tokens, both (batch, width)."""
    known = [example.target for example in examples if example.target is not None]
    if len(known) < len(examples):
        raise LatePromptError("some rows have a target and others have none; give each row one")
    targets, _ = pad(known, IGNORED)
    sizes = torch.tensor([[len(target)] for target in known])
    steps = torch.minimum(torch.arange(targets.shape[1]), sizes - 1)
    return torch.tensor([[example.read] for example in examples]) + steps, targets
