"""Metrics of texts with any number of labels, and the thresholds from which on a label is an answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from lateprompt.utils.errors import LatePromptError

SHARED_ROWS = 10
"""How many rows the shared threshold counts for: a label's own weighs more the more rows have the label."""
DEFAULT = 0.5
"""The threshold without rows to choose it on."""


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Each label's own probability (rows, labels) of scores, as float64."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(scores, dtype=np.float64)))


def choose_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Thresholds (labels,) that are good for some rows.

    A label that n of the rows have gets `(n own + 10 shared) / (n + 10)`, where `own` is the threshold with the
    label's largest F1, and `shared` the one with the largest micro F1 over all labels: with few rows a label's own
    threshold says more of these rows than of the label. Both lie half-way between the two probabilities that they
    separate. Without any label they are 0.5.

    Args:
        probabilities: (rows, labels).
        labels: (rows, labels), 1 for the labels that a row has.

    Example:
        >>> import numpy as np
        >>> from lateprompt.training.multi_label import choose_thresholds
        >>> choose_thresholds(np.array([[0.1], [0.2], [0.4]]), np.array([[0], [1], [1]])).round(2).tolist()
        [0.15]
    """
    labels = np.asarray(labels) > 0
    rows = labels.sum(0)
    shared = float(_best_f1(probabilities.reshape(-1, 1), labels.reshape(-1, 1))[0])
    own: np.ndarray = _best_f1(probabilities, labels)
    return np.asarray((rows * own + SHARED_ROWS * shared) / (rows + SHARED_ROWS))


def _best_f1(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each column the threshold with the largest F1; 0.5 without a positive."""
    rows, columns = probabilities.shape
    order = np.argsort(-probabilities, axis=0, kind="stable")
    falling = np.take_along_axis(probabilities, order, 0)
    right = np.cumsum(np.take_along_axis(labels, order, 0), 0)
    positives = labels.sum(0)
    f1 = 2 * right / (np.arange(1, rows + 1)[:, None] + np.maximum(positives, 1))
    following = np.concatenate([falling[1:], np.zeros((1, columns))])
    f1[falling <= following] = -1  # rows of one probability are not separated
    best = f1.argmax(0)
    at = np.arange(columns)
    middle = (falling[best, at] + following[best, at]) / 2
    return np.where(positives > 0, middle, DEFAULT)


def answers(probabilities: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """Which labels (rows, labels) are answers: those with a probability from their threshold on."""
    return probabilities >= (DEFAULT if thresholds is None else thresholds)


def label_counts(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each label (labels,) how many rows have it and are said to, how many are said to, how many have it."""
    labels, predicted = np.asarray(labels) > 0, np.asarray(predicted) > 0
    return (labels & predicted).sum(0), predicted.sum(0), labels.sum(0)


def multi_label_metrics(
    labels: np.ndarray, predicted: np.ndarray, missed: np.ndarray | None = None
) -> dict[str, float]:
    """`micro_f1` over all rows and labels, `macro_f1` over the labels, and `subset_accuracy` (all labels are right).

    Labels that neither occur nor are predicted do not count in macro F1. Where no label occurs or is predicted, all F1
    are 0.

    Args:
        labels: (rows, labels), 1 for the labels that a row has.
        predicted: (rows, labels), likewise.
        missed: (rows,) how many labels a row has that the task has not: no answer can be right about them.

    Raises:
        LatePromptError: shapes that differ, or no rows.

    Example:
        >>> import numpy as np
        >>> from lateprompt.training.multi_label import multi_label_metrics
        >>> multi_label_metrics(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [1, 0]]))
        {'micro_f1': 0.8, 'macro_f1': 0.5, 'subset_accuracy': 0.5}
    """
    if np.shape(labels) != np.shape(predicted) or np.ndim(labels) != 2:
        raise LatePromptError(
            f"labels have shapes {np.shape(labels)} and {np.shape(predicted)}; give two equal (rows, labels)"
        )
    if not len(labels):
        raise LatePromptError("there are no examples to score; give at least one")
    missed = np.zeros(len(labels), dtype=np.int64) if missed is None else missed
    right, said, there = label_counts(labels, predicted)
    occurring = (said + there) > 0
    f1 = 2 * right[occurring] / (said + there)[occurring]
    whole = int(said.sum() + there.sum() + missed.sum())
    exact = ((np.asarray(labels) > 0) == (np.asarray(predicted) > 0)).all(1) & (missed == 0)
    return {
        "micro_f1": float(2 * right.sum() / whole) if whole else 0.0,
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        "subset_accuracy": float(exact.mean()),
    }


def measure_labels(
    scores: np.ndarray, labels: np.ndarray, missed: np.ndarray | None, thresholds: np.ndarray | None
) -> dict[str, float]:
    """Metrics of scores (rows, labels), and the mean loss (binary cross-entropy over rows and labels).

    Args:
        scores: (rows, labels).
        labels, missed: as in `multi_label_metrics`.
        thresholds: (labels,); None: those that are best on these rows.
    """
    scores = np.asarray(scores, dtype=np.float64)
    probabilities = sigmoid(scores)
    chosen = choose_thresholds(probabilities, labels) if thresholds is None else thresholds
    losses = np.logaddexp(0.0, scores) - scores * (np.asarray(labels) > 0)
    values = multi_label_metrics(labels, answers(probabilities, chosen), missed)
    return {**values, "loss": float(losses.mean())}


def by_label(
    names: tuple[str, ...], labels: np.ndarray, predicted: np.ndarray, thresholds: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Of each label its precision, recall, F1, support (rows that have it) and threshold, the most frequent first."""
    right, said, there = label_counts(labels, predicted)
    precision, recall = right / np.maximum(said, 1), right / np.maximum(there, 1)
    f1 = 2 * right / np.maximum(said + there, 1)
    order = np.argsort(-there, kind="stable")
    return {
        names[i]: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(there[i]),
            "threshold": DEFAULT if thresholds is None else float(thresholds[i]),
        }
        for i in order.tolist()
    }
