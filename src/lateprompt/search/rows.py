"""The rows of a search: which are trained on and which are predicted, part by part."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lateprompt.data.sampling import draw

MOST_ROWS = 2000
"""Training rows that a search looks at, and dev rows, at most; the winner is trained on all."""
FOLDS = 3
MANY_ROWS = 600
"""From so many training rows on, one fold alone is held out: its rows are enough to choose by."""
LEAST_ROWS = 8
"""With fewer training rows nothing can be chosen."""


@dataclass(frozen=True)
class Part:
    """Rows to train on, and rows to predict then: row numbers.

    Args:
        train: (rows,) numbers.
        test: (rows,) numbers.
    """

    train: np.ndarray
    test: np.ndarray


def parts_of(labels: np.ndarray, dev: int, seed: int) -> list[Part]:
    """How the rows are parted.

    Args:
        labels: (rows,) class ids of the training rows, and behind them of the dev rows.
        dev: how many of these are dev rows. With dev rows there is one part: all others are trained on. Without, there
            are three stratified folds below 600 rows, and one of three from there on.
        seed: seed of the folds.

    Example:
        >>> import numpy as np
        >>> from lateprompt.search.rows import parts_of
        >>> [(len(part.train), len(part.test)) for part in parts_of(np.arange(60) % 2, 0, seed=1)]
        [(40, 20), (40, 20), (40, 20)]
    """
    from sklearn.model_selection import StratifiedKFold

    rows = len(labels) - dev
    if dev:
        return [Part(np.arange(rows), np.arange(rows, len(labels)))]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        parts = [Part(train, test) for train, test in folds.split(np.zeros(rows), labels[:rows])]
    return parts[:1] if rows >= MANY_ROWS else parts


def sample(labels: Sequence[str | None], most: int, seed: int) -> list[int]:
    """Numbers of at most so many rows, class-proportional."""
    if len(labels) <= most:
        return list(range(len(labels)))
    return draw([label or "" for label in labels], most, seed, dev_size=0)[0]
