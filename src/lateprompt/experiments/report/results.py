"""Reads and checks the results of a comparison: the table of its runs, as one pandas DataFrame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from lateprompt.data.formats import read_table
from lateprompt.data.task import MULTI_LABEL_METRICS
from lateprompt.training.metrics import METRICS
from lateprompt.utils.aliases import todays_settings
from lateprompt.utils.errors import LatePromptError

NAMES = ("results.csv", "results.parquet")
STATUSES = ("done", "failed")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """All runs of a comparison, in the order of the table.

    Args:
        path: the table that was read.
        runs: one row per run, failed ones too, with the columns of `COLUMNS`, a column `test_<metric>` for each further
            metric, and `folder`: where the run's files are, or None. Numbers are floats, NaN where there is none;
            `shots` is a whole number or `full`.
    """

    path: Path
    runs: pd.DataFrame = field(repr=False)

    @property
    def done(self) -> pd.DataFrame:
        """The runs that finished."""
        return self.runs[self.runs["status"] == "done"]

    @property
    def failed(self) -> pd.DataFrame:
        """The runs that failed."""
        return self.runs[self.runs["status"] == "failed"]

    @property
    def numbers(self) -> dict[str, int]:
        """The methods, in the order in which they occur first, and their numbers: the same look in all charts."""
        return {method: number for number, method in enumerate(self.runs["method"].unique())}


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
    runs = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, record in table.records:
        _check_columns(file, set(record))
        try:
            run = _run(record, file.parent)
            key = tuple(run[name] for name in ("model", "method", "task", "shots", "seed"))
            if run["status"] == "done" and key in seen:
                raise LatePromptError(
                    f"method {run['method']!r}, task {run['task']!r}, shots {run['shots']}, seed {run['seed']} is "
                    f"already in {table.unit} {seen[key]}; remove one, or give other settings a method name of their "
                    "own"
                )
        except LatePromptError as error:
            raise LatePromptError(f"{file.name}, {table.unit} {number}: {error}") from None
        if run["status"] == "done":
            seen[key] = number
        runs.append(run)
    if not runs:
        raise LatePromptError(f"{str(file)!r} has no runs; let `lateprompt compare` finish at least one")
    # As objects first: pandas would make floats of whole numbers, and NumPy's integers, which json does not know.
    frame = pd.DataFrame(runs, dtype=object)
    return Results(file, frame.astype(dict.fromkeys((name for name in frame if name in _NUMBERS), float)))


def _check_columns(file: Path, names: set[str]) -> None:
    for name in COLUMNS:
        if name not in names:
            raise LatePromptError(
                f"missing column {name!r} in {file.name!r}; it has {', '.join(sorted(names)) or 'none'}"
            )


def _run(record: Record, root: Path) -> dict[str, Any]:
    run = {column: read(record, column) for column, read in _COLUMNS.items()}
    run["settings"] = todays_settings(run["settings"])
    if run["dev"] is None and run["status"] == "done":
        raise LatePromptError("column 'dev' is empty in a run that is done; give its dev metric, or the status failed")
    further = {name: score_of(record, name) for name in _FURTHER if name in record}
    return run | further | {"folder": root / run["run"] if run["run"] else None}


def text_of(record: Record, column: str) -> str:
    """A field as text; empty for a gap."""
    value = record[column]
    return "" if value is None or value != value else str(value).strip()  # NaN is a gap


def name_of(record: Record, column: str) -> str:
    """A field that must not be empty; LatePromptError if it is."""
    value = text_of(record, column)
    if not value:
        raise LatePromptError(f"column {column!r} is empty; every run needs one")
    return value


def number_of(record: Record, column: str, least: float = -math.inf) -> float | None:
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


def score_of(record: Record, column: str) -> float | None:
    """A metric between -1 and 1, or None for a gap; LatePromptError for anything else."""
    score = number_of(record, column)
    if score is not None and abs(score) > 1:
        raise LatePromptError(f"{column} {text_of(record, column)!r} is outside -1 to 1; write 85.3 % as 0.853")
    return score


def _amount(record: Record, column: str) -> float | None:
    return number_of(record, column, least=0)


def _integer(record: Record, column: str) -> int:
    number = number_of(record, column)
    if number is None or not number.is_integer():
        raise LatePromptError(f"{column} {text_of(record, column)[:60]!r} is no whole number; write one")
    return int(number)


def _shots(record: Record, column: str) -> int | str:
    value = text_of(record, column)
    if value == "full":
        return value
    try:
        shots = _integer(record, column)
    except LatePromptError:
        shots = 0
    if shots < 1:
        raise LatePromptError(f"{column} {value[:60]!r} is neither a whole number from 1 nor 'full'")
    return shots


def _settings(record: Record, column: str) -> Mapping[str, Any]:
    value = record[column]
    if isinstance(value, Mapping):  # JSON lines and Parquet can hold the object itself
        return value
    text = text_of(record, column)
    try:
        settings = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise LatePromptError(f"{column} {text[:60]!r} are no JSON object; write one such as {{}}")
    return settings


def _status(record: Record, column: str) -> str:
    status = name_of(record, column)
    if status not in STATUSES:
        raise LatePromptError(f"{column} {status!r} is unknown; write one of {', '.join(STATUSES)}")
    return status


def _place(record: Record, column: str) -> str:
    parts = PurePosixPath(text_of(record, column).replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:  # a table from elsewhere must not read this machine's files
        raise LatePromptError(
            f"{column} {text_of(record, column)!r} leads out of the results folder; write a path relative to it"
        )
    return text_of(record, column) and str(parts)


_COLUMNS: Mapping[str, Callable[[Record, str], Any]] = {
    "method": name_of,
    "task": name_of,
    "shots": _shots,
    "seed": _integer,
    "model": name_of,
    "settings": _settings,
    "metric": name_of,
    "dev": score_of,
    "test": score_of,
    "trainable_parameters": _amount,
    "steps": _amount,
    "train_seconds": _amount,
    "tokens_per_second": _amount,
    "peak_memory_bytes": _amount,
    "trunk_fill_seconds": _amount,
    "status": _status,
    "error": text_of,
    "run": _place,
}
"""The columns that a table of results must have, and how each is read."""
COLUMNS = tuple(_COLUMNS)
_FURTHER = tuple(f"test_{name}" for name in dict.fromkeys((*METRICS, *MULTI_LABEL_METRICS)))
_NUMBERS = {name for name, read in _COLUMNS.items() if read in (score_of, _amount)} | set(_FURTHER)
