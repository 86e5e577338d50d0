"""From runs to the main table: mean and standard deviation over seeds, per method and task."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lateprompt.experiments.report.results import Results, Run, Shots
from lateprompt.utils.errors import LatePromptError

Split = Literal["test", "dev"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Scores of one method on one task.

    Args:
        values: seed to score.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (n - 1 in the denominator); None for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Column:
    """A task of the main table.

    Args:
        task: its name.
        metric: what is shown.
        split: `test`, or `dev` where no run of the column has a test score.
    """

    task: str
    metric: str
    split: Split


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method of the main table.

    Args:
        method: its name.
        cells: task to scores; tasks without a score are left out.
        average: seed to mean over tasks, with seeds that have all tasks.
        mean: mean over tasks of the cells' means; None unless every task has a score.
        parameters: trained numbers, mean over runs.
        tokens_per_ms: training speed, mean over tasks of the mean over seeds.
        memory_bytes: largest peak of the runs.
        runs: runs that are done.
    """

    method: str
    cells: Mapping[str, Cell]
    average: Cell | None
    mean: float | None
    parameters: float | None
    tokens_per_ms: float | None
    memory_bytes: float | None
    runs: int


@dataclass(frozen=True, slots=True)
class MainTable:
    """Methods by tasks for one model and one number of training rows.

    Args:
        model: name of the model.
        shots: training rows, or `full`.
        columns: the tasks.
        seeds: all seeds of the table's runs, failed ones too.
        rows: the methods.
    """

    model: str
    shots: Shots
    columns: Sequence[Column]
    seeds: Sequence[int]
    rows: Sequence[MethodRow]

    def is_partial(self, cell: Cell) -> bool:
        """Whether seeds are missing in a cell."""
        return len(cell.values) < len(self.seeds)


def shots_key(shots: Shots) -> float:
    """Sorts numbers of shots, `full` last."""
    return float("inf") if shots == "full" else shots


def shots_name(shots: Shots) -> str:
    """`100 shots`, or `full data`."""
    return "full data" if shots == "full" else f"{shots:,} shot" + "s" * (shots != 1)


def groups(runs: Iterable[Run]) -> dict[tuple[str, Shots], list[Run]]:
    """Runs by model and shots: models as they occur, shots rising."""
    runs = list(runs)
    models = list(dict.fromkeys(run.model for run in runs))
    pairs = {(run.model, run.shots) for run in runs}
    ordered = sorted(pairs, key=lambda pair: (models.index(pair[0]), shots_key(pair[1])))
    return {pair: [run for run in runs if (run.model, run.shots) == pair] for pair in ordered}


def main_tables(results: Results) -> list[MainTable]:
    """One table for each model and number of shots, with the primary metric of each task."""
    return [_table(model, shots, runs, _primary(runs)) for (model, shots), runs in groups(results.runs).items()]


def extra_tables(results: Results) -> dict[str, list[MainTable]]:
    """Further test metrics: metric to its tables, without tables that would be empty."""
    names = dict.fromkeys(name for run in results.done for name in run.extra)
    tables = {}
    for name in names:
        runs = [run for run in results.runs if run.failed or name in run.extra]
        columns = {run.task: Column(run.task, name, "test") for run in runs if name in run.extra}
        found = [
            _table(model, shots, part, (list(columns.values()), partial(_extra, name)))
            for (model, shots), part in groups(runs).items()
        ]
        tables[name] = [table for table in found if any(row.cells for row in table.rows)]
    return tables


def _extra(name: str, run: Run) -> float | None:
    return run.extra.get(name)


def _primary(runs: Sequence[Run]) -> tuple[list[Column], Callable[[Run], float | None]]:
    columns = {}
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        metrics = list(dict.fromkeys(run.metric for run in of_task))
        if len(metrics) > 1:
            raise LatePromptError(
                f"task {task!r} has the primary metrics {', '.join(metrics)}; compare runs by one of them"
            )
        # A column never mixes the two: a run without a test score counts as missing where others have one.
        split: Split = "test" if any(run.test is not None for run in of_task if not run.failed) else "dev"
        columns[task] = Column(task, metrics[0], split)
    return list(columns.values()), lambda run: run.test if columns[run.task].split == "test" else run.dev


def _table(
    model: str, shots: Shots, runs: Sequence[Run], view: tuple[list[Column], Callable[[Run], float | None]]
) -> MainTable:
    columns, score = view
    seeds = sorted({run.seed for run in runs})
    methods = dict.fromkeys(run.method for run in runs)
    done = [run for run in runs if not run.failed]
    rows = [_row(method, [run for run in done if run.method == method], columns, score) for method in methods]
    return MainTable(model, shots, columns, seeds, rows)


def _row(
    method: str, runs: Sequence[Run], columns: Sequence[Column], score: Callable[[Run], float | None]
) -> MethodRow:
    cells = {}
    for column in columns:
        values = {run.seed: value for run in runs if run.task == column.task and (value := score(run)) is not None}
        if values:
            cells[column.task] = Cell(dict(sorted(values.items())))
    whole = len(cells) == len(columns) > 0
    common = set.intersection(*(set(cell.values) for cell in cells.values())) if whole else set()
    average = {seed: statistics.fmean(cell.values[seed] for cell in cells.values()) for seed in sorted(common)}
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    speed = _over_tasks(runs, "tokens_per_second")
    return MethodRow(
        method,
        cells,
        Cell(average) if average else None,
        statistics.fmean(cell.mean for cell in cells.values()) if whole else None,
        _over_tasks(runs, "trainable_parameters"),
        None if speed is None else speed / 1000,
        max(memory, default=None),
        len(runs),
    )


def _over_tasks(runs: Sequence[Run], name: str) -> float | None:
    """Mean over tasks of the mean over seeds, so that a task with more seeds does not weigh more."""
    by_task: dict[str, list[float]] = {}
    for run in runs:
        value = getattr(run, name)
        if value is not None:
            by_task.setdefault(run.task, []).append(value)
    return statistics.fmean(map(statistics.fmean, by_task.values())) if by_task else None


def as_json(tables: Sequence[MainTable], failed: int) -> dict[str, Any]:
    """The main tables for machines: scores as they were measured, not in percent."""
    return {"failed_runs": failed, "tables": [_table_json(table) for table in tables]}


def _table_json(table: MainTable) -> dict[str, Any]:
    return {
        "model": table.model,
        "shots": table.shots,
        "seeds": list(table.seeds),
        "tasks": [{"task": c.task, "metric": c.metric, "split": c.split} for c in table.columns],
        "methods": [
            {
                "method": row.method,
                "scores": {
                    task: {"mean": cell.mean, "std": cell.std, "n": len(cell.values), "seeds": list(cell.values)}
                    for task, cell in row.cells.items()
                },
                "average": row.mean,
                "average_std": row.average.std if row.average else None,
                "trainable_parameters": row.parameters,
                "tokens_per_ms": row.tokens_per_ms,
                "peak_memory_bytes": row.memory_bytes,
                "runs": row.runs,
            }
            for row in table.rows
        ],
    }
