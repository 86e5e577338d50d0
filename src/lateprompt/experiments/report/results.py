"""Reads and checks the results of a comparison: the table of its runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lateprompt.data.formats import read_table
from lateprompt.training.metrics import METRICS
from lateprompt.utils.aliases import todays_settings
from lateprompt.utils.errors import LatePromptError

Shots = int | Literal["full"]

NAMES = ("results.csv", "results.parquet")
COLUMNS = (
    *("method", "task", "shots", "seed", "model", "settings", "metric", "dev", "test", "trainable_parameters", "steps"),
    *("train_seconds", "tokens_per_second", "peak_memory_bytes", "trunk_fill_seconds", "status", "error", "run"),
)
"""The columns that a table of results must have."""
STATUSES = ("done", "failed")


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a row of the table of results.

    Args:
        method: name of the method.
        task: name of the task.
        shots: training rows in total, or `full`.
        seed: seed of the run and of its sample.
        model: name of the base model.
        settings: what the run was started with.
        metric: name of the primary metric.
        dev: primary metric on the dev rows; None in a failed run.
        test: primary metric on the test rows, if there are any.
        extra: further metrics on the test rows, by name.
        trainable_parameters: numbers that were trained.
        steps: optimiser steps.
        train_seconds: time of the training.
        tokens_per_second: training speed.
        peak_memory_bytes: most memory in use.
        trunk_fill_seconds: time to compute the trunk's states.
        failed: whether the run failed.
        error: why it failed.
        folder: where its files are, or None.
    """

    method: str
    task: str
    shots: Shots
    seed: int
    model: str
    settings: Mapping[str, Any]
    metric: str
    dev: float | None
    test: float | None
    extra: Mapping[str, float]
    trainable_parameters: float | None
    steps: float | None
    train_seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    trunk_fill_seconds: float | None
    failed: bool
    error: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Results:
    """All runs of a comparison, in the order of the table.

    Args:
        path: the table that was read.
        runs: one per row, failed ones too.
    """

    path: Path
    runs: list[Run] = field(repr=False)

    @property
    def done(self) -> list[Run]:
        """The runs that finished."""
        return [run for run in self.runs if not run.failed]

    @property
    def failed(self) -> list[Run]:
        """The runs that failed."""
        return [run for run in self.runs if run.failed]

    @property
    def methods(self) -> list[str]:
        """The methods, in the order in which they occur first."""
        return list(dict.fromkeys(run.method for run in self.runs))


