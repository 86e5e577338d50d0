"""Which setting wins, and what accuracy it can be expected to have: out-of-fold predictions, and noise between rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lateprompt.training.metrics import METRICS, primary_metric

ROUNDS = 400
"""Bootstrap samples of the rows."""
CONFIDENCE = 1.96
"""Standard errors on either side of an interval: 95 %."""


@dataclass(frozen=True)
class Choice:
    """What has won.

    Args:
        winner: its number.
        score: its score, as it was measured.
        gain: by how much that is above the default's.
        noise: the standard error of the gain over rows.
        accuracy: the accuracy that can be expected, corrected for the choice.
        low, high: a 95 % interval of it.
    """

    winner: int
    score: float
    gain: float
    noise: float
    accuracy: float
    low: float
    high: float


def choose(predicted: np.ndarray, labels: np.ndarray, metrics: Sequence[str], seed: int) -> Choice:
    """Choose among settings that have all predicted the same rows; the first is the default.

    The default stays unless the best one is above it by more than a standard error of their difference over rows
    (paired bootstrap) and a row besides, which is the continuity correction of McNemar's test. The accuracy is
    corrected for having chosen by the same rows: in each bootstrap sample the same rule chooses, and what it chose is
    measured on the rows outside the sample (BBC-CV, Tsamardinos et al., Machine Learning 2018). The interval is
    Wilson's, around that accuracy, for the number of rows.

    Args:
        predicted: (settings, rows) class ids.
        labels: (rows,) class ids.
        metrics: the task's metrics; the first chooses (`primary_metric`).
        seed: seed of the samples.

    Example:
        >>> import numpy as np
        >>> from lateprompt.search.choice import choose
        >>> labels = np.arange(100) % 2
        >>> settings = np.stack([np.zeros(100, dtype=int), labels])  # one always says 0, the other is right
        >>> found = choose(settings, labels, ["accuracy"], seed=1)
        >>> found.winner, found.gain, found.accuracy
        (1, 0.5, 1.0)
    """
    metric = primary_metric(metrics)
    samples = np.random.default_rng(seed).integers(len(labels), size=(ROUNDS, len(labels)))
    correct = predicted == labels
    scores = np.array([METRICS[metric](labels, own) for own in predicted])
    inside = _scores(predicted, labels, metric, samples)  # (settings, rounds)
    noise = (inside - inside[0]).std(1, ddof=1)
    margin = noise + 1 / len(labels)
    winner = int(_rule(scores[:, None], margin)[0])
    outside = np.ones((ROUNDS, len(labels)), dtype=bool)
    np.put_along_axis(outside, samples, False, axis=1)
    kept = outside.any(1)
    chosen = _rule(inside, margin)
    right = (correct[chosen] & outside).sum(1)[kept] / outside.sum(1)[kept]
    accuracy = float(right.mean()) if kept.any() else float(correct[winner].mean())
    low, high = wilson(accuracy, len(labels))
    return Choice(
        winner, float(scores[winner]), float(scores[winner] - scores[0]), float(noise[winner]), accuracy, low, high
    )


def _rule(scores: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """The winners (rounds,) by scores (settings, rounds), and by how much (settings,) each must be above the first."""
    best = scores.argmax(0)
    gain = np.take_along_axis(scores, best[None], 0)[0] - scores[0]
    return np.where(gain > margin[best], best, 0)


def _scores(predicted: np.ndarray, labels: np.ndarray, metric: str, samples: np.ndarray) -> np.ndarray:
    """The metric (settings, rounds) of all settings on samples (rounds, rows) of the rows."""
    if metric == "accuracy":
        found: np.ndarray = (predicted == labels)[:, samples].mean(2)
        return found
    measure = METRICS[metric]
    return np.array([[measure(labels[rows], own[rows]) for rows in samples] for own in predicted])


def wilson(share: float, rows: int) -> tuple[float, float]:
    """A 95 % interval of a share of so many rows (Wilson 1927).

    Example:
        >>> from lateprompt.search.choice import wilson
        >>> [round(end, 3) for end in wilson(0.8, 100)]
        [0.711, 0.867]
    """
    z2 = CONFIDENCE**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = CONFIDENCE * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows)) / (1 + z2 / rows)
    return max(0.0, centre - half), min(1.0, centre + half)
