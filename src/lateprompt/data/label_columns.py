"""Rows with the labels of several tasks: a column for each task, or one column that lists labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lateprompt.data.columns import Columns, chosen_columns, find_columns
from lateprompt.data.formats.tables import Table
from lateprompt.data.labels import BETWEEN_LABELS as BETWEEN_LABELS
from lateprompt.data.rows import Row, RowReader, open_table
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import did_you_mean


@dataclass(frozen=True)
class LabelledRows:
    """Rows with the labels of several tasks.

    Args:
        rows: the rows, without a label.
        labels: by column, each row's label; None: it has none.
        listed: each row's labels in the column that lists them; None: the row does not have this column.
    """

    rows: list[Row]
    labels: dict[str, list[str | None]]
    listed: list[list[str] | None]


def read_label_columns(
    data: str | Path,
    label_columns: Sequence[str],
    listed: str | None = None,
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    needed: bool = True,
) -> LabelledRows:
    """Read all rows of a file, or of a data set on the hub, with the labels of several tasks.

    Args:
        data, split, columns: as in `lateprompt.data.read_rows`; `columns` chooses those of the texts.
        label_columns: columns with one label a row, or an empty cell.
        listed: a column with a list of labels a row, or a text of labels with `|` between them.
        needed: whether some row must have a label in each of the columns.

    Raises:
        LatePromptError: as `read_rows`; a column with no label at all.

    Example:
        >>> from pathlib import Path
        >>> from lateprompt.data.label_columns import read_label_columns
        >>> _ = Path("rows.csv").write_text("text,mood,tags\\na gem .,good,film|short\\ndull .,,\\n")
        >>> found = read_label_columns("rows.csv", ["mood"], "tags")
        >>> found.labels, found.listed
        ({'mood': ['good', None]}, [['film', 'short'], []])
    """
    names = [*label_columns, *([] if listed is None else [listed])]
    for name in names:
        for field, column in (columns or {}).items():
            if name.strip() == (column or field).strip():
                raise LatePromptError(f"column {name!r} is chosen for labels and {field}; choose a column for each")
    # One of them is chosen as the label, so that no column called target is taken for texts to be written.
    chosen = chosen_columns(None, {**(columns or {}), "label": names[0]})
    table = open_table(data, None, split, chosen)
    reader = _LabelReader(table, chosen, label_columns, listed)
    if table.names is not None:
        reader.check_columns(table.names)
    rows = [row for row in reader.read(skip=False) if isinstance(row, Row)]
    found = LabelledRows(
        rows, {name: [labels[name] for labels in reader.labels] for name in label_columns}, reader.listed_labels
    )
    if needed:
        for name in names:
            own: Sequence[Any] = found.listed if name == listed else found.labels[name]
            if not any(own):
                raise LatePromptError(_without_labels(data, name, rows))
    return found


def _without_labels(data: str | Path, name: str, rows: Sequence[Row]) -> str:
    """What to say of a column without any label."""
    there = list(dict.fromkeys(str(key) for row in rows[:100] for key in row.source))
    if name in there:
        return f"{data}: no row has a label in column {name!r}; leave this column out"
    return f"{data}: there is no column {name!r}{did_you_mean(name, there)}; the columns are {', '.join(there)[:300]}"


class _LabelReader(RowReader):
    """Turns records into rows and keeps the labels of each.

    Args:
        table: the table.
        chosen: field to the column that the user has chosen.
        label_columns, listed: as in `read_label_columns`.
    """

    def __init__(self, table: Table, chosen: Columns, label_columns: Sequence[str], listed: str | None) -> None:
        super().__init__(table, None, False, chosen, True)
        self.label_columns, self.listed = label_columns, listed
        self.labels: list[dict[str, str | None]] = []
        self.listed_labels: list[list[str] | None] = []

    def row(self, record: Mapping[str, Any]) -> Row | None:
        found = super().row(record)
        if found is not None:
            self.labels.append({name: self._one(record, name) for name in self.label_columns})
            self.listed_labels.append(None if self.listed is None else self._several(record, self.listed))
            found = Row(found.text, found.text_pair, None, found.source)
        return found

    def _one(self, record: Mapping[str, Any], name: str) -> str | None:
        try:
            names = self.label_names(record, _column(record, name))
        except LatePromptError as error:
            raise LatePromptError(f"column {name!r}: {error}") from None
        return names[0] if names else None

    def _several(self, record: Mapping[str, Any], name: str) -> list[str] | None:
        column = _column(record, name)
        if column not in record:
            return None
        return list(dict.fromkeys(names[0] for names in self.listed_names(record, column)))


def _column(record: Mapping[str, Any], name: str) -> str:
    """The record's own name of a column, which may have space around it."""
    return name if name in record else find_columns(record, None, {"label": name})["label"]
