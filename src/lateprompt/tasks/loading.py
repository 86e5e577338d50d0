"""Tasks by name, from a YAML file, or from what a run folder says."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from lateprompt.errors import LatePromptError
from lateprompt.suggestions import did_you_mean
from lateprompt.tasks.task import Task
from lateprompt.tasks.text_task import TextTask, is_text_task

AnyTask = Task | TextTask


def task_from_dict(data: object, source: str) -> AnyTask:
    """The task in a YAML file's content: one with labels, or one whose answers are texts.

    Args:
        data: what `Task.from_dict` or `TextTask.from_dict` reads.
        source: where it came from, for error messages.

    Raises:
        LatePromptError: anything that does not fit; the message names the source and the key and quotes the value.
    """
    return TextTask.from_dict(data, source) if is_text_task(data) else Task.from_dict(data, source)


def task_names() -> list[str]:
    """The names of the tasks that come with the package, sorted."""
    folder = resources.files("lateprompt.tasks") / "library"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_task(name_or_path: str) -> AnyTask:
    """A task that comes with the package, by its name, or one from a YAML file.

    Raises:
        LatePromptError: neither a known name nor a file, or a file that is no task.
    """
    names = task_names()
    if name_or_path in names:
        file = resources.files("lateprompt.tasks") / "library" / f"{name_or_path}.yaml"
        return _parse(file.read_bytes(), f"task {name_or_path}")
    path = Path(name_or_path)
    if not path.is_file():
        raise LatePromptError(
            f"task {str(name_or_path)!r} is unknown{did_you_mean(name_or_path, names)}; "
            f"choose one of {', '.join(names)}, or give a YAML file"
        )
    return _parse(path.read_bytes(), str(path))


def load_label_task(name_or_path: str) -> Task:
    """`load_task` for what works with labels only.

    Raises:
        LatePromptError: as `load_task`, or a task whose answers are texts.
    """
    task = load_task(name_or_path)
    if not isinstance(task, Task):
        raise LatePromptError(
            f"task {name_or_path!r} has texts for answers; this works with labels: use lateprompt train"
        )
    return task


def _parse(content: bytes, source: str) -> AnyTask:
    try:
        text = content.decode("utf-8-sig")
        _refuse_doubled_keys(yaml.compose(text, Loader=yaml.SafeLoader), source)
        data = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise LatePromptError(f"{source}: not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise LatePromptError(f"{source}{line}: no valid YAML ({problem}); quote texts with braces or colons") from None
    return task_from_dict(data, source)


def _refuse_doubled_keys(node: yaml.Node | None, source: str) -> None:
    """PyYAML keeps the last of two equal keys without a word, which would lose a label."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[object] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise LatePromptError(f"{source}, line {key.start_mark.line + 1}: {key.value!r} occurs twice; keep one")
            seen.add(key.value)
        _refuse_doubled_keys(value, source)
