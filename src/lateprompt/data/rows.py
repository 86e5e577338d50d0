"""Read labelled or unlabelled rows from a file or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from lateprompt.data.characters import check_characters
from lateprompt.data.columns import Columns, advice, answer_field, chosen_columns, find_columns
from lateprompt.data.formats import SUFFIXES, read_table
from lateprompt.data.formats.tables import Table, Unreadable
from lateprompt.data.hub import is_hub_id, read_hub
from lateprompt.data.labels import is_list, label_name, listed_labels
from lateprompt.data.task import Task
from lateprompt.data.task_library import AnyTask
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import is_file, kind_of
from lateprompt.utils.suggestions import some_of

__all__ = ["BadRow", "Row", "check_characters", "iter_rows", "read_rows"]


FORMULA_ERRORS = ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A")


@dataclass(frozen=True, slots=True)
class Row:
    """One text or pair of texts.

    Args:
        text: the text.
        text_pair: the second text, for pairs.
        label: the label's name, if known.
        source: all columns of the row, as they were read.
        target: in a text-to-text task, the text to be written, if known.
        labels: in a multi-label task, the names of the text's labels, perhaps none; None: not known.

    Example:
        >>> from lateprompt.data import Row
        >>> Row("a gem .", label="positive").text_pair is None
        True
    """

    text: str
    text_pair: str | None = None
    label: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, as `iter_rows` gives with `on_error="skip"`.

    Args:
        number: its line or row number, from 1.
        unit: what `number` counts: `line` or `row`.
        source: the columns that could be read; perhaps none.
        error: what is wrong, in one line, without file and number.

    Example:
        >>> from pathlib import Path
        >>> from lateprompt.data import BadRow, iter_rows
        >>> _ = Path("reviews.csv").write_text("text,label\\na gem .,positive\\n,negative\\n")
        >>> [row.error for row in iter_rows("reviews.csv", on_error="skip") if isinstance(row, BadRow)]
        ["'text' is empty; every row needs a text"]
    """

    number: int
    unit: str
    source: Mapping[str, Any]
    error: str


def read_rows(
    data: str | Path,
    *,
    task: AnyTask | None = None,
    labelled: bool = True,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    any_label: bool = False,
) -> list[Row]:
    """Read all rows of a file, or of a data set on the Hugging Face hub, into a list.

    Args:
        data, task, labelled, split, columns, any_label: as in `iter_rows`, which says what files may look like.

    Raises:
        LatePromptError: nothing there, or a row that does not fit; the message names the file and the line.

    Example:
        >>> from pathlib import Path
        >>> from lateprompt.data import read_rows
        >>> _ = Path("reviews.csv").write_text("text,label\\na gem .,positive\\ndull .,negative\\n")
        >>> [(row.text, row.label) for row in read_rows("reviews.csv")]
        [('a gem .', 'positive'), ('dull .', 'negative')]
    """
    return list(iter_rows(data, task=task, labelled=labelled, split=split, columns=columns, any_label=any_label))


