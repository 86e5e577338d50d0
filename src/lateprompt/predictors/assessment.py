"""What a classifier says of labelled rows, measured: metrics, class by class, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lateprompt.training.calibration import Calibration
from lateprompt.training.evaluate import measure
from lateprompt.training.metrics import UNKNOWN
from lateprompt.training.multi_label import answers, by_label, measure_labels, sigmoid

BY_LABEL = "by_label"
"""In metrics: figures of each label."""
OTHER = "(another label)"
"""In a confusion matrix: a label that the task does not have, where its name is not known."""


@dataclass(frozen=True)
class Assessment:
    """Labelled rows and their scores.

    Args:
        task_labels: the task's labels.
        metrics_wanted: the task's metrics.
        labels: (rows,) class ids; -2 for a label that the task does not have.
        scores: (rows, labels), before calibration.
        calibration: what makes probabilities of them.
        names: each row's own label; None: not known.

    Example:
        >>> import numpy as np
        >>> scores = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> found = Assessment(["bad", "good"], ["accuracy"], np.array([0, 1, 1]), scores, Calibration())
        >>> found.details()["classes"]["good"]["recall"], found.details()["confusion"]["counts"]
        (0.5, [[1, 0], [1, 1]])
    """

    task_labels: Sequence[str]
    metrics_wanted: Sequence[str]
    labels: np.ndarray
    scores: np.ndarray
    calibration: Calibration
    names: Sequence[str | None] | None = None

    @property
    def predictions(self) -> np.ndarray:
        """(rows,) class ids."""
        return self.scores.argmax(1)  # type: ignore[no-any-return]

    @property
    def probabilities(self) -> np.ndarray:
        """(rows, labels), calibrated."""
        return self.calibration.probabilities(self.scores)

    def metrics(self) -> dict[str, float]:
        """The task's metrics, the mean loss (before calibration), and the expected calibration error."""
        values = measure(self.scores, self.labels, self.metrics_wanted)
        return {**values, **self.calibration.errors(self.scores, self.labels)}

    def mistakes(self) -> np.ndarray:
        """The numbers of the rows that are predicted wrongly, the most confident ones first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.confidences()[wrong], kind="stable")]

    def answers(self) -> list[str]:
        """The label that each row is predicted to have."""
        return [self.task_labels[best] for best in self.predictions.tolist()]

    def confidences(self) -> np.ndarray:
        """The probability (rows,) of each row's prediction."""
        return self.probabilities.max(1)  # type: ignore[no-any-return]

    def details(self) -> dict[str, Any]:
        """Class by class.

        Returns:
            `classes`: by label its `precision`, `recall`, `f1` (0 where nothing could be right), `support` (rows that
            have it) and `predicted` (rows that are said to have it). `confusion`: `counts`, a row for each of `labels`
            (the task's, then others that rows have) and a column for each of `predictions` (the task's labels).
        """
        from sklearn.metrics import precision_recall_fscore_support

        size, predicted = len(self.task_labels), self.predictions
        precision, recall, f1, support = precision_recall_fscore_support(
            self.labels, predicted, labels=np.arange(size), zero_division=0
        )
        times = np.bincount(predicted, minlength=size)
        columns: Mapping[str, np.ndarray] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support,
            "predicted": times,
        }
        classes = {
            label: {name: values[i].item() for name, values in columns.items()}
            for i, label in enumerate(self.task_labels)
        }
        return {"classes": classes, "confusion": self._confusion()}

    def _confusion(self) -> dict[str, Any]:
        size, rows = len(self.task_labels), self.labels.copy()
        others = np.flatnonzero(rows == UNKNOWN)
        own = np.array([self._name(i) for i in others.tolist()], dtype=object)
        names, places = np.unique(own, return_inverse=True)
        rows[others] = size + places
        counts = np.zeros((size + len(names), size), dtype=np.int64)
        np.add.at(counts, (rows, self.predictions), 1)
        labels = list(self.task_labels)
        return {"labels": [*labels, *names.tolist()], "predictions": labels, "counts": counts.tolist()}

    def _name(self, row: int) -> str:
        name = None if self.names is None else self.names[row]
        return OTHER if name is None else name


@dataclass(frozen=True)
class MultiLabelAssessment:
    """Rows with any number of labels and their scores; there is no confusion matrix.

    Args:
        task_labels: the task's labels.
        labels: (rows, labels), 1 for the labels that a row has.
        missed: (rows,) how many labels a row has that the task has not; None: none.
        scores: (rows, labels).
        thresholds: (labels,) probabilities from which on a label is an answer.

    Example:
        >>> import numpy as np
        >>> scores, labels = np.array([[2.0, -2.0], [2.0, -1.0]]), np.array([[1, 0], [1, 1]])
        >>> found = MultiLabelAssessment(("film", "music"), labels, None, scores, np.array([0.5, 0.5]))
        >>> found.answers(), found.mistakes().tolist(), found.confidences().round(2).tolist()
        ([['film'], ['film']], [1], [0.0, 0.73])
    """

    task_labels: Sequence[str]
    labels: np.ndarray
    missed: np.ndarray | None
    scores: np.ndarray
    thresholds: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """(rows, labels), which are answers."""
        return answers(self.probabilities, self.thresholds)

    @property
    def probabilities(self) -> np.ndarray:
        """(rows, labels), each label's own."""
        return sigmoid(self.scores)

    def metrics(self) -> dict[str, float]:
        """Micro and macro F1, subset accuracy and the mean loss."""
        return measure_labels(self.scores, self.labels, self.missed, self.thresholds)

    def mistakes(self) -> np.ndarray:
        """The numbers of the rows with a wrong label, or without one of theirs, the most confident ones first."""
        wrong = (self.predictions != (self.labels > 0)).any(1)
        if self.missed is not None:
            wrong |= self.missed > 0
        rows = np.flatnonzero(wrong)
        return rows[np.argsort(-self.confidences()[rows], kind="stable")]

    def answers(self) -> list[list[str]]:
        """The labels that each row is predicted to have."""
        return [[self.task_labels[i] for i in np.flatnonzero(row).tolist()] for row in self.predictions]

    def confidences(self) -> np.ndarray:
        """How sure (rows,) the model is of its worst mistake in each row; 0 without one.

        Of a label too many it is the label's probability, of a missing one the probability that the row has it not.
        """
        sure = np.where(self.labels > 0, 1 - self.probabilities, self.probabilities)
        return np.where(self.predictions != (self.labels > 0), sure, 0.0).max(1)  # type: ignore[no-any-return]

    def details(self) -> dict[str, Any]:
        """`by_label`: by label its precision, recall, F1, support and threshold, the most frequent first."""
        return {BY_LABEL: by_label(tuple(self.task_labels), self.labels, self.predictions, self.thresholds)}


AnyAssessment = Assessment | MultiLabelAssessment
