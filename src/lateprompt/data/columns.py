"""Which column of a data set holds which field (text, text_pair, label, target), and advice if none does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lateprompt.data.generation_task import TextTask
from lateprompt.data.task_library import AnyTask
from lateprompt.utils.errors import LatePromptError

Columns = Mapping[str, str]
FIELDS = ("text", "text_pair", "label", "target")
# Common names of these columns. They only serve for advice: a guess could be wrong without anybody noticing.
USUAL = {
    "text": (
        *("text", "sentence", "sentence1", "question1", "premise", "question", "review", "content", "body", "comment"),
        *("tweet", "message", "document", "input", "utterance", "abstract", "description", "title", "headline"),
    ),
    "text_pair": ("text_pair", "sentence2", "question2", "hypothesis", "text2", "context", "answer"),
    "label": (
        *("label", "labels", "target", "class", "category", "y", "sentiment", "intent", "tag", "gold_label", "topic"),
        *("classification", "rating", "score", "stars", "type", "outcome"),
    ),
    "target": ("target", "output", "answer", "response", "completion", "summary", "label"),
}


def chosen_columns(task: AnyTask | None, columns: Mapping[str, str | None] | None = None) -> Columns:
    """Return the columns that the user has named, in this call or when the task was made.

    Args:
        task: its `chosen_columns` apply where `columns` has no entry.
        columns: field to column name; None: not chosen.

    Raises:
        LatePromptError: an unknown field, a blank name, or one column for two fields.
    """
    own = {} if task is None else task.chosen_columns
    given = {field: name for field, name in (columns or {}).items() if name is not None}
    for field, name in given.items():
        if field not in FIELDS or not isinstance(name, str) or not name.strip():
            raise LatePromptError(f"columns {field!r}: {name!r} is no column; map {', '.join(FIELDS)} to column names")
    chosen = {**own, **{field: name.strip() for field, name in given.items()}}
    if len(set(chosen.values())) < len(chosen):
        name = next(name for name in chosen.values() if list(chosen.values()).count(name) > 1)
        fields = " and ".join(field for field, other in chosen.items() if other == name)
        raise LatePromptError(f"column {name!r} is chosen for {fields}; choose a column for each")
    if "label" in chosen and "target" in chosen:
        raise LatePromptError(
            f"columns {chosen['label']!r} for label and {chosen['target']!r} for target: rows have one of them; "
            "choose --label-column for classes, --target-column for texts to be written"
        )
    return chosen


def with_columns(task: AnyTask, columns: Mapping[str, str | None]) -> AnyTask:
    """Return the task with the chosen columns in it, so that rows read for it later come from the same columns.

    Raises:
        LatePromptError: as `chosen_columns`, or a label column for a task whose answers are texts, or the reverse.
    """
    chosen = chosen_columns(task, columns)
    other = "label" if isinstance(task, TextTask) else "target"
    if other in chosen:
        kind = "texts to be written" if other == "label" else "labels"
        raise LatePromptError(
            f"--{other}-column {chosen[other]!r}: task {task.name!r} has {kind} for answers; leave the option out"
        )
    return replace(task, chosen_columns=dict(chosen)) if chosen else task


def find_columns(names: Collection[str], task: AnyTask | None, chosen: Columns | None = None) -> Columns:
    """Map each field to its column: the one the user chose, else the field's own name, else the task's name for it.

    The task's names count only where there is no column `text`. GLUE's tasks name all columns of their files together;
    a text-to-text task may name single columns.
    """
    own = {} if task is None else task.columns
    there = _by_name(names)
    if isinstance(task, TextTask):
        found = {field: field if field in there else own.get(field, field) for field in FIELDS}
    elif "text" not in there and own.get("text") in there:
        found = {field: own.get(field, field) for field in FIELDS}
    else:
        found = {field: field for field in FIELDS}
    return {field: there.get(name, name) for field, name in {**found, **(chosen or {})}.items()}


def _by_name(names: Collection[str]) -> Mapping[str, str]:
    """Map column names without surrounding space to the names as they are; an exact name wins."""
    return {**{name.strip(): name for name in names if isinstance(name, str)}, **{name: name for name in names}}


def is_own_layout(names: Collection[str], task: AnyTask | None, chosen: Columns) -> bool:
    """Return whether a file has the columns of the task's own data, as GLUE's files do."""
    own = None if task is None else task.columns.get("text")
    return own is not None and own != "text" and own in names and find_columns(names, task, chosen)["text"] == own


def has_target(names: Collection[str], task: AnyTask | None, chosen: Columns) -> bool:
    """Return whether the answers are texts: by the task, else by the chosen columns, else by the columns' names."""
    if task is not None:
        return isinstance(task, TextTask)
    if "label" in chosen or "target" in chosen:
        return "target" in chosen
    there = _by_name(names)
    return "target" in there and "label" not in there


def advice(field: str, names: Collection[str], columns: Columns, *, or_else: str = "") -> str:
    """Return advice for an error message: which column may be meant, and how to choose it; "" without a likely one.

    Args:
        field: the field whose column is missing.
        names: the columns that are there.
        columns: field to the column that was found or expected.
        or_else: further advice if there is no likely column.
    """
    taken = {name for other, name in columns.items() if other != field}
    free = {name.strip().casefold(): name for name in names if isinstance(name, str) and name not in taken}
    found = next((free[name] for name in USUAL[field] if name in free), None)
    if found is None:
        option = f"name it with --{field.replace('_', '-')}-column" if names else ""
        return "".join(f"; {part}" for part in (or_else, option) if part)
    option = f"--{field.replace('_', '-')}-column {found}"
    return f"; if {found!r} holds it, give {option} (in Python: columns={{{field!r}: {found!r}}})"