@overload
def iter_rows(
    data: str | Path,
    *,
    task: AnyTask | None = None,
    labelled: bool = True,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    any_label: bool = False,
    on_error: Literal["stop"] = "stop",
) -> Iterator[Row]: ...
@overload
def iter_rows(
    data: str | Path,
    *,
    task: AnyTask | None = None,
    labelled: bool = True,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    any_label: bool = False,
    on_error: str,
) -> Iterator[Row | BadRow]: ...
def iter_rows(
    data: str | Path,
    *,
    task: AnyTask | None = None,
    labelled: bool = True,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    any_label: bool = False,
    on_error: str = "stop",
) -> Iterator[Row | BadRow]:
    """Read the rows of a file one after the other; memory does not grow with the file.

    Files are JSON lines (.jsonl, .ndjson), .json (an array of objects, or JSON lines), .csv and .tsv (each also with
    .gz), .parquet and .xlsx (its first sheet). A name without a suffix is a data set on the Hugging Face hub.

    Columns are `text`, `text_pair`, and `label`, `labels` (several a row) or (text-to-text) `target`, or those given by
    `columns`; if there is no `text`, those that the task names (for GLUE's files). `labels` is a list, or a text of
    labels with `|` between them, and may be empty; without a task, a `label` that is a list is read as `labels`.
    GLUE's own .tsv files are read without quoting, and MNLI's rows without an agreed label (`-`) are left out. Labels
    are spelled as `lateprompt.data.label_name` says.

    Args:
        data: a file, or `name`, `org/name`, `org/name:config` on the hub.
        task: the task whose labels and columns are expected; None: any label, and pairs are optional.
        labelled: whether each row needs a label (or a target). If not, a label that the task does not have is ignored.
        split: the split of a data set on the hub.
        columns: field (`text`, `text_pair`, `label`, `labels`, `target`) to the column that holds it.
        any_label: whether labels that the task does not have are allowed.
        on_error: `stop` raises at the first row that does not fit; `skip` gives a `BadRow` in its place.

    Raises:
        LatePromptError: nothing there, no such column, or (stop) a row that does not fit; the message names the file
            and the line. A quote that makes the rest of a file unreadable is raised with `skip` too.

    Example:
        >>> from pathlib import Path
        >>> from lateprompt.data import iter_rows
        >>> _ = Path("reviews.csv").write_text("id,review\\n1,a gem .\\n2,dull .\\n")
        >>> for row in iter_rows("reviews.csv", labelled=False, columns={"text": "review"}):
        ...     print(row.source["id"], row.text)
        1 a gem .
        2 dull .
    """
    if on_error not in ("stop", "skip"):
        raise LatePromptError(f"on_error {on_error!r} is unknown; choose stop or skip")
    chosen = chosen_columns(task, columns)
    table = open_table(data, task, split, chosen)
    rows = RowReader(table, task, labelled, chosen, any_label)
    if table.names is not None:
        rows.check_columns(table.names)
    return rows.read(skip=on_error == "skip")


def open_table(data: str | Path, task: AnyTask | None, split: str, chosen: Columns) -> Table:
    """Open a file or a data set of the hub; arguments and errors as in `iter_rows`."""
    path = Path(data)
    if is_file(path):
        return read_table(path, task, chosen)
    kind = kind_of(path)
    if kind is not None:
        raise LatePromptError(f"{path} is {kind}; give a file ({SUFFIXES})")
    if is_hub_id(str(data)):
        return read_hub(str(data), task, split, chosen)
    raise LatePromptError(f"{str(data)[:200]!r} does not exist; give a file ({SUFFIXES}) or a data set of the hub")