def find_table(path: Path) -> Path:
    """The table of results in a folder, or the file itself.

    Raises:
        LatePromptError: there is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise LatePromptError(f"results {str(path)!r} do not exist; give the folder that `lateprompt compare` left")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise LatePromptError(f"folder {str(path)!r} has no {NAMES[0]!r}; give the folder that `lateprompt compare` left")


def read_results(path: str | Path) -> Results:
    """The runs in a results folder or in its table (.csv, .tsv, .jsonl, .parquet).

    Raises:
        LatePromptError: no such table, a missing column, no rows, or a row that does not fit; the message quotes
            the value.
    """
    file = find_table(Path(path))
    table = read_table(file, None)
    if table.names is not None:
        _check_columns(file, set(table.names))
    runs: list[Run] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, record in table.records:
        _check_columns(file, set(record))
        try:
            run = _run(record, file.parent)
            key = (run.model, run.method, run.task, run.shots, run.seed)
            if not run.failed and key in seen:
                raise LatePromptError(
                    f"method {run.method!r}, task {run.task!r}, shots {run.shots}, seed {run.seed} is already in "
                    f"{table.unit} {seen[key]}; remove one, or give other settings a method name of their own"
                )
        except LatePromptError as error:
            raise LatePromptError(f"{file.name}, {table.unit} {number}: {error}") from None
        if not run.failed:
            seen[key] = number
        runs.append(run)
    if not runs:
        raise LatePromptError(f"{str(file)!r} has no runs; let `lateprompt compare` finish at least one")
    return Results(file, runs)


def _check_columns(file: Path, names: set[str]) -> None:
    for name in COLUMNS:
        if name not in names:
            raise LatePromptError(
                f"missing column {name!r} in {file.name!r}; it has {', '.join(sorted(names)) or 'none'}"
            )


def _run(record: Mapping[str, Any], root: Path) -> Run:
    status = name_of(record, "status")
    if status not in STATUSES:
        raise LatePromptError(f"status {status!r} is unknown; write one of {', '.join(STATUSES)}")
    failed = status == "failed"
    dev = score_of(record, "dev")
    if dev is None and not failed:
        raise LatePromptError("column 'dev' is empty in a run that is done; give its dev metric, or the status failed")
    return Run(
        method=name_of(record, "method"),
        task=name_of(record, "task"),
        shots=_shots(record),
        seed=_integer(record, "seed"),
        model=name_of(record, "model"),
        settings=todays_settings(_settings(record)),
        metric=name_of(record, "metric"),
        dev=dev,
        test=score_of(record, "test"),
        extra={
            name: value
            for name in METRICS
            if f"test_{name}" in record and (value := score_of(record, f"test_{name}")) is not None
        },
        trainable_parameters=number_of(record, "trainable_parameters", least=0),
        steps=number_of(record, "steps", least=0),
        train_seconds=number_of(record, "train_seconds", least=0),
        tokens_per_second=number_of(record, "tokens_per_second", least=0),
        peak_memory_bytes=number_of(record, "peak_memory_bytes", least=0),
        trunk_fill_seconds=number_of(record, "trunk_fill_seconds", least=0),
        failed=failed,
        error=text_of(record, "error"),
        folder=_folder(text_of(record, "run"), root),
    )


def text_of(record: Mapping[str, Any], column: str) -> str:
    """A field as text; empty for a gap."""
    value = record[column]
    return "" if value is None or value != value else str(value).strip()  # NaN is a gap


def name_of(record: Mapping[str, Any], column: str) -> str:
    """A field that must not be empty; LatePromptError if it is."""
    value = text_of(record, column)
    if not value:
        raise LatePromptError(f"column {column!r} is empty; every run needs one")
    return value


def number_of(record: Mapping[str, Any], column: str, least: float = -math.inf) -> float | None:
    """A finite number from `least`, or None for a gap; LatePromptError for anything else."""
    value = text_of(record, column)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        raise LatePromptError(f"{column} {value[:60]!r} is no number; write one, or leave it empty") from None
    if not math.isfinite(number) or number < least:
        wanted = "a finite number" if least == -math.inf else f"a number from {least:g}"
        raise LatePromptError(f"{column} {value[:60]!r} is not {wanted}; write one, or leave it empty")
    return number


def score_of(record: Mapping[str, Any], column: str) -> float | None:
    """A metric between -1 and 1, or None for a gap; LatePromptError for anything else."""
    score = number_of(record, column)
    if score is not None and abs(score) > 1:
        raise LatePromptError(f"{column} {text_of(record, column)!r} is outside -1 to 1; write 85.3 % as 0.853")
    return score


def _integer(record: Mapping[str, Any], column: str) -> int:
    number = number_of(record, column)
    if number is None or not number.is_integer():
        raise LatePromptError(f"{column} {text_of(record, column)[:60]!r} is no whole number; write one")
    return int(number)


def _shots(record: Mapping[str, Any]) -> Shots:
    if text_of(record, "shots") == "full":
        return "full"
    try:
        shots = _integer(record, "shots")
    except ValueError:
        shots = 0
    if shots < 1:
        raise LatePromptError(f"shots {text_of(record, 'shots')[:60]!r} is neither a whole number from 1 nor 'full'")
    return shots


def _settings(record: Mapping[str, Any]) -> Mapping[str, Any]:
    value = record["settings"]
    if isinstance(value, Mapping):  # JSON lines and Parquet can hold the object itself
        return value
    text = text_of(record, "settings")
    try:
        settings = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise LatePromptError(f"settings {text[:60]!r} are no JSON object; write one such as {{}}")
    return settings


def _folder(run: str, root: Path) -> Path | None:
    if not run:
        return None
    parts = PurePosixPath(run.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:  # a table from elsewhere must not read this machine's files
        raise LatePromptError(f"run {run!r} leads out of the results folder; write a path relative to it")
    return root / parts
