"""`Labelling`: what every model that answers with labels does with its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lateprompt.data import Row, Task
from lateprompt.data.batches import Batches
from lateprompt.predictors.assessment import Assessment
from lateprompt.training.calibration import Calibration, fit_calibration
from lateprompt.training.evaluate import measure

_TOGETHER = 16384
"""Rows that are encoded at a time."""


class Labelling:
    """Probabilities, metrics and calibration from `batches` and `batch_scores`, which a model defines."""

    task: Task
    calibration: Calibration

    if TYPE_CHECKING:  # what a model defines; here they would hide it

        def batches(self, rows: Sequence[Row], *, any_label: bool = False) -> Batches:
            """The rows, encoded."""

        def batch_scores(
            self,
            batches: Batches,
            *,
            batch_size: int = 64,
            progress: Callable[[int], None] | None = None,
            rows: np.ndarray | None = None,
        ) -> np.ndarray:
            """Label scores (rows, labels) of encoded rows in their order, or of those whose numbers are given."""

    def evaluate(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64, details: bool = False) -> dict[str, Any]:
        """The task's metrics on labelled rows, or on batches of them (with cached states, perhaps).

        A label that the task does not have counts as wrong.

        Args:
            rows: the rows.
            batch_size: rows in a batch.
            details: whether to give `classes` and `confusion` too, as `Assessment.details`.

        Returns:
            The metrics, `loss` (before calibration), `ece` (the expected calibration error of the probabilities, 15
            bins) and, if they are calibrated, `ece_before`.
        """
        found = self.assess(rows, batch_size=batch_size)
        return {**found.metrics(), **(found.details() if details else {})}

    def assess(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64) -> Any:
        """The scores of labelled rows, with all that can be measured of them: an `Assessment`."""
        names = None if isinstance(rows, Batches) else [row.label for row in rows]
        batches = rows if isinstance(rows, Batches) else self.batches(rows, any_label=True)
        scores = self.batch_scores(batches, batch_size=batch_size)
        return Assessment(self.task.labels, self.task.metrics, batches.labels, scores, self.calibration, names)

    def calibrate(self, batches: Batches, *, batch_size: int = 64) -> dict[str, float]:
        """Fit the temperature of the probabilities on held-out rows; predictions stay as they are.

        Returns:
            The rows' calibration error, as `fit_calibration` gives it.
        """
        scores = self.assess(batches, batch_size=batch_size).scores
        self.calibration, errors = fit_calibration(scores, batches.labels)
        return errors

    def scores(
        self, rows: Sequence[Row], *, batch_size: int = 64, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Label scores (rows, labels) before calibration: the softmax of `calibration.scaled(scores)` is probabilities.

        Rows are encoded and sorted by length some thousand at a time, so that only the result grows with their number.
        """
        parts = [np.zeros((0, len(self.task.labels)), dtype=np.float32)]
        for start in range(0, len(rows), _TOGETHER):
            batches = self.batches(rows[start : start + _TOGETHER])
            parts.append(self.batch_scores(batches, batch_size=batch_size, progress=progress))
        return np.concatenate(parts)

    def probabilities(
        self, rows: Sequence[Row], *, batch_size: int = 64, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Label probabilities (rows, labels), calibrated where training had dev rows or folds."""
        return self.probabilities_of(self.scores(rows, batch_size=batch_size, progress=progress))

    def probabilities_of(self, scores: np.ndarray) -> np.ndarray:
        """Label probabilities (rows, labels) of scores, calibrated."""
        return self.calibration.probabilities(scores)

    def answers_of(self, scores: np.ndarray) -> list[Any]:
        """The answer to each row, from scores (rows, labels): the label with the highest one."""
        labels = self.task.labels
        return [labels[best] for best in scores.argmax(1).tolist()]

    def measure(self, scores: np.ndarray, batches: Batches) -> dict[str, Any]:
        """The task's metrics of scores (rows, labels) of some batches' rows, and the loss."""
        return measure(scores, batches.labels, self.task.metrics)
