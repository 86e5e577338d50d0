"""Logistic regression by scikit-learn, its regularisation chosen on held-out rows, and kept as plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lateprompt.training.metrics import UNKNOWN
from lateprompt.utils.errors import LatePromptError

FOLDS = 5
FEW_FOLDS = 3
MANY = 3000
"""Training rows from which on `FEW_FOLDS` folds choose: with so many a fold is large, and fitting takes time."""
_ITERATIONS = 500
_UNSEEN = -1e4
"""The score of a label without training rows: its probability is 0, and its logarithm finite."""
_LEAST = 1e-3
"""The least probability that counts when settings are chosen: one row that is quite wrong does not decide."""


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic regression.

    Args:
        coef: (classes, features), or (1, features) for two classes, as in scikit-learn; float32.
        intercept: (classes,) or (1,); float32.
        classes: (classes,) class ids of the task that had training rows.

    Example:
        >>> import numpy as np
        >>> from lateprompt.predictors.linear.logistic import Logistic
        >>> model = Logistic(np.array([[2.0]]), np.array([0.0]), np.array([0, 1]))
        >>> model.scores(np.array([[1.0], [-1.0]]), labels=2).argmax(1).tolist()
        [1, 0]
    """

    coef: np.ndarray
    intercept: np.ndarray
    classes: np.ndarray

    def scores(self, features: Any, labels: int) -> np.ndarray:
        """Scores (rows, labels), float32, whose softmax are scikit-learn's probabilities.

        Args:
            features: (rows, features), an array or a sparse matrix.
            labels: how many the task has; those without training rows get the least score.
        """
        values = np.asarray(features @ self.coef.T.astype(np.float64)) + self.intercept
        if values.shape[1] == 1:
            values = np.hstack([-values / 2, values / 2])
        found = np.full((len(values), labels), _UNSEEN, dtype=np.float32)
        found[:, self.classes] = values
        return found

    @property
    def parameters(self) -> int:
        """How many numbers were fitted."""
        return int(self.coef.size + self.intercept.size)


@dataclass(frozen=True)
class LabelledFeatures:
    """Rows to fit or choose on.

    Args:
        features: (rows, features), an array or a sparse matrix.
        labels: (rows,) class ids; UNKNOWN for labels that the task does not have.
        weights: (rows,) factors of the rows' losses, in which class weights are too; None: all are 1.
    """

    features: Any
    labels: np.ndarray
    weights: np.ndarray | None = None

    def rows(self, numbers: np.ndarray) -> LabelledFeatures:
        """Some of the rows."""
        weights = None if self.weights is None else self.weights[numbers]
        return LabelledFeatures(self.features[numbers], self.labels[numbers], weights)


def choose_C(
    train: LabelledFeatures, dev: LabelledFeatures | None, grid: Sequence[float], *, seed: int
) -> tuple[float, list[dict[str, float]]]:
    """Choose the inverse strength of the regularisation by the mean loss of held-out rows.

    Args:
        train: the training rows.
        dev: rows that choose; None: parts of the training rows do, in turn.
        grid: what to choose from, the strongest regularisation first; of equal ones the first is chosen.
        seed: seed of the parts.

    Returns:
        The choice, and for each value of the grid its held-out accuracy and loss.
    """
    hits, losses, rows = np.zeros(len(grid)), np.zeros(len(grid)), 0.0
    labels = int(max(train.labels.max(), -1 if dev is None else dev.labels.max())) + 1
    for own, held in _splits(train, dev, seed):
        known = np.flatnonzero(held.labels != UNKNOWN)
        held = held.rows(known)
        shares = np.ones(len(known)) if held.weights is None else held.weights
        rows += float(shares.sum())
        for i, model in enumerate(_path(own, grid)):
            scores = model.scores(held.features, labels).astype(np.float64)
            scores -= scores.max(1, keepdims=True)
            likely = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            chosen = likely[np.arange(len(known)), held.labels]
            hits[i] += float(shares[scores.argmax(1) == held.labels].sum())
            losses[i] -= float((shares * np.log(np.maximum(chosen, _LEAST))).sum())
    rows = rows or 1.0
    tried = [{"C": C, "accuracy": hits[i] / rows, "loss": losses[i] / rows} for i, C in enumerate(grid)]
    return grid[int(np.argmin(losses))], tried


def fit_logistic(train: LabelledFeatures, C: float) -> tuple[Logistic, int]:
    """Fit on all training rows; the model, and the optimiser's iterations.

    Raises:
        LatePromptError: training rows of one label alone.
    """
    if len(np.unique(train.labels)) < 2:
        raise LatePromptError("the training rows have one label alone; a linear model needs rows of two, at least")
    return _fit(train, _regression(C))


def _splits(
    train: LabelledFeatures, dev: LabelledFeatures | None, seed: int
) -> Iterator[tuple[LabelledFeatures, LabelledFeatures]]:
    """Rows to fit on, and rows to measure on."""
    from sklearn.model_selection import StratifiedKFold

    if dev is not None:
        yield train, dev
        return
    _, counts = np.unique(train.labels, return_counts=True)
    folds = min(FOLDS if len(train.labels) < MANY else FEW_FOLDS, int(counts.max()))
    if folds < 2:  # a row for each label: nothing can be held out
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(train.labels, train.labels))
    for own, held in parts:
        if len(np.unique(train.labels[own])) > 1:
            yield train.rows(own), train.rows(held)


def _path(train: LabelledFeatures, grid: Sequence[float]) -> Iterator[Logistic]:
    """Models of one regularisation after the other, each begun where the one before has ended."""
    regression = _regression(grid[0]).set_params(warm_start=True)
    for C in grid:
        yield _fit(train, regression.set_params(C=C))[0]


def _regression(C: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=_ITERATIONS)


def _fit(train: LabelledFeatures, regression: Any) -> tuple[Logistic, int]:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as good as it gets in so many iterations
        regression.fit(train.features, train.labels, sample_weight=train.weights)
    coef, intercept = regression.coef_.astype(np.float32), regression.intercept_.astype(np.float32)
    return Logistic(coef, intercept, regression.classes_.astype(np.int64)), int(np.max(regression.n_iter_))
