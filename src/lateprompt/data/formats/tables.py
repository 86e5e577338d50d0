"""`Table`: a data set as a stream of records with their line numbers, before they become rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lateprompt.data.columns import Columns
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that cannot be read.

    Args:
        error: what is wrong, without file and number.
        source: the columns that could be read.
        final: whether the rest of the file cannot be read either, so that the record cannot be skipped.
    """

    error: str
    source: Mapping[str, Any] = field(default_factory=dict)
    final: bool = False


Entry = tuple[int, Mapping[str, Any] | Unreadable]


@dataclass(frozen=True, slots=True)
class Table:
    """A data set as a stream of records.

    Args:
        data: the file, or the data set on the hub, for messages.
        entries: pairs of a line or row number, from 1, and the record (or `Unreadable`).
        unit: what the numbers count: `line` or `row`.
        names: the columns; None if each record has its own keys (JSON).
        columns: field to column, if the reader knows them; None: `find_columns` finds them.
        class_names: column to the names of its integer labels, if the data set has them.
        typed_cells: whether a number may be a text that a spreadsheet took for a number.
    """

    data: str
    entries: Iterator[Entry]
    unit: str
    names: Sequence[str] | None = None
    columns: Columns | None = None
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    typed_cells: bool = False

    @property
    def records(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the records; raise LatePromptError with file and line for one that cannot be read."""
        for number, record in self.entries:
            if isinstance(record, Unreadable):
                raise LatePromptError(f"{self.data}, {self.unit} {number}: {record.error}")
            yield number, record
