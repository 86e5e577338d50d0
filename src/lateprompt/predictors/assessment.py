"""What a classifier says of labelled rows, measured: metrics, class by class, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lateprompt.training.calibration import Calibration
from lateprompt.training.evaluate import measure
from lateprompt.training.metrics import UNKNOWN

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
        sure = self.probabilities[wrong].max(1)
        return wrong[np.argsort(-sure, kind="stable")]

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
