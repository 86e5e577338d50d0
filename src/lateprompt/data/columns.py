"""Which column of a data set holds which field (text, text_pair, label, target), and advice if none does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lateprompt.data.generation_task import TextTask
from lateprompt.data.task import MultiLabelTask
from lateprompt.data.task_library import AnyTask
from lateprompt.utils.errors import LatePromptError

Columns = Mapping[str, str]
FIELDS = ("text", "text_pair", "label", "labels", "target")
ANSWERS = {"label": "classes", "labels": "lists of labels", "target": "texts to be written"}
"""The fields of which a row has one, and what they hold."""
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
    "labels": ("labels", "tags", "label", "categories", "topics", "classes", "genres", "emotions"),
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
    if isinstance(task, MultiLabelTask) and "label" in chosen:  # the one column that it can mean
        chosen = {**chosen, "labels": chosen["label"]}
        del chosen["label"]
    if len(set(chosen.values())) < len(chosen):
        name = next(name for name in chosen.values() if list(chosen.values()).count(name) > 1)
        fields = " and ".join(field for field, other in chosen.items() if other == name)
        raise LatePromptError(f"column {name!r} is chosen for {fields}; choose a column for each")
    answers = [field for field in ANSWERS if field in chosen]
    if len(answers) > 1:
        first, second = answers[0], answers[-1]
        raise LatePromptError(
            f"columns {chosen[first]!r} for {first} and {chosen[second]!r} for {second}: rows have one of them; "
            "choose --label-column for classes, --target-column for texts to be written"
        )
    return chosen


def with_columns(task: AnyTask, columns: Mapping[str, str | None]) -> AnyTask:
    """Return the task with the chosen columns in it, so that rows read for it later come from the same columns.

    Raises:
        LatePromptError: as `chosen_columns`, or a label column for a task whose answers are texts, or the reverse.
    """
    chosen = chosen_columns(task, columns)
    own = answer_of(task)
    other = next((field for field in ANSWERS if field in chosen and field != own), None)
    if other is not None:
        kind = {"label": "one label a row", "labels": "several labels a row"}.get(own, ANSWERS[own])
        option = "--labels-per-row several with" if other == "labels" else f"--{other}-column"
        raise LatePromptError(
            f"{option} {chosen[other]!r}: task {task.name!r} has {kind} for answers; leave the option out"
        )
    return replace(task, chosen_columns=dict(chosen)) if chosen else task


def answer_of(task: AnyTask) -> str:
    """Return the field that holds a task's answers."""
    if isinstance(task, TextTask):
        return "target"
    return "labels" if isinstance(task, MultiLabelTask) else "label"


def find_columns(names: Collection[str], task: AnyTask | None, chosen: Columns | None = None) -> Columns:
    """Map each field to its column: the one the user chose, else the field's own name, else the task's name for it.

    The task's names count only where there is no column `text`. GLUE's tasks name all columns of their files together;
    a text-to-text or multi-label task may name single columns.
    """
    own = {} if task is None else task.columns
    there = _by_name(names)
    if isinstance(task, TextTask | MultiLabelTask):
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


def answer_field(names: Collection[str], task: AnyTask | None, chosen: Columns) -> str:
    """Return the field of the answers (`ANSWERS`): by the task, else by the chosen columns, else by the names."""
    if task is not None:
        return answer_of(task)
    there = _by_name(names)
    given = next((field for field in ANSWERS if field in chosen), None)
    return given or next((field for field in ("label", "target", "labels") if field in there), "label")


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
        option = f"name it with --{'label' if field == 'labels' else field.replace('_', '-')}-column" if names else ""
        return "".join(f"; {part}" for part in (or_else, option) if part)
    option = f"--{'label' if field == 'labels' else field.replace('_', '-')}-column {found}"
    return f"; if {found!r} holds it, give {option} (in Python: columns={{{field!r}: {found!r}}})"


def has_target(names: Collection[str], task: AnyTask | None, chosen: Columns) -> bool:
    """Return whether the answers are texts."""
    return answer_field(names, task, chosen) == "target"
