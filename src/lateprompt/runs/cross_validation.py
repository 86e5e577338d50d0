"""Cross-validation of a run: what accuracy to expect where no dev rows were given, from the training rows alone.

Each fold trains a fresh adapter on the other folds' rows, from the same cached states, and scores its own rows. The
run's own weights, trained on all rows, stay as they are: nothing is held out from them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lateprompt.data.batches import Batches, SomeBatches
from lateprompt.readouts import Readout
from lateprompt.training.checkpoint import Weights
from lateprompt.training.evaluate import predict_scores
from lateprompt.training.loop import fit, restore, snapshot, trainable_parameters
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.console import Bar

MOST_ROWS = 1000
"""Below so many rows without dev rows they are cross-validated."""
FOLDS = 3
"""Folds where nobody has said how many."""


@dataclass(frozen=True)
class OutOfFold:
    """What cross-validation gives.

    Args:
        scores: (rows, labels) of each training row, by a model that was not trained on it.
        folds: number of folds.
        seconds: what it took.
    """

    scores: np.ndarray
    folds: int
    seconds: float


def folds_for(folds: int | None, *, rows: int, dev_rows: int, cached: bool) -> int:
    """Return how many folds a run has: what was asked for, or `FOLDS` where few rows have no dev rows.

    Without cached states a fold costs as much as the run itself, so none are made unless asked for.

    Example:
        >>> folds_for(None, rows=60, dev_rows=0, cached=True), folds_for(None, rows=60, dev_rows=0, cached=False)
        (3, 0)
    """
    if folds is None:
        folds = FOLDS if cached and not dev_rows and rows < MOST_ROWS else 0
    return folds if rows >= 2 * folds else 0


def fold_of_rows(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold (rows,) of each row: classes (rows,) are spread evenly, the order is the seed's."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.arange(len(labels)) % folds
    return found


def cross_validate(
    model: nn.Module,
    readout: Readout,
    train: Batches,
    recipe: RecipeSettings,
    fresh: Weights,
    *,
    folds: int,
    device: torch.device,
    quiet: bool = True,
) -> OutOfFold:
    """Train and score each fold; the model's weights are the same afterwards, and after an interruption.

    Args:
        model, readout, train: of the run; the model's weights are kept.
        recipe: the run's, resolved.
        fresh: the adapter's weights before any training.
        folds: number of folds, at least 2.
        device: where batches go.
        quiet: no progress bar.
    """
    started = time.perf_counter()
    parameters, fold = trainable_parameters(model), fold_of_rows(train.labels, folds, recipe.seed)
    own = snapshot(parameters)
    found: np.ndarray | None = None
    try:
        with Bar("cross-validation", folds, quiet=quiet) as bar:
            for number in range(folds):
                inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
                restore(parameters, fresh)
                fit(model, readout, SomeBatches(train, inside), None, recipe, metrics=[], device=device)
                part = SomeBatches(train, outside)
                scores = predict_scores(readout, part, batch_size=recipe.eval_batch_size, device=device)
                found = np.zeros((len(train), scores.shape[1]), dtype=scores.dtype) if found is None else found
                found[outside] = scores
                bar.advance()
    finally:
        restore(parameters, own)
    assert found is not None
    return OutOfFold(found, folds, time.perf_counter() - started)


def wilson_interval(right: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927): it stays within 0 and 1, for few rows too.

    Example:
        >>> [round(end, 3) for end in wilson_interval(50, 60)]
        [0.72, 0.907]
    """
    share, extra = right / rows, z * z / rows
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / rows + extra / (4 * rows)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)
