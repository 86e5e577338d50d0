"""Read Parquet files and Excel workbooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from lateprompt.data.formats.separated import is_blank, named_table
from lateprompt.data.formats.tables import Entry, Table, Unreadable
from lateprompt.utils.errors import LatePromptError, first_line
from lateprompt.utils.inputs import check_file

BATCH = 1000
"""Number of rows of a Parquet file that are turned into Python objects at a time."""


def read_parquet(path: Path) -> Table:
    """Open a Parquet file, with the class names that `datasets` writes into it.

    Raises:
        LatePromptError: no readable Parquet file.
    """
    check_file(path)
    # Imported by name, since pyarrow has no type annotations; it comes with datasets.
    parquet: Any = import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
    except (ValueError, OSError) as error:
        raise LatePromptError(_unreadable(path, error)) from None
    schema = file.schema_arrow
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise LatePromptError(f"{path}: column {twice!r} occurs twice (columns: {', '.join(schema.names)}); rename one")
    return Table(
        str(path), _parquet_entries(path, file), "row", list(schema.names), class_names=_class_names(schema.metadata)
    )


def _parquet_entries(path: Path, file: Any) -> Iterator[Entry]:
    batches = file.iter_batches(batch_size=BATCH)
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except (ValueError, OSError) as error:  # truncated or damaged after its first part
            raise LatePromptError(_unreadable(path, error)) from None
        if batch is None:
            return
        for record in _records(batch):
            number += 1
            yield number, record


def _records(batch: Any) -> list[dict[str, Any] | Unreadable]:
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        pass
    records: list[dict[str, Any] | Unreadable] = []
    for index in range(batch.num_rows):  # one by one, to find the broken one
        try:
            records += batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError as error:
            records.append(Unreadable(f"a text that is not UTF-8 ({error.reason}); write the file again from UTF-8"))
    return records


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: no readable parquet file ({first_line(error)}); write or fetch it again"


def _class_names(metadata: Any) -> dict[str, list[str]]:
    """Return the class names of each column, from what `datasets` writes into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        # Of a list of classes, those of its elements.
        of_values = {column: feature.get("feature", feature) for column, feature in features.items()}
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in of_values.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError):  # another program's file, or no metadata
        return {}


def read_excel(path: Path) -> Table:
    """Open the first sheet of an Excel workbook.

    Raises:
        LatePromptError: openpyxl is missing, or no readable workbook.
    """
    check_file(path)
    try:
        openpyxl: Any = import_module("openpyxl")
    except ModuleNotFoundError:
        raise LatePromptError(
            f"{path} is an Excel workbook, for which openpyxl is missing; pip install lateprompt[excel], or save it "
            "as CSV (UTF-8)"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = book.worksheets[0]
    except Exception as error:  # the library raises what zipfile, its XML parsers and its own checks do
        raise LatePromptError(
            f"{path}: no readable Excel workbook ({first_line(error)}); save it again as .xlsx"
        ) from None
    sheet.reset_dimensions()  # the size that a file states may be wrong, or the largest that Excel allows
    rows = enumerate((list(row) for row in sheet.iter_rows(values_only=True)), 1)
    header, cells = next(((n, row) for n, row in rows if not all(map(is_blank, row))), (1, []))
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    padded = ((number, row + [None] * (len(names) - len(row))) for number, row in rows)  # empty cells at a row's end
    return named_table(str(path), "row", names, padded, header=header, typed_cells=True)
