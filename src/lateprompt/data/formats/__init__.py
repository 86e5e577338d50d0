"""File formats: the reader for each file suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lateprompt.data.columns import Columns, find_columns, is_own_layout
from lateprompt.data.formats.json_lines import read_json, read_json_lines
from lateprompt.data.formats.separated import read_separated
from lateprompt.data.formats.sheets import read_excel, read_parquet
from lateprompt.data.formats.tables import Table
from lateprompt.data.task_library import AnyTask
from lateprompt.utils.errors import LatePromptError

SEPARATED = {".csv": ",", ".tsv": "\t"}
TABLES: dict[str, Callable[[Path], Table]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
    ".xlsx": read_excel,
}
"""File suffix to reader, without the suffixes in SEPARATED."""
PACKED = (".parquet", ".xlsx")
"""Formats with compression of their own, so that .gz makes no sense."""
SUFFIXES = ".jsonl, .ndjson, .json, .csv, .tsv (these also with .gz), .parquet, .xlsx"
_ADVICE = {".xls": "save it as .xlsx", ".txt": "write a header and name it .csv or .tsv", ".zip": "unpack it"}


def read_table(path: Path, task: AnyTask | None, chosen: Columns | None = None) -> Table:
    """Open a file as a table, with the reader for its suffix.

    Args:
        path: the file.
        task: the task, which may name columns of its own.
        chosen: field to the column that the user has chosen.

    Raises:
        LatePromptError: an unknown suffix, or content that cannot be read; reading the records may raise it too.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1:] == [".gz"]
    suffix = suffixes[-2] if packed and len(suffixes) > 1 else path.suffix.lower()
    if packed and suffix in PACKED:
        raise LatePromptError(f"{path}: {suffix} files are compressed already; unpack it with gunzip")
    if suffix in SEPARATED:
        return read_separated(
            path,
            SEPARATED[suffix],
            lambda names: find_columns(names, task, chosen),
            lambda names: is_own_layout(names, task, chosen or {}),
        )
    if suffix not in TABLES:
        advice = _ADVICE.get(suffix, f"give one of {SUFFIXES}")
        raise LatePromptError(f"{path} has the unknown suffix {suffix!r}; {advice}")
    return TABLES[suffix](path)
