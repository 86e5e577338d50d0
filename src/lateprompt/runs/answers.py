"""A classifier's answers after its training: are they calibrated, and has it learnt more than one class?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lateprompt.data.batches import Batches
from lateprompt.predictors.kinds import Classifier
from lateprompt.runs.data import DEV
from lateprompt.training.calibration import LEAST_ROWS, Calibration, fit_calibration
from lateprompt.training.settings import RecipeSettings

OUT_OF_FOLD = "cross-validation"
"""Training rows, each scored by a model that was not trained on it."""
MOST_TRAINING_ROWS = 256
"""Training rows that are looked at where there are no dev rows."""


def some_scores(
    tuned: Classifier, batches: Batches, rows: np.ndarray, batch_size: int, *, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows,) and scores (rows, labels) of some rows, given by their numbers; evenly spaced ones of too many."""
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    scores = tuned.batch_scores(batches, batch_size=batch_size, rows=rows)
    return batches.labels[rows], scores


def calibrate(
    tuned: Classifier, scores: np.ndarray, labels: np.ndarray, *, source: str | None, wanted: bool
) -> dict[str, Any]:
    """Fit a classifier's temperature, and return what `metrics.json` says of it.

    Args:
        tuned: the classifier.
        scores: (rows, labels) of rows that it was not trained on.
        labels: (rows,) class ids.
        source: which rows they are: `DEV` or `OUT_OF_FOLD`; None: there are none, and nothing is fitted. Rows that it
            was trained on have taught it how sure to be.
        wanted: whether it is to be calibrated.

    Returns:
        `calibration`: `temperature`, `rows`, the `source` if they are no dev rows and, where nothing was fitted, a
        `note` that says why. Of rows with a source `ece` too, and `ece_before`.
    """
    errors: dict[str, float] = {}
    if source is None:
        tuned.calibration = Calibration(note="no dev rows to fit a temperature on")
    elif not wanted:
        tuned.calibration = Calibration(note="switched off")
        errors = tuned.calibration.errors(scores, labels)
    else:
        fitted, errors = fit_calibration(scores, labels)
        tuned.calibration = replace(fitted, source="" if source == DEV else source)
    return {**errors, "calibration": tuned.calibration.to_dict()}


def warn_of_one_class(
    predicted: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    rows: str,
    recipe: RecipeSettings,
    *,
    task: str | None = None,
) -> None:
    """Warn where all rows are predicted as one class, but have several.

    Args:
        predicted: (rows,) class ids.
        labels: (rows,) class ids.
        names: the labels.
        rows: which rows they are: dev or train.
        recipe: the recipe that it was trained by, for the advice.
        task: of many, which one it is.
    """
    classes = len(np.unique(labels))
    if len(predicted) < LEAST_ROWS or classes < 2 or (predicted != predicted[0]).any():
        return
    where = "" if task is None else f"task {task!r}: "
    weights = "" if recipe.class_weight is not None else ", class_weight balanced if some classes are rare"
    warnings.warn(
        f"{where}the model says {names[int(predicted[0])]!r} of all {len(predicted):,} "
        f"{'dev' if rows == DEV else 'training'} rows, which have {classes} labels: it has learnt no more than one "
        f"class. Try another learning rate (lr is {recipe.peak_rate:g}), more steps or epochs{weights}, or another "
        "method",
        stacklevel=2,
    )