class RowReader:
    """Turn a table's records into rows.

    Args:
        table: the table.
        task, labelled, any_label: as in `iter_rows`.
        chosen: field to the column that the user has chosen.
    """

    def __init__(
        self, table: Table, task: AnyTask | None, labelled: bool, chosen: Columns, any_label: bool = False
    ) -> None:
        self.table = table
        self.task = task
        self.labelled = labelled
        self.chosen = chosen
        self.any_label = any_label
        self._labels = frozenset(task.labels) if isinstance(task, Task) else None
        self._columns: Columns = {}
        self._answer = "label"  # the field of the answers
        self._keys: tuple[str, ...] | None = None
        self._before: str | None = None

    def check_columns(self, names: Any) -> None:
        """Raise LatePromptError for a missing column, rather than for the first row."""
        columns = self._find(names)
        answer = answer_field(names, self.task, self.chosen)
        pair = (self.task is not None and self.task.is_pair) or "text_pair" in self.chosen
        needed = ["text", *(["text_pair"] if pair else []), *([answer] if self.labelled else [])]
        for field_name in needed:
            column = columns[field_name]
            if column not in names:
                found = ", ".join(map(str, names)) or "none"
                header = "the first line must name the columns"
                raise LatePromptError(
                    f"{self.table.data}, line 1: there is no column {column!r}; the columns are {found[:300]}"
                    f"{advice(field_name, names, columns, or_else=header)}"
                )

    def read(self, *, skip: bool) -> Iterator[Row | BadRow]:
        """Yield the rows and, with `skip`, a `BadRow` in place of each that does not fit."""
        table, empty = self.table, True
        for number, record in table.entries:
            try:
                if isinstance(record, Unreadable):
                    raise LatePromptError(record.error)
                row = self.row(record)
            except LatePromptError as error:
                if not skip or (isinstance(record, Unreadable) and record.final):
                    raise LatePromptError(f"{table.data}, {table.unit} {number}: {error}") from None
                source = record.source if isinstance(record, Unreadable) else record
                empty = False
                yield BadRow(number, table.unit, source, str(error))
                continue
            if row is not None:
                empty = False
                yield row
        if empty:
            raise LatePromptError(f"{table.data} is empty: line 1 or later should have a row; give at least one")

    def _find(self, names: Any) -> Columns:
        return self.table.columns or find_columns(names, self.task, self.chosen)

    def row(self, record: Mapping[str, Any]) -> Row | None:
        """Turn a record into a row; None if it is to be left out."""
        keys = tuple(record)
        if keys != self._keys:
            self._keys, self._columns = keys, self._find(record)
            self._answer = self._answer_field(record)
        self._check_answers(record)
        columns, task = self._columns, self.task
        text = self._text(record, "text")
        if text is None:
            raise LatePromptError(self._missing(record, "text", "every row needs a text"))
        text_pair = self._text(record, "text_pair")
        if text_pair is None and task is not None and task.is_pair:
            raise LatePromptError(self._missing(record, "text_pair", f"task {task.name} reads pairs of texts"))
        if self._answer == "target":
            return Row(text, text_pair, None, record, self._target(record))
        if self._answer == "labels":
            return Row(text, text_pair, None, record, None, self._labels_of(record) if self.labelled else None)
        if not self.labelled:
            return Row(text, text_pair, self._known_label(record), record)
        label = self._label(record)
        # MNLI's mark for a row whose annotators did not agree.
        if label == "-" and columns["label"] == "gold_label":
            return None
        return Row(text, text_pair, label, record)

    def _answer_field(self, record: Mapping[str, Any]) -> str:
        """The field of the answers; rows without this column have it by the rows before them."""
        if self._before == "labels" and self._columns["labels"] not in record:
            return "labels"
        return answer_field(record, self.task, self.chosen)

    def _check_answers(self, record: Mapping[str, Any]) -> None:
        """Raise LatePromptError if this row has a label and the rows before targets or lists of labels, or the like."""
        if self._answer == "label" and self.task is None and is_list(record.get(self._columns["label"])):
            self._answer, self._columns = "labels", {**self._columns, "labels": self._columns["label"]}
        if self.labelled and self._before is not None and self._answer != self._before:
            kinds = {"label": "a label", "labels": "a list of labels", "target": "a target"}
            raise LatePromptError(
                f"this row has {kinds[self._answer]}, the rows before it {kinds[self._before]}; give all rows one of "
                "them"
            )
        self._before = self._answer

    def _text(self, record: Mapping[str, Any], field_name: str) -> str | None:
        column = self._columns[field_name]
        value = record.get(column)
        self._check_cell(column, value)
        if isinstance(value, str):
            return value if value.strip() else None
        if value is None or value != value:  # NaN is a gap
            return None
        if self.table.typed_cells and isinstance(value, int | float):
            return str(value)
        raise LatePromptError(f"{column!r} is {type(value).__name__} {str(value)[:60]!r}, not a string; give a text")

    def _check_cell(self, column: str, value: Any) -> None:
        """Raise LatePromptError for an error that a spreadsheet shows in place of a formula's value."""
        if self.table.typed_cells and value in FORMULA_ERRORS:
            raise LatePromptError(f"{column!r} is the error {value!r} of a formula; mend it in the sheet")

    def _target(self, record: Mapping[str, Any]) -> str | None:
        column = self._columns["target"]
        value = record.get(column)
        if not self.labelled:
            return value if isinstance(value, str) and value.strip() else None
        if value is not None and not isinstance(value, str) and "target" not in self.chosen and self.task is None:
            raise LatePromptError(
                f"{column!r} is {type(value).__name__} {str(value)[:60]!r}, not a text to be written; if it is a "
                f"class, give --label-column {column} (in Python: columns={{'label': {column!r}}})"
            )
        target = self._text(record, "target")
        if target is None:
            raise LatePromptError(self._missing(record, "target", "every row needs a target here"))
        return target

    def _label(self, record: Mapping[str, Any]) -> str:
        """Return the label's name in the task; raise LatePromptError for none, or an unknown one."""
        names = self._label_names(record)
        if not names:
            raise LatePromptError(self._missing(record, "label", "every row needs a label here"))
        known = self._in_task(names)
        if known is None and self.any_label:
            return names[0]
        if known is None:
            raise self._unknown(names[0])
        return known

    def _unknown(self, name: str) -> LatePromptError:
        assert isinstance(self.task, Task)
        return LatePromptError(
            f"label {name!r} is none of task {self.task.name}; its labels are {some_of(self.task.labels)}"
        )

    def _labels_of(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of a row's labels, each once; raise LatePromptError for an unknown one."""
        column = self._columns["labels"]
        if column not in record:
            raise LatePromptError(self._missing(record, "labels", "give a row without labels an empty list"))
        found: dict[str, None] = {}
        for names in self.listed_names(record, column):
            known = self._in_task(names)
            if known is None and not self.any_label:
                raise self._unknown(names[0])
            found[names[0] if known is None else known] = None
        return tuple(found)

    def _known_label(self, record: Mapping[str, Any]) -> str | None:
        """Return the label if the task has it, else None."""
        try:
            return self._in_task(self._label_names(record))
        except LatePromptError:  # no label at all: a list, half a character
            return None

    def _label_names(self, record: Mapping[str, Any]) -> list[str]:
        """Return the possible names of a row's label."""
        return self.label_names(record, self._columns["label"])

    def label_names(self, record: Mapping[str, Any], column: str) -> list[str]:
        """Return the possible names of a row's label: its class's name, if the data set has names, then itself."""
        return self._names_of(record.get(column), column)

    def listed_names(self, record: Mapping[str, Any], column: str) -> list[list[str]]:
        """Return the possible names of each label of a cell that holds several; gaps are left out."""
        try:
            found = [self._names_of(raw, column) for raw in listed_labels(record.get(column))]
        except LatePromptError as error:
            raise LatePromptError(f"column {column!r}: {error}") from None
        return [names for names in found if names]

    def _names_of(self, raw: Any, column: str) -> list[str]:
        """Return the possible names of a raw label."""
        self._check_cell(column, raw)
        own = label_name(raw)
        names = self.table.class_names.get(column)
        if own is None or names is None or not isinstance(raw, int):
            return [] if own is None else [own]
        named = label_name(names[raw]) if 0 <= raw < len(names) else None  # -1 marks a hidden label
        return [] if named is None else [named, own]

    def _in_task(self, names: list[str]) -> str | None:
        """Return the first name that is a label of the task; without a task, the first."""
        if self._labels is None or not isinstance(self.task, Task):
            return names[0] if names else None
        for name in names:
            # label_map is for the numbers in the task's own files; names of classes go before it.
            mapped = self.task.label_map.get(name) if name == names[0] else None
            label = name if name in self._labels else mapped
            if label is not None:
                return label
        mark = self._answer == "label" and self._columns["label"] == "gold_label"
        return "-" if self.labelled and names[:1] == ["-"] and mark else None

    def _missing(self, record: Mapping[str, Any], field_name: str, why: str) -> str:
        column = self._columns[field_name]
        if column in record:
            return f"{column!r} is empty; {why}"
        found = ", ".join(map(str, record)) or "nothing"
        return f"{column!r} is missing (found: {found[:300]}); {why}{advice(field_name, record, self._columns)}"
