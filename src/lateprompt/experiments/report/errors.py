"""What the best method of a task gets wrong: its confusion matrix and its most confident errors."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lateprompt.experiments.report.aggregate import mean
from lateprompt.experiments.report.artifacts import read_predictions

MOST = 10
"""Errors shown for a task."""


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """Errors of the best method of a task.

    Args:
        task: the task.
        method: the method with the highest mean dev score.
        seeds: its runs that left predictions.
        counts: labels × predicted labels, both sorted: the number of rows, over all seeds.
        worst: wrong predictions, the most confident first: `text`, `text_pair`, `label`, `prediction`, the highest
            `probability` over seeds, and the number of `seeds` that predict this wrong label.
    """

    task: str
    method: str
    seeds: int
    counts: pd.DataFrame
    worst: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        """All labels that occur, sorted."""
        return list(self.counts.index)

    @property
    def total(self) -> int:
        """Predictions in all."""
        return int(self.counts.to_numpy().sum())

    @property
    def wrong(self) -> int:
        """Predictions that are wrong."""
        return self.total - int(self.counts.to_numpy().trace())

    def confusions(self, most: int) -> list[tuple[str, str, str]]:
        """The most frequent confusions: label, predicted label, number of rows."""
        counts = [(label, prediction, int(n)) for (label, prediction), n in self.counts.stack().items() if n]
        wrong = [confusion for confusion in counts if confusion[0] != confusion[1]]
        wrong.sort(key=lambda confusion: (-confusion[2], *confusion[:2]))
        return [(label, prediction, f"{rows:,}") for label, prediction, rows in wrong[:most]]


def best_method(runs: pd.DataFrame) -> str:
    """The method with the highest mean dev score (of equal ones the first)."""
    return str(runs.groupby("method", sort=False)["dev"].agg(mean).idxmax())


def errors(task: str, runs: pd.DataFrame) -> Errors | None:
    """Errors of the best of a task's finished runs; None where its method left no predictions."""
    method = best_method(runs)
    read = [read_predictions(folder) for folder in runs.loc[runs["method"] == method, "folder"]]
    known = [predictions for predictions in read if predictions is not None]
    if not known:
        return None
    rows = pd.concat(known, keys=range(len(known)), names=["run", "line"]).reset_index("run")
    labels = sorted({*rows["label"], *rows["prediction"]})
    counts = pd.crosstab(rows["label"], rows["prediction"]).reindex(index=labels, columns=labels, fill_value=0)
    # Equal errors of several seeds are one, so that one row does not fill the list.
    wrong = rows[rows["label"] != rows["prediction"]].groupby(["text", "text_pair", "label", "prediction"], sort=False)
    worst = wrong.agg(probability=("probability", "max"), seeds=("run", "nunique")).reset_index()
    worst = worst.sort_values(["probability", "seeds", "text"], ascending=[False, False, True])
    return Errors(task, method, len(known), counts, worst.head(MOST))
