"""`TextTask`: a task whose answers are texts, with its template, chat settings and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lateprompt.data.task import as_list, as_mapping, check_columns, check_words
from lateprompt.data.template import check_template
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import did_you_mean, unknown

TEXT_METRICS = ("perplexity", "exact_match", "rouge_l")
"""Metrics of written text. Perplexity needs no text to be written, and chooses the best weights."""
PLAIN = "{text}\n{target}"
PLAIN_PAIR = "{text}\n{text_pair}\n{target}"
DATA_FIELDS = ("text", "text_pair", "target")
CHATS = ("auto", "on", "off")
_SWITCH = {"true": "on", "yes": "on", "on": "on", "false": "off", "no": "off", "off": "off"}
KEYS = ("name", "template", "decoder_template", "metrics", "columns", "chat", "system", "chosen_columns")


@dataclass(frozen=True)
class TextTask:
    """A text-to-text task: its template, metrics and columns.

    Args:
        name: the task's name.
        template: has `{text}`, optionally `{text_pair}`, and ends with `{target}`. With a chat template the part before
            `{target}` is the user's message.
        metrics: some of perplexity, exact_match (after the space around it is taken off) and rouge_l (the mean
            F-measure over rows). Perplexity is always computed; the other two need the text to be written.
        columns: field (`text`, `text_pair`, `target`) to its column in the task's own files.
        chat: whether the tokenizer's chat template is used: auto (if it has one), on or off.
        system: the system message of the chat.
        chosen_columns: field to the column that the user has chosen for this run; overrides all other names.

    Raises:
        LatePromptError: a field that does not fit; the message names the field and quotes its value.

    Example:
        >>> from lateprompt.data import TextTask
        >>> task = TextTask("headlines", template="Write a headline.\\n{text}\\n{target}", metrics=("rouge_l",))
        >>> task.is_pair, task.chat
        (False, 'auto')
    """

    name: str
    template: str = PLAIN
    metrics: tuple[str, ...] = ("perplexity",)
    columns: Mapping[str, str] = field(default_factory=dict)
    chat: str = "auto"
    system: str | None = None
    chosen_columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise LatePromptError(f"name {self.name!r} is no name; give a word")
        check_template("template", self.template, needs="target")
        check_words("metrics", self.metrics)
        for metric in self.metrics:
            if metric not in TEXT_METRICS:
                raise LatePromptError(
                    f"metric {metric!r} is none of written text; choose from {', '.join(TEXT_METRICS)}"
                )
        check_columns(self.columns, DATA_FIELDS)
        check_columns(self.chosen_columns, DATA_FIELDS)
        if self.chat not in CHATS:
            raise LatePromptError(unknown("chat", self.chat, CHATS))
        if self.system is not None and not isinstance(self.system, str):
            raise LatePromptError(f"system {self.system!r} is no string; write what the system says")
        if self.system is not None and self.chat == "off":
            raise LatePromptError(f"system {self.system!r} is part of a chat, but chat is 'off'; leave one of them out")

    @property
    def labels(self) -> tuple[str, ...]:
        """Return no labels: the answers are texts."""
        return ()

    @property
    def is_pair(self) -> bool:
        """Return whether the task reads two texts."""
        return "{text_pair}" in self.template

    @property
    def written(self) -> tuple[str, ...]:
        """Return the metrics for which texts must be written."""
        return tuple(metric for metric in self.metrics if metric != "perplexity")

    @classmethod
    def from_dict(cls, data: object, source: str) -> TextTask:
        """Make a task from the content of its YAML file.

        Args:
            data: a mapping with `name`, and optionally `template` (or `decoder_template`), `metrics`, `columns`, `chat`
                and `system`.
            source: where it came from, for error messages.

        Raises:
            LatePromptError: anything that does not fit; the message names the source and the key and quotes the value.
        """
        try:
            return cls(**_arguments(data))
        except LatePromptError as error:
            raise LatePromptError(f"{source}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, in plain types."""
        data = {**asdict(self), "metrics": list(self.metrics), "columns": dict(self.columns)}
        data["chosen_columns"] = dict(self.chosen_columns) or None
        return {key: value for key, value in data.items() if value is not None}


def plain_text_task(*, pair: bool, template: str | None = None) -> TextTask:
    """Make a text-to-text task with a plain template, for data that has nothing but texts and targets.

    Args:
        pair: whether rows have two texts.
        template: as in `TextTask`; None: the texts and the target on lines of their own.

    Example:
        >>> from lateprompt.data import plain_text_task
        >>> plain_text_task(pair=False).template
        '{text}\\n{target}'
    """
    return TextTask(name="custom", template=template or (PLAIN_PAIR if pair else PLAIN))


def is_text_task(data: object) -> bool:
    """Return whether a YAML file's content is a text-to-text task: it has no labels, and a key that only these have."""
    if not isinstance(data, Mapping) or "labels" in data or "label_words" in data:
        return False
    templates = (str(data.get(key, "")) for key in ("template", "decoder_template"))
    metrics, columns = data.get("metrics"), data.get("columns")
    return (
        any("{target}" in template for template in templates)
        or (isinstance(columns, Mapping) and "target" in columns)
        or (isinstance(metrics, list) and any(metric in TEXT_METRICS for metric in metrics))
        or "chat" in data
        or "system" in data
    )


def _arguments(data: object) -> dict[str, Any]:
    """Turn a YAML file's content into the arguments of `TextTask`."""
    assert isinstance(data, Mapping)
    for key in data:
        if key not in KEYS:
            raise LatePromptError(
                f"unknown key {key!r}{did_you_mean(key, KEYS)}: {data[key]!r}; "
                f"the keys of a text-to-text task are {', '.join(KEYS)}"
            )
    if "name" not in data:
        raise LatePromptError("key 'name' is missing; a task needs a name")
    if "template" in data and "decoder_template" in data:
        raise LatePromptError(
            f"template {data['template']!r} and decoder_template: such a task has one; drop the other"
        )
    arguments: dict[str, Any] = {"name": data["name"]}
    arguments["template"] = data.get("template", data.get("decoder_template", PLAIN))
    arguments["metrics"] = tuple(as_list("metrics", data.get("metrics") or ["perplexity"]))
    arguments["columns"] = as_mapping("columns", data.get("columns") or {})
    if "text_pair" in arguments["columns"] and "template" not in data and "decoder_template" not in data:
        arguments["template"] = PLAIN_PAIR
    chat = data.get("chat", "auto")
    # YAML's on and off are booleans, and written in more than one way.
    arguments["chat"] = _SWITCH.get(str(chat).lower(), chat) if isinstance(chat, bool | str) else chat
    arguments["system"] = data.get("system")
    arguments["chosen_columns"] = as_mapping("chosen_columns", data.get("chosen_columns") or {})
    return arguments
