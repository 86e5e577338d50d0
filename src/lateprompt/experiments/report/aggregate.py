"""From runs to the main table: mean and standard deviation over seeds, per method and task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import pandas as pd

from lateprompt.experiments.report.results import Results
from lateprompt.utils.errors import LatePromptError

Shots = int | Literal["full"]


class Column(NamedTuple):
    """A task of the main table.

    Args:
        task: its name.
        metric: what is shown.
        split: `test`, or `dev` where no run of the column has a test score.
    """

    task: str
    metric: str
    split: str


@dataclass(frozen=True, eq=False)
class MainTable:
    """Methods by tasks for one model and one number of training rows. A score that is not there is NaN.

    Args:
        model: name of the model.
        shots: training rows, or `full`.
        columns: the tasks.
        seeds: all seeds of the table's runs, failed ones too.
        scores: methods × (task, seed), as they were measured.
        costs: methods × `parameters` (trained numbers), `tokens_per_ms` (both mean over tasks of the mean over seeds,
            so that a task with more seeds does not weigh more), `memory_bytes` (the largest peak) and `runs` (that are
            done).
    """

    model: str
    shots: Shots
    columns: Sequence[Column]
    seeds: Sequence[int]
    scores: pd.DataFrame
    costs: pd.DataFrame

    @cached_property
    def cells(self) -> pd.DataFrame:
        """(method, task) × `mean` and `std` over seeds (n - 1 in the denominator; NaN for one seed), `n` seeds."""
        by_cell = self.scores.stack(["task", "seed"], future_stack=True).groupby(level=["method", "task"], sort=False)
        return by_cell.agg(mean=mean, std=std, n="count")

    @cached_property
    def averages(self) -> pd.DataFrame:
        """Methods × `mean` over tasks of the cells' means, only where a method has all tasks; `std` over the averages
        of the `n` seeds that have all tasks."""
        by_task = self.cells["mean"].unstack("task", sort=False)
        by_seed = self.scores.stack("seed", future_stack=True).apply(fmean, axis=1)
        seeds = by_seed.groupby(level="method", sort=False)
        return seeds.agg(std=std, n="count").assign(mean=by_task.apply(fmean, axis=1))

    @cached_property
    def rows(self) -> list[Any]:
        """A named tuple for each method: `method`, what `averages` holds, and what `costs` holds."""
        return list(self.averages.join(self.costs).reset_index().itertuples(index=False, name="MethodRow"))


def mean(values: Iterable[float]) -> float:
    """The mean of what is not NaN. Exact, unlike pandas' own, whose 0.88749… shows as 88.7 where 0.8875 shows as 88.8:
    means of a few seeds over some hundred rows end like that often."""
    known = [value for value in values if value == value]
    return fmean(known) if known else math.nan


def std(values: Iterable[float]) -> float:
    """The exact sample standard deviation of what is not NaN (n - 1 in the denominator); NaN for one value."""
    known = [value for value in values if value == value]
    return stdev(known) if len(known) > 1 else math.nan


def shots_key(shots: Shots) -> float:
    """Sorts numbers of shots, `full` last."""
    return float("inf") if shots == "full" else shots


def shots_name(shots: Shots) -> str:
    """`100 shots`, or `full data`."""
    return "full data" if shots == "full" else f"{shots:,} shot" + "s" * (shots != 1)


def groups(runs: pd.DataFrame) -> list[tuple[str, Shots, pd.DataFrame]]:
    """Model, shots and their runs: models as they occur, shots rising."""
    models = list(runs["model"].unique())
    parts = [(model, shots, part) for (model, shots), part in runs.groupby(["model", "shots"], sort=False)]
    return sorted(parts, key=lambda part: (models.index(part[0]), shots_key(part[1])))


def main_tables(results: Results) -> list[MainTable]:
    """One table for each model and number of shots, with the primary metric of each task."""
    return [_table(model, shots, *_primary(runs)) for model, shots, runs in groups(results.runs)]


def extra_tables(results: Results) -> dict[str, list[MainTable]]:
    """Further test metrics: metric to its tables, without tables that would be empty."""
    tables = {}
    for column in results.done.filter(regex="^test_").dropna(axis=1, how="all"):
        name = column.removeprefix("test_")
        runs = results.runs.assign(score=results.runs[column])
        measured = runs[(runs["status"] == "done") & runs["score"].notna()]
        columns = [Column(task, name, "test") for task in measured["task"].unique()]
        runs = runs[(runs["status"] == "failed") | runs["score"].notna()]
        found = [_table(model, shots, columns, part) for model, shots, part in groups(runs)]
        tables[name] = [table for table in found if table.scores.notna().any(axis=None)]
    return tables


def _primary(runs: pd.DataFrame) -> tuple[list[Column], pd.DataFrame]:
    """The columns of a main table, and the runs with the `score` that their column shows."""
    columns, parts = [], []
    for task, part in runs.groupby("task", sort=False):
        metrics = list(part["metric"].unique())
        if len(metrics) > 1:
            raise LatePromptError(
                f"task {task!r} has the primary metrics {', '.join(metrics)}; compare runs by one of them"
            )
        # A column never mixes the two: a run without a test score counts as missing where others have one.
        split = "test" if part.loc[part["status"] == "done", "test"].notna().any() else "dev"
        columns.append(Column(str(task), metrics[0], split))
        parts.append(part[split])
    return columns, runs.assign(score=pd.concat(parts))


def _table(model: str, shots: Shots, columns: Sequence[Column], runs: pd.DataFrame) -> MainTable:
    methods, seeds = pd.Index(runs["method"].unique(), name="method"), sorted(runs["seed"].unique())
    cells = pd.MultiIndex.from_product([[column.task for column in columns], seeds], names=["task", "seed"])
    done = runs[runs["status"] == "done"]
    scores = done.pivot(index="method", columns=["task", "seed"], values="score").reindex(index=methods, columns=cells)
    by_method = done.groupby("method")
    measured = done.groupby(["method", "task"])[["trainable_parameters", "tokens_per_second"]].agg(mean)
    costs = measured.groupby("method").agg(mean).reindex(methods)
    costs.columns = ["parameters", "tokens_per_ms"]
    costs["tokens_per_ms"] /= 1000
    costs["memory_bytes"] = by_method["peak_memory_bytes"].max()
    costs["runs"] = by_method.size().reindex(methods, fill_value=0)
    return MainTable(model, shots, columns, seeds, scores.astype(float), costs)


def as_json(tables: Sequence[MainTable], failed: int) -> dict[str, Any]:
    """The main tables for machines: scores as they were measured, not in percent."""
    return {"failed_runs": failed, "tables": [_table_json(table) for table in tables]}


def _table_json(table: MainTable) -> dict[str, Any]:
    return {
        "model": table.model,
        "shots": table.shots,
        "seeds": list(table.seeds),
        "tasks": [column._asdict() for column in table.columns],
        "methods": [
            {
                "method": row.method,
                "scores": {
                    task: {
                        "mean": mean(scores),
                        "std": _known(std(scores)),
                        "n": len(scores),
                        "seeds": list(scores.index),
                    }
                    for task, *_ in table.columns
                    if len(scores := table.scores.loc[row.method, task].dropna())
                },
                "average": _known(row.mean),
                "average_std": _known(row.std),
                "trainable_parameters": _known(row.parameters),
                "tokens_per_ms": _known(row.tokens_per_ms),
                "peak_memory_bytes": _known(row.memory_bytes),
                "runs": row.runs,
            }
            for row in table.rows
        ],
    }


def _known(value: float) -> float | None:
    return None if pd.isna(value) else value
