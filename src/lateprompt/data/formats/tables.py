"""A data set as a stream of records, as they stand in its file, with their line numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lateprompt.data.columns import Columns
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands where a record should be.

    Args:
        error: what is wrong, without the place.
        source: what could be read of it.
        final: whether what follows cannot be read either: it cannot be skipped.
    """

    error: str
    source: Mapping[str, Any] = field(default_factory=dict)
    final: bool = False


Entry = tuple[int, Mapping[str, Any] | Unreadable]


@dataclass(frozen=True, slots=True)
class Table:
    """Records of one data set, one after the other.

    Args:
        data: the file or the hub's data set, for messages.
        entries: pairs of a 1-based line (or row) number and the record, or what cannot be read.
        unit: what is counted: `line` or `row`.
        names: the columns, or None where every record has its own keys (JSON).
        columns: our field to a column, where a reader knows better than `find_columns`.
        class_names: column to the names of its integer labels, where the data set has them.
        typed_cells: whether numbers may be texts that a spreadsheet took for numbers.
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
        """The records; LatePromptError with file and line for what cannot be read."""
        for number, record in self.entries:
            if isinstance(record, Unreadable):
                raise LatePromptError(f"{self.data}, {self.unit} {number}: {record.error}")
            yield number, record
