"""A Parquet file, row group by row group, that can be closed even when the disk is full."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lateprompt.predictors.outputs.columns import Columns, Line, Survey, plain_text, refuse_new_columns
from lateprompt.predictors.outputs.formats import Format
from lateprompt.predictors.outputs.sinks import names_of
from lateprompt.utils.errors import LatePromptError, first_line

GROUP = 10_000
"""Rows in a row group."""
_FOOTER = 1024
"""Bytes that the file's end takes for a column of a row group, at most: it has no statistics."""


class ParquetSink:
    """Rows in row groups; the types are those that the survey found, or those of the first row group."""

    def __init__(self, handle: int, form: Format, columns: Columns, survey: Survey | None) -> None:
        # By name, since pyarrow has no types; it comes with datasets.
        self._arrow: Any = import_module("pyarrow")
        self._file = os.fdopen(handle, "r+b", buffering=0)
        self._columns, self._survey = columns, survey
        self._writer: Any = None
        self._schema: Any = None
        self._waiting: list[Line] = []
        self._groups = 0
        self._broken = False
        self.rows = 0

    def write(self, lines: Sequence[Line]) -> None:
        self._waiting += lines
        if len(self._waiting) >= GROUP:
            self._write_group()

    def finish(self) -> None:
        if self._waiting or self._writer is None:
            self._write_group()
        self._close()

    def abort(self) -> None:
        """Nothing can be read of a Parquet file without its end: write it behind the last whole row group."""
        try:
            if self._waiting and not self._broken:
                self._write_group()
        except (OSError, LatePromptError):
            pass
        self._close()

    def _write_group(self) -> None:
        lines, arrow = self._waiting, self._arrow
        if self._schema is None:
            self._schema = self._schema_of(lines)
        known = dict.fromkeys(self._schema.names)
        self._broken = True
        for number, line in enumerate(lines, self.rows + 1):
            refuse_new_columns(line, known, ".parquet", number)
        arrays = [self._array(field, [line.get(field.name) for line in lines]) for field in self._schema]
        table = arrow.Table.from_arrays(arrays, schema=self._schema)
        self._reserve(table.nbytes)
        if self._writer is None:
            parquet: Any = import_module("pyarrow.parquet")
            self._writer = parquet.ParquetWriter(self._file, self._schema, write_statistics=False)
        self._writer.write_table(table)
        self._groups += 1
        self.rows += len(lines)
        self._waiting = []
        self._broken = False

    def _reserve(self, size: int) -> None:
        """Take the place that this row group and the file's end need, or fail before anything is written of it."""
        end = _FOOTER * (64 + len(self._schema) * (self._groups + 2))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), self._file.tell(), size + size // 8 + end)

    def _close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            self._file.truncate()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _schema_of(self, lines: Sequence[Line]) -> Any:
        if self._survey is not None:
            names = self._columns.header(self._survey)
            pairs = zip(names, self._survey.columns.values(), strict=False)  # ours have no kinds
            kinds: dict[str, set[type]] = dict(pairs)
        else:
            names = list(names_of(lines, self._columns))
            kinds = {name: {type(line[name]) for line in lines if name in line} for name in names}
        own = self._own_types()
        fields = [
            (name, own.get(name) or self._type(kinds[name], [line.get(name) for line in lines])) for name in names
        ]
        return self._arrow.schema(fields)

    def _own_types(self) -> Mapping[str, Any]:
        text, number = self._arrow.string(), self._arrow.float64()
        alone = {"score"} if self._columns.mistakes else set()
        return {name: number if name.startswith("score_") or name in alone else text for name in self._columns.own}

    def _type(self, kinds: set[type], values: Sequence[Any]) -> Any:
        """One type for a column: that of its values where they are alike, text where they are not."""
        arrow, kinds = self._arrow, kinds - {type(None)}
        text = arrow.string()
        if not kinds or kinds == {str}:
            return text
        if kinds == {bool}:
            return arrow.bool_()
        if kinds <= {int, float}:
            return arrow.float64() if float in kinds else self._fitting(arrow.int64(), values)
        if len(kinds) > 1:
            return text
        return self._fitting(None, values)

    def _fitting(self, kind: Any, values: Sequence[Any]) -> Any:
        try:
            found = self._arrow.array(values, kind).type
        except (self._arrow.ArrowException, OverflowError, TypeError):
            return self._arrow.string()
        if {type(value).__name__ for value in values if value is not None} in ({"Timestamp"}, {"Timedelta"}):
            # pandas', which pyarrow gives for nanoseconds alone, and takes for microseconds
            is_time = self._arrow.types.is_timestamp(found)
            return self._arrow.timestamp("ns", found.tz) if is_time else self._arrow.duration("ns")
        return self._arrow.string() if self._arrow.types.is_null(found) else found

    def _array(self, field: Any, values: Sequence[Any]) -> Any:
        if field.type == self._arrow.string():
            values = [plain_text(value) for value in values]
        try:
            return self._arrow.array(values, field.type)
        except (self._arrow.ArrowException, OverflowError, TypeError) as error:
            raise LatePromptError(
                f"column {field.name!r} has other values from row {self.rows + 1} on than before ({field.type}: "
                f"{first_line(error)}), and a .parquet column has one type; write .jsonl"
            ) from None
