"""Probabilities that one can rely on: a temperature, and the expected calibration error (Guo et al. 2017).

Guo, Pleiss, Sun and Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lateprompt.training.evaluate import softmax
from lateprompt.training.metrics import UNKNOWN
from lateprompt.utils.errors import LatePromptError

LEAST_ROWS = 10
"""With fewer rows nothing can be said of a temperature, nor of predictions that are all alike."""
LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures, at least and at most."""
BINS = 15
FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """What scores are divided by before their softmax: probabilities change by it, predictions do not.

    Args:
        temperature: above 1 the model was too sure of its answers, below 1 not sure enough.
        rows: how many rows it was fitted on; 0: it was not fitted.
        note: why it was not.
        source: which rows, if not dev rows.

    Example:
        >>> import numpy as np
        >>> Calibration(2.0).probabilities(np.array([[2.0, 0.0]])).round(3).tolist()
        [[0.731, 0.269]]
    """

    temperature: float = 1.0
    rows: int = 0
    note: str = ""
    source: str = ""

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Label probabilities of scores, both (rows, labels)."""
        return softmax(self.scaled(scores))

    def scaled(self, scores: np.ndarray) -> np.ndarray:
        """The scores (rows, labels) whose softmax are the probabilities."""
        return scores if self.temperature == 1 else scores / np.asarray(self.temperature, dtype=scores.dtype)

    def errors(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The expected calibration error of rows that had no part in the fit: `ece`, and `ece_before` if it was fitted.

        Args:
            scores: (rows, labels).
            labels: (rows,) class ids; a label that the task does not have counts as wrong.
        """
        before = {"ece_before": expected_calibration_error(softmax(scores), labels)} if self.rows else {}
        return {**before, "ece": expected_calibration_error(self.probabilities(scores), labels)}

    def to_dict(self) -> dict[str, Any]:
        """For a run file."""
        return {name: value for name, value in asdict(self).items() if value != ""}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave; of an empty mapping the temperature 1.

        Raises:
            LatePromptError: a temperature that cannot be.
        """
        value = saved.get("temperature", 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST <= value <= HIGHEST:
            raise LatePromptError(
                f"temperature {value!r} is no number from {LOWEST} to {HIGHEST:g}; take the file as training left it"
            )
        rows, words = saved.get("rows", 0), (saved.get(name, "") for name in ("note", "source"))
        note, source = (word if isinstance(word, str) else "" for word in words)
        return cls(float(value), rows if isinstance(rows, int) else 0, note, source)


def fit_calibration(scores: np.ndarray, labels: np.ndarray) -> tuple[Calibration, dict[str, float]]:
    """Fit the temperature on held-out rows, and estimate the calibration error with it on the same rows.

    The temperature T makes Σ −log softmax(scores / T)[label] + (log T)² / 2 small. The second term is a prior: few rows
    that are all right would else be infinitely sure, and among a hundred rows it counts for nothing.

    Args:
        scores: (rows, labels).
        labels: (rows,) class ids; rows with a label that the task does not have are left out of the fit.

    Returns:
        The calibration, and `ece_before` and `ece` of the rows. `ece` is cross-fitted: each fifth of the rows gets the
        temperature of the others. Nothing was fitted, and there is only `ece`, with fewer than 10 rows, rows of one
        label, or scores that are no numbers.

    Example:
        >>> import numpy as np
        >>> scores = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]] * 5)
        >>> labels = np.array([0, 1, 0, 0] * 5)  # sure, and wrong in a quarter
        >>> calibration, errors = fit_calibration(scores, labels)
        >>> calibration.temperature > 3, errors["ece"] < errors["ece_before"]
        (True, True)
    """
    known = labels != UNKNOWN
    fitted = _fit(scores[known], labels[known])
    if not fitted.rows:
        return fitted, fitted.errors(scores, labels) if len(labels) and np.isfinite(scores).all() else {}
    probabilities = np.empty_like(scores)
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    for number in range(FOLDS):
        others = known & (fold != number)
        own = Calibration(_temperature(scores[others], labels[others]))
        probabilities[fold == number] = own.probabilities(scores[fold == number])
    before = expected_calibration_error(softmax(scores), labels)
    return fitted, {"ece_before": before, "ece": expected_calibration_error(probabilities, labels)}


def _fit(scores: np.ndarray, labels: np.ndarray) -> Calibration:
    if len(labels) < LEAST_ROWS:
        return Calibration(note=f"{len(labels)} rows are too few to fit a temperature on")
    if (labels == labels[0]).all():
        return Calibration(note="rows of one label cannot be fitted on")
    if not np.isfinite(scores).all():
        return Calibration(note="the scores are no numbers")
    return Calibration(_temperature(scores, labels), len(labels))


def _temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    shifted = scores.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    right = shifted[np.arange(len(labels)), labels]

    def cost(log: float) -> float:
        factor = np.exp(-log)
        return float((np.log(np.exp(shifted * factor).sum(1)) - right * factor).sum() + log**2 / 2)

    found = minimize_scalar(cost, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.clip(np.exp(found.x), LOWEST, HIGHEST))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """How far the probability of a prediction is from its chance to be right: Σ_b n_b / n · |right_b − probability_b|.

    Args:
        probabilities: (rows, labels).
        labels: (rows,) class ids; a label that the task does not have counts as wrong.
        bins: number of bins of equal width, by the probability of the prediction.

    Example:
        >>> import numpy as np
        >>> sure = np.array([[0.9, 0.1], [0.9, 0.1]])
        >>> round(expected_calibration_error(sure, np.array([0, 1])), 3)  # right in a half, and 0.9 sure
        0.4
    """
    best = probabilities.argmax(1)
    sure = probabilities[np.arange(len(best)), best]
    place = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=(best == labels) - sure.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
