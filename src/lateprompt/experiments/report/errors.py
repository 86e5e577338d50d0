"""What the best method of a task gets wrong: its confusion matrix and its most confident errors."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lateprompt.experiments.report.artifacts import Prediction, read_predictions
from lateprompt.experiments.report.results import Run

MOST = 10
"""Errors shown for a task."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A test row with a wrong prediction.

    Args:
        row: the row, with the most confident of its equal wrong predictions.
        seeds: seeds that predict this wrong label.
    """

    row: Prediction
    seeds: int


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of the best method of a task.

    Args:
        task: the task.
        method: the method with the highest mean dev score.
        seeds: its runs that left predictions.
        labels: all labels that occur, sorted.
        counts: (label, predicted label) to the number of rows, over all seeds.
        worst: wrong predictions, the most confident first.
    """

    task: str
    method: str
    seeds: int
    labels: Sequence[str]
    counts: Mapping[tuple[str, str], int]
    worst: Sequence[Wrong]

    @property
    def total(self) -> int:
        """Predictions in all."""
        return sum(self.counts.values())

    @property
    def wrong(self) -> int:
        """Predictions that are wrong."""
        return sum(count for (label, prediction), count in self.counts.items() if label != prediction)


def best_method(runs: Sequence[Run]) -> str:
    """The method with the highest mean dev score (of equal ones the first)."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        if run.dev is not None:
            scores.setdefault(run.method, []).append(run.dev)
    return max(scores, key=lambda method: statistics.fmean(scores[method]))


def errors(task: str, runs: Sequence[Run]) -> Errors | None:
    """Errors of the best of a task's finished runs; None where its method left no predictions."""
    method = best_method(runs)
    read = [read_predictions(run) for run in runs if run.method == method]
    known = [predictions for predictions in read if predictions]
    if not known:
        return None
    rows = [row for predictions in known for row in predictions]
    labels = sorted({row.label for row in rows} | {row.prediction for row in rows})
    counts = Counter((row.label, row.prediction) for row in rows)
    return Errors(task, method, len(known), labels, counts, _worst(known))


def _worst(known: Sequence[Sequence[Prediction]]) -> list[Wrong]:
    """Equal errors of several seeds are one, so that one row does not fill the list."""
    found: dict[tuple[str, str | None, str, str], tuple[Prediction, set[int]]] = {}
    for seed, predictions in enumerate(known):
        for row in predictions:
            if row.label == row.prediction:
                continue
            key = (row.text, row.text_pair, row.label, row.prediction)
            best, seeds = found.get(key, (row, set()))
            found[key] = (max(best, row, key=_confidence), seeds | {seed})
    ordered = sorted(found.values(), key=lambda pair: (-_confidence(pair[0]), -len(pair[1]), pair[0].text))
    return [Wrong(row, len(seeds)) for row, seeds in ordered[:MOST]]


def _confidence(row: Prediction) -> float:
    return -1.0 if row.probability is None else row.probability
