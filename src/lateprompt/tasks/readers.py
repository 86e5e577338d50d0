"""Reads labelled or unlabelled rows from a file or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lateprompt.errors import LatePromptError
from lateprompt.tasks.hub import is_hub_id, read_hub
from lateprompt.tasks.loading import AnyTask
from lateprompt.tasks.tables import TABLES, Columns, Table, find_columns, read_table
from lateprompt.tasks.task import Task
from lateprompt.tasks.text_task import TextTask


@dataclass(frozen=True, slots=True)
class Row:
    """One text or pair of texts.

    Args:
        text: the text.
        text_pair: the second text, for pairs.
        label: the label's name, if known.
        source: the row as it was read.
        target: the text that answers, in a text-to-text task, if known.
    """

    text: str
    text_pair: str | None = None
    label: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None


def read_rows(
    data: str | Path, *, task: AnyTask | None = None, labelled: bool = True, split: str = "train"
) -> list[Row]:
    """The rows of a file (.jsonl, .json, .csv, .tsv, .parquet) or of a data set on the Hugging Face hub.

    Columns are `text`, `text_pair`, and `label` or (text-to-text) `target`; where there is no `text`, the task's own
    columns (GLUE's files). GLUE's own .tsv files are read without quoting, and MNLI's rows without an agreed label
    (`-`) are left out.

    Args:
        data: a file, or `name`, `org/name`, `org/name:config` on the hub.
        task: its labels and columns; None: any label, no pairs needed.
        labelled: whether each row needs a label (or a target). If not, it may be missing, but a label that is there
            must be known.
        split: the split of a data set on the hub.

    Raises:
        LatePromptError: nothing there, or a row that does not fit; the message names the file and the line.
    """
    path = Path(data)
    if path.is_file():
        table = read_table(path, task)
    elif path.exists():
        raise LatePromptError(f"{path} is a folder; give a file ({', '.join(TABLES)})")
    elif is_hub_id(str(data)):
        table = read_hub(str(data), task, split)
    else:
        raise LatePromptError(
            f"{str(data)!r} does not exist; give a file ({', '.join(TABLES)}) or a data set of the hub"
        )
    if table.names is not None:
        _check_columns(str(data), table, task, labelled)
    rows = []
    written: bool | None = None
    for number, record in table.records:
        columns = table.columns or find_columns(record, task)
        try:
            written = _same_answers(record, task, labelled, written)
            row = _row(record, columns, table, task, labelled)
        except LatePromptError as error:
            raise LatePromptError(f"{data}, {table.unit} {number}: {error}") from None
        if row is not None:
            rows.append(row)
    if not rows:
        raise LatePromptError(f"{data} is empty: line 1 or later should have a row; give at least one")
    return rows


def _check_columns(data: str, table: Table, task: AnyTask | None, labelled: bool) -> None:
    """Finds a missing column before the first row is blamed for it."""
    names = table.names or []
    columns = table.columns or find_columns(names, task)
    answer = "target" if _has_target(names, task) else "label"
    needed = ["text", *(["text_pair"] if task is not None and task.is_pair else []), *([answer] if labelled else [])]
    for field_name in needed:
        if columns[field_name] not in names:
            found = ", ".join(names) or "none"
            raise LatePromptError(
                f"{data}, line 1: there is no column {columns[field_name]!r}; the columns are {found}"
            )


def _has_target(names: Container[str], task: AnyTask | None) -> bool:
    """Whether rows with these columns are answered by a text: as their task says, or else the columns."""
    return isinstance(task, TextTask) or (task is None and "target" in names and "label" not in names)


def _same_answers(record: Mapping[str, Any], task: AnyTask | None, labelled: bool, before: bool | None) -> bool:
    """Whether a row is answered by a text; LatePromptError where the rows before are answered in another way."""
    written = _has_target(record, task)
    if labelled and before is not None and written != before:
        kinds = ("a label", "a target")
        raise LatePromptError(
            f"this row has {kinds[written]}, the rows before it {kinds[before]}; give all rows one of them"
        )
    return written


def _row(record: Mapping[str, Any], columns: Columns, table: Table, task: AnyTask | None, labelled: bool) -> Row | None:
    """One row, or None where it is to be left out."""
    text = _text(record, columns["text"])
    if text is None:
        raise LatePromptError(_missing(record, columns["text"], "every row needs a text"))
    text_pair = _text(record, columns["text_pair"])
    if text_pair is None and task is not None and task.is_pair:
        raise LatePromptError(_missing(record, columns["text_pair"], f"task {task.name} reads pairs of texts"))
    if _has_target(record, task):
        target = _text(record, columns["target"])
        if target is None and labelled:
            raise LatePromptError(_missing(record, columns["target"], "every row needs a target here"))
        return Row(text, text_pair, None, record, target)
    label = _label(record.get(columns["label"]), table)
    # MNLI's mark for a row whose annotators did not agree.
    if label == "-" and columns["label"] == "gold_label":
        if labelled:
            return None
        label = None
    if label is None:
        if labelled:
            raise LatePromptError(_missing(record, columns["label"], "every row needs a label here"))
    elif isinstance(task, Task) and label not in task.labels:
        label = task.label_map.get(label, label)
        if label not in task.labels:
            raise LatePromptError(
                f"label {label!r} is none of task {task.name}; its labels are {', '.join(task.labels)}"
            )
    return Row(text, text_pair, label, record)


def _missing(record: Mapping[str, Any], column: str, why: str) -> str:
    if column in record:
        return f"{column!r} is empty; {why}"
    return f"{column!r} is missing (found: {', '.join(map(str, record)) or 'nothing'}); {why}"


def _text(record: Mapping[str, Any], column: str) -> str | None:
    value = record.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise LatePromptError(f"{column!r} is {type(value).__name__} {str(value)[:60]!r}, not a string; give a text")
    check_characters(value, repr(column))
    return value


def check_characters(text: str, where: str) -> None:
    """Raise LatePromptError for a text that no file can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise LatePromptError(
                f"{where} has half a surrogate pair, which is no character; repair the text"
            ) from None


def _label(value: Any, table: Table) -> str | None:
    """A raw label as a string: JSON's `true` stays `true`, 1.0 (how tools write integers beside gaps) becomes `1`."""
    if value is None or value != value:  # NaN is a gap too
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and table.class_names is not None:
        # -1 is how `datasets` marks a hidden label.
        return table.class_names[value] if 0 <= value < len(table.class_names) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise LatePromptError(f"label {str(value)[:60]!r} is {type(value).__name__}, not a name; give a string")
    return str(value).strip() or None
