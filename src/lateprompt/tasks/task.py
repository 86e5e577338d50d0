"""A task: what is asked about a text (templates) and the words that answer it (label words)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lateprompt.tasks.template import check_template

HEAD_SINGLE = "{text}"
HEAD_PAIR = "{text} {sep} {text_pair}"
PLAIN_SINGLE = ("{text} . It was {mask} .", "{text} It was {label} .")
PLAIN_PAIR = ("{text} ? {mask} , {text_pair}", "{text} {text_pair} They are {label} .")
REQUIRED_KEYS = ("name", "labels")
TEMPLATE_KEYS = ("template", "decoder_template", "head_template")
OPTIONAL_KEYS = (*TEMPLATE_KEYS, "label_words", "metrics", "columns", "label_map")
DATA_FIELDS = ("text", "text_pair", "label")


@dataclass(frozen=True)
class Task:
    """Templates, labels and label words of one classification task.

    Args:
        name: the task's name.
        labels: label names; a label's index is its class id.
        label_words: one word per label, without the space before it.
        template: cloze for a masked language model, with `{text}`, one `{mask}` and perhaps `{text_pair}`.
        decoder_template: text for a causal language model, with `{text}`, one `{label}` after it and perhaps
            `{text_pair}`.
        head_template: input of a trained head, `{text}` or `{text} {sep} {text_pair}`.
        metrics: names of the task's metrics, the main one first.
        columns: our field (`text`, `text_pair`, `label`) to the column of the task's own files.
        label_map: raw label in files to label name, such as `"0"` to `negative`.

    Raises:
        ValueError: a field that does not fit; the message names the field and quotes its value.
    """

    name: str
    labels: tuple[str, ...]
    label_words: tuple[str, ...]
    template: str
    decoder_template: str
    head_template: str
    metrics: tuple[str, ...] = ("accuracy",)
    columns: Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name {self.name!r} is no name; give a word")
        for key in ("labels", "label_words", "metrics"):
            _check_words(key, getattr(self, key))
        if len(self.labels) < 2:
            raise ValueError(f"labels {list(self.labels)!r}: a task needs at least two labels")
        for key in ("labels", "metrics"):
            twice = sorted({word for word in getattr(self, key) if getattr(self, key).count(word) > 1})
            if twice:
                raise ValueError(f"{key} has {twice[0]!r} twice; each may occur once")
        if len(self.label_words) != len(self.labels):
            raise ValueError(
                f"label_words {list(self.label_words)!r} are {len(self.label_words)} words for {len(self.labels)} "
                "labels; give one word per label"
            )
        check_template("template", self.template, needs="mask")
        check_template("decoder_template", self.decoder_template, needs="label")
        check_template("head_template", self.head_template, needs=None)
        for key, value in self.columns.items():
            if key not in DATA_FIELDS or not isinstance(value, str):
                raise ValueError(
                    f"columns {key!r}: {value!r} is no column; map {', '.join(DATA_FIELDS)} to column names"
                )
        for raw, label in self.label_map.items():
            if label not in self.labels:
                raise ValueError(f"label_map {raw!r}: {label!r} is no label; the labels are {', '.join(self.labels)}")

    @property
    def is_pair(self) -> bool:
        """Whether the task reads two texts: `{text_pair}` occurs in a template."""
        return any("{text_pair}" in text for text in (self.template, self.decoder_template, self.head_template))

    @classmethod
    def from_dict(cls, data: object, source: str) -> Task:
        """A task from the content of its YAML file.

        Args:
            data: a mapping with `name` and `labels` ({label: word}, or a list with the words in `label_words` or equal
                to the labels), and optionally `template`, `decoder_template`, `head_template` (each plain where left
                out), `metrics`, `columns` and `label_map`.
            source: where it came from, for error messages.

        Raises:
            ValueError: anything that does not fit; the message names the source and the key and quotes the value.
        """
        try:
            return cls(**_arguments(data))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, in plain types; labels are lists, so that sorting keys cannot change their order."""
        return {
            "name": self.name,
            "template": self.template,
            "decoder_template": self.decoder_template,
            "head_template": self.head_template,
            "labels": list(self.labels),
            "label_words": list(self.label_words),
            "metrics": list(self.metrics),
            "columns": dict(self.columns),
            "label_map": dict(self.label_map),
        }


def _check_words(key: str, words: Sequence[object]) -> None:
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"{key} has {word!r}, which is no string; quote it in YAML, as in 'Yes'")
        if not word or word != word.strip():
            raise ValueError(f"{key} has {word!r}; write it without space around it, and not empty")


