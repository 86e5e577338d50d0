"""Formats by suffix, and how to tell one of our files by its first row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from lateprompt.predictors.outputs.columns import MISTAKES
from lateprompt.utils.errors import LatePromptError

Kind = Literal["json", "csv", "tsv", "parquet"]
_KINDS: dict[str, Kind] = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
# JSON lines under one of these names would be a file that nothing can open.
_OTHERS = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".zip", ".bz2", ".xz", ".zst", ".7z", ".pkl")
_LONGEST = 1 << 24
"""Bytes of a first row that are looked at."""


@dataclass(frozen=True, slots=True)
class Format:
    """How rows lie in a file.

    Args:
        kind: JSON lines, a table with separators, or Parquet.
        suffix: the end of the file's name that says so, `.gz` included.
        compressed: whether by gzip.
    """

    kind: Kind
    suffix: str
    compressed: bool = False

    @property
    def table(self) -> bool:
        """Whether all rows have the same columns."""
        return self.kind != "json"


def format_of(name: str) -> Format:
    """The format that a file's name asks for: JSON lines unless it says otherwise.

    Raises:
        LatePromptError: the suffix of a format that we do not write.
    """
    path = Path(name)
    compressed = path.suffix.lower() == ".gz"
    inner = Path(path.stem).suffix if compressed else path.suffix
    suffix = inner + (path.suffix if compressed else "")
    kind = _KINDS.get(inner.lower(), "json")
    if inner.lower() in _OTHERS or (compressed and kind == "parquet"):
        raise LatePromptError(
            f"output {name!r}: {suffix} is not written; give .jsonl, .csv, .tsv (each with or without .gz) or .parquet"
        )
    return Format(kind, suffix, compressed)


def is_prediction_file(path: Path, tasks: Sequence[str] = ()) -> bool:
    """Whether the first row of a file ends with the columns that we write: `prediction`, then scores and errors.

    A file of mistakes is one of ours too. Of several runs, their `tasks` stand for `prediction`.
    """
    try:
        form = format_of(path.name)
        names = _parquet_names(path) if form.kind == "parquet" else _names(_first_line(path, form), form)
    except (OSError, ValueError, EOFError, zlib.error, csv.Error, RecursionError):  # whatever it is, it is not ours
        return False
    if not tasks and tuple(names[-len(MISTAKES) :]) == MISTAKES:
        return True
    own = list(tasks) or ["prediction"]
    start = next((i for i in range(len(names)) if list(names[i : i + len(own)]) == own), None)
    if start is None:
        return False
    behind = names[start + len(own) :]
    return all(
        name in ("scores", "embedding", "error") or (form.table and name.startswith("score_")) for name in behind
    )


def _first_line(path: Path, form: Format) -> str:
    with gzip.open(path) if form.compressed else path.open("rb") as file:
        return file.readline(_LONGEST).decode("utf-8-sig")


def _names(line: str, form: Format) -> Sequence[str]:
    if form.kind == "json":
        record = json.loads(line)
        return list(record) if isinstance(record, dict) else []
    return next(csv.reader(io.StringIO(line, newline=""), delimiter=DELIMITERS[form.kind]), [])


def _parquet_names(path: Path) -> Sequence[str]:
    parquet: Any = import_module("pyarrow.parquet")
    return list(parquet.read_schema(path).names)
