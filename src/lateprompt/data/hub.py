"""Read data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lateprompt.data.columns import Columns
from lateprompt.data.formats.tables import Table
from lateprompt.data.task_library import AnyTask
from lateprompt.utils.errors import LatePromptError, first_line

# Usual names of the columns in data sets on the hub.
ALIASES = {
    "text": ("text", "sentence", "sentence1", "question1", "premise"),
    "text_pair": ("text_pair", "sentence2", "question2", "hypothesis"),
    "label": ("label",),
    "labels": ("labels",),
    "target": ("target",),
}


def is_hub_id(data: str) -> bool:
    """Return whether `data` looks like a data set's id (`name`, `org/name`, perhaps with `:config`), not a file."""
    match = re.fullmatch(r"([\w-]+(?:/[\w-][\w.-]*)?)(?::[\w.-]+)?", data)
    if match is None:
        return False
    # A name may end in a version (org/name-v1.1), but any other suffix means a file.
    suffix = match[1].rpartition(".")[2] if "." in match[1] else "0"
    return suffix.isdigit()


def read_hub(data: str, task: AnyTask | None, split: str, chosen: Columns) -> Table:
    """Open one split of a data set on the hub as a table.

    Args:
        data: `name` or `org/name`, perhaps with `:config`.
        task: its column names go before the usual names.
        split: the split's name.
        chosen: field to the column that the user has chosen, which goes before both.

    Raises:
        LatePromptError: the hub cannot be reached, or has no such data set, configuration or split.
    """
    datasets: Any = import_module("datasets")
    name, _, config = data.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises a dozen kinds, from its own and its HTTP client's
        raise LatePromptError(
            f"{data!r}: the file does not exist, and the Hugging Face hub could not be reached or has no such data set "
            f"or split {split!r} ({first_line(error)})"
        ) from None
    columns = {field: chosen.get(field) or _column(field, rows.column_names, task) for field in ALIASES}
    # Of a list of classes, those of its elements.
    of_values = {column: getattr(feature, "feature", feature) for column, feature in rows.features.items()}
    names = {column: getattr(feature, "names", None) for column, feature in of_values.items()}
    class_names = {column: list(found) for column, found in names.items() if found}
    return Table(data, iter(enumerate(rows, 1)), "row", rows.column_names, columns, class_names)


def _column(field: str, names: Sequence[str], task: AnyTask | None) -> str:
    usual = ALIASES[field]
    own = (task.columns[field],) if task is not None and field in task.columns else ()
    return next((name for name in (usual[0], *own, *usual[1:]) if name in names), field)
