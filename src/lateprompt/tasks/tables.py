"""File formats: each reader turns a file into a `Table` of records as they stand in it, with their line numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lateprompt.errors import LatePromptError
from lateprompt.tasks.loading import AnyTask
from lateprompt.tasks.text_task import TextTask

Records = Iterator[tuple[int, Mapping[str, Any]]]
Columns = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """Records of one data set.

    Args:
        records: pairs of a 1-based line (or row) number and the record.
        unit: what is counted: `line` or `row`.
        names: the columns, or None where every record has its own keys (JSON lines).
        columns: our field to a column, where a reader knows better than `find_columns`.
        class_names: names of integer labels, where the data set has them.
    """

    records: Records
    unit: str
    names: Sequence[str] | None = None
    columns: Columns | None = None
    class_names: Sequence[str] | None = None


FIELDS = ("text", "text_pair", "label", "target")


def find_columns(names: Sequence[str] | Mapping[str, Any], task: AnyTask | None) -> Columns:
    """Which column holds which of our fields: our own names, or the task's where only those are there.

    GLUE's files have a layout as a whole; a text-to-text task may name one column and leave the others.
    """
    own = {} if task is None else task.columns
    if isinstance(task, TextTask):
        return {field: field if field in names else own.get(field, field) for field in FIELDS}
    if "text" not in names and own.get("text") in names:
        return {field: own.get(field, field) for field in FIELDS}
    return {field: field for field in FIELDS}


def read_table(path: Path, task: AnyTask | None) -> Table:
    """The table in a file, by its suffix.

    Raises:
        LatePromptError: an unknown suffix, or content that cannot be read; records may raise it too.
    """
    reader = TABLES.get(path.suffix.lower())
    if reader is None:
        raise LatePromptError(f"{path} has the unknown suffix {path.suffix!r}; give one of {', '.join(TABLES)}")
    return reader(path, task)


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LatePromptError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def _jsonl(path: Path, task: AnyTask | None) -> Table:
    return Table(_jsonl_records(path, _text(path)), "line")


def _jsonl_records(path: Path, text: str) -> Records:
    # Not splitlines(): it also splits at U+2028 and the like, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", "cannot be read")
            raise LatePromptError(f"{path}, line {number}: broken JSON ({problem}): {line.strip()[:60]!r}") from None
        if not isinstance(record, dict):
            raise LatePromptError(
                f"{path}, line {number}: {line.strip()[:60]!r} is no JSON object; write one object per line"
            )
        yield number, record


def _separated(separator: str) -> Callable[[Path, AnyTask | None], Table]:
    def read(path: Path, task: AnyTask | None) -> Table:
        text = _text(path)
        first = text.partition("\n")[0].rstrip("\r").split("\t")
        # GLUE's own files do not quote: a quotation mark there is text.
        if separator == "\t" and find_columns(first, task)["text"] != "text":
            _check_header(path, first)
            return Table(_unquoted_records(path, text, first), "line", first)
        records = _quoted_rows(path, text, separator)
        _, names = next(records, (1, []))
        _check_header(path, names)
        return Table(_quoted_records(path, records, names), "line", names)

    return read


def _check_header(path: Path, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise LatePromptError(
            f"{path}, line 1: column {twice[0]!r} occurs twice (columns: {', '.join(names)}); rename one"
        )


def _unquoted_records(path: Path, text: str, names: Sequence[str]) -> Records:
    for number, line in enumerate(text.split("\n")[1:], 2):
        if line.strip():
            values = line.rstrip("\r").split("\t")
            _check_width(path, number, values, names)
            yield number, dict(zip(names, values, strict=False))


def _quoted_rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    # strict: otherwise a quote that is never closed swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise LatePromptError(
                f"{path}, line {number}: broken quoting ({error}); double a quote inside quotes"
            ) from None
        if values:
            yield number, values


def _quoted_records(path: Path, rows: Iterator[tuple[int, list[str]]], names: Sequence[str]) -> Records:
    for number, values in rows:
        _check_width(path, number, values, names)
        yield number, dict(zip(names, values, strict=False))


def _check_width(path: Path, number: int, values: Sequence[str], names: Sequence[str]) -> None:
    if len(values) > len(names):
        raise LatePromptError(
            f"{path}, line {number}: {len(values)} fields for {len(names)} columns ({', '.join(names)}); "
            "quote a text that has the separator in it"
        )


def _parquet(path: Path, task: AnyTask | None) -> Table:
    # By name, since pyarrow has no types; it comes with datasets.
    parquet: Any = import_module("pyarrow.parquet")
    try:
        table = parquet.read_table(path)
    except (ValueError, OSError) as error:
        raise LatePromptError(f"{path}: no readable parquet file ({str(error).splitlines()[0]})") from None
    return Table(iter(enumerate(table.to_pylist(), 1)), "row", table.column_names)


TABLES: dict[str, Callable[[Path, AnyTask | None], Table]] = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
"""File suffix to reader."""