def _arguments(data: object) -> dict[str, Any]:
    """The arguments of `Task` in a YAML file's content."""
    if not isinstance(data, Mapping):
        raise ValueError(f"a task is a mapping with {', '.join(REQUIRED_KEYS)}, not {type(data).__name__}")
    known = (*REQUIRED_KEYS, *OPTIONAL_KEYS)
    for key in data:
        if key not in known:
            raise ValueError(f"unknown key {key!r}: {data[key]!r}; the keys are {', '.join(known)}")
    for key in REQUIRED_KEYS:
        if key not in data:
            raise ValueError(f"key {key!r} is missing; a task needs {', '.join(REQUIRED_KEYS)}")
    pair = any("{text_pair}" in str(data.get(key, "")) for key in TEMPLATE_KEYS)
    plain, plain_decoder = PLAIN_PAIR if pair else PLAIN_SINGLE
    arguments: dict[str, Any] = {"name": data["name"]}
    arguments["template"] = data.get("template", plain)
    arguments["decoder_template"] = data.get("decoder_template", plain_decoder)
    labels = data["labels"]
    if isinstance(labels, Mapping):
        if "label_words" in data:
            raise ValueError("label_words: labels already maps each label to its word; leave label_words out")
        words = list(labels.values())
    else:
        labels = _list("labels", labels)
        words = _list("label_words", data.get("label_words", labels))
    arguments |= {"labels": tuple(labels), "label_words": tuple(words)}
    arguments["head_template"] = data.get("head_template") or (HEAD_PAIR if pair else HEAD_SINGLE)
    arguments["metrics"] = tuple(_list("metrics", data.get("metrics") or ["accuracy"]))
    arguments["columns"] = _mapping("columns", data.get("columns") or {})
    label_map = _mapping("label_map", data.get("label_map") or {})
    for raw in label_map:
        if isinstance(raw, bool) or not isinstance(raw, str | int):
            raise ValueError(f"label_map has {raw!r}, which is no label in a file; quote it in YAML, as in '0'")
    arguments["label_map"] = {str(raw): label for raw, label in label_map.items()}
    return arguments


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key} {value!r} is no list")
    return list(value)


def _mapping(key: str, value: object) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} {value!r} is no mapping")
    return dict(value)


def task_names() -> list[str]:
    """The names of the tasks that come with the package, sorted."""
    folder = resources.files("lateprompt.tasks") / "library"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_task(name_or_path: str) -> Task:
    """A task that comes with the package, by its name, or one from a YAML file.

    Raises:
        ValueError: neither a known name nor a file, or a file that is no task.
    """
    names = task_names()
    if name_or_path in names:
        file = resources.files("lateprompt.tasks") / "library" / f"{name_or_path}.yaml"
        return _parse(file.read_bytes(), f"task {name_or_path}")
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"task {str(name_or_path)!r} is unknown; choose one of {', '.join(names)}, or give a YAML file"
        )
    return _parse(path.read_bytes(), str(path))


def _parse(content: bytes, source: str) -> Task:
    try:
        text = content.decode("utf-8-sig")
        _refuse_doubled_keys(yaml.compose(text, Loader=yaml.SafeLoader), source)
        data = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ValueError(f"{source}: not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{source}{line}: no valid YAML ({problem}); quote texts with braces or colons") from None
    return Task.from_dict(data, source)


def _refuse_doubled_keys(node: yaml.Node | None, source: str) -> None:
    """PyYAML keeps the last of two equal keys without a word, which would lose a label."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[object] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ValueError(f"{source}, line {key.start_mark.line + 1}: {key.value!r} occurs twice; keep one")
            seen.add(key.value)
        _refuse_doubled_keys(value, source)


def default_task(
    labels: Sequence[str],
    *,
    pair: bool,
    name: str = "custom",
    template: str | None = None,
    decoder_template: str | None = None,
    head_template: str | None = None,
    label_words: Sequence[str] | None = None,
) -> Task:
    """A task with plain templates, for data that has just texts and labels.

    Args:
        labels: label names; a label's index is its class id.
        pair: whether rows have two texts.
        name, template, decoder_template, head_template: as in `Task`; left out, plain ones.
        label_words: one per label; left out, the labels' own names.

    Raises:
        ValueError: as `Task` does.
    """
    plain, plain_decoder = PLAIN_PAIR if pair else PLAIN_SINGLE
    return Task(
        name=name,
        labels=tuple(labels),
        label_words=tuple(labels if label_words is None else label_words),
        template=plain if template is None else template,
        decoder_template=plain_decoder if decoder_template is None else decoder_template,
        head_template=(HEAD_PAIR if pair else HEAD_SINGLE) if head_template is None else head_template,
    )
