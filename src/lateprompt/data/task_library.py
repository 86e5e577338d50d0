"""Load a task by its name, from a YAML file, or from a run folder."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from lateprompt.data.generation_task import TextTask, is_text_task
from lateprompt.data.task import Task
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import check_file, is_file, kind_of
from lateprompt.utils.suggestions import did_you_mean
from lateprompt.utils.yaml_files import parse_yaml, read_yaml

AnyTask = Task | TextTask
AS_TEXT = ("labels", "label_words", "label_map", "columns", "chosen_columns")
"""Keys of a task file whose values are read as text, so that YAML makes no boolean or number of a label."""


def task_from_dict(data: object, source: str) -> AnyTask:
    """Make a task from the content of a YAML file: one with labels, or one whose answers are texts.

    Args:
        data: what `Task.from_dict` or `TextTask.from_dict` reads.
        source: where it came from, for error messages.

    Raises:
        LatePromptError: anything that does not fit; the message names the source and the key and quotes the value.

    Example:
        >>> from lateprompt.data import task_from_dict
        >>> task_from_dict({"name": "reviews", "labels": {"0": "terrible", "1": "great"}}, "my task").label_words
        ('terrible', 'great')
    """
    return TextTask.from_dict(data, source) if is_text_task(data) else Task.from_dict(data, source)


def task_names() -> list[str]:
    """Return the names of the tasks that come with the package, sorted.

    Example:
        >>> from lateprompt.data import task_names
        >>> "sst2" in task_names()
        True
    """
    folder = resources.files("lateprompt.data") / "library"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_task(name_or_path: str) -> AnyTask:
    """Load a task that comes with the package, by its name, or one from a YAML file.

    Raises:
        LatePromptError: neither a known name nor a file, or a file that is no task.

    Example:
        >>> from lateprompt.data import load_task
        >>> load_task("sst2").labels
        ('negative', 'positive')
    """
    names = task_names()
    if not isinstance(name_or_path, str | os.PathLike):
        raise LatePromptError(
            f"task {str(name_or_path)[:200]!r} is no name; give one of {', '.join(names)}, or a YAML file"
        )
    if name_or_path in names:
        file = resources.files("lateprompt.data") / "library" / f"{name_or_path}.yaml"
        text = file.read_text(encoding="utf-8")
        return task_from_dict(parse_yaml(text, f"task {name_or_path}", as_text=AS_TEXT), f"task {name_or_path}")
    path = Path(name_or_path)
    if not is_file(path):
        if str(name_or_path).strip() and kind_of(path):
            check_file(path, "task file")
        raise LatePromptError(
            f"task {str(name_or_path)[:200]!r} is unknown{did_you_mean(str(name_or_path)[:200], names)}; "
            f"choose one of {', '.join(names)}, or give a YAML file"
        )
    return read_task_file(path)


def read_task_file(path: Path) -> AnyTask:
    """Read a task from a YAML file.

    Raises:
        LatePromptError: a file that cannot be read, or is no task.
    """
    return task_from_dict(read_yaml(path, "task file", as_text=AS_TEXT), str(path))


def load_label_task(name_or_path: str) -> Task:
    """Load a task with labels, as `load_task` does.

    Raises:
        LatePromptError: as `load_task`, or a task whose answers are texts.

    Example:
        >>> from lateprompt.data import load_label_task
        >>> load_label_task("rte").is_pair
        True
    """
    task = load_task(name_or_path)
    if not isinstance(task, Task):
        raise LatePromptError(
            f"task {name_or_path!r} has texts for answers; this works with labels: use lateprompt train"
        )
    return task
