"""`Task`: a classification task, with its labels, templates and label words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lateprompt.data.labels import BETWEEN_LABELS, label_name
from lateprompt.data.template import check_template
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import did_you_mean, some_of

HEAD_SINGLE = "{text}"
HEAD_PAIR = "{text} {sep} {text_pair}"
PLAIN_SINGLE = ("{text} . It was {mask} .", "{text} It was {label} .")
PLAIN_PAIR = ("{text} ? {mask} , {text_pair}", "{text} {text_pair} They are {label} .")
REQUIRED_KEYS = ("name", "labels")
TEMPLATE_KEYS = ("template", "decoder_template", "head_template")
MULTI_LABEL = "multi_label"
"""In a task file: whether a text may have any number of the labels."""
OPTIONAL_KEYS = (*TEMPLATE_KEYS, "label_words", "metrics", "columns", "label_map", "chosen_columns", MULTI_LABEL)
DATA_FIELDS = ("text", "text_pair", "label")
MULTI_LABEL_FIELDS = ("text", "text_pair", "labels")
MULTI_LABEL_METRICS = ("micro_f1", "macro_f1", "subset_accuracy")
"""Metrics of multi-label tasks; the first one chooses the best weights."""


@dataclass(frozen=True)
class Task:
    """A classification task: its labels, label words and templates.

    Args:
        name: the task's name.
        labels: label names; the index of a label is its class id.
        label_words: the word for each label that a language model predicts, without a space before it.
        template: input of a masked language model, with `{text}`, one `{mask}` and optionally `{text_pair}`.
        decoder_template: input of a causal language model, with `{text}`, one `{label}` after it and optionally
            `{text_pair}`.
        head_template: input of a trained head, `{text}` or `{text} {sep} {text_pair}`.
        metrics: names of the task's metrics, the main one first.
        columns: field (`text`, `text_pair`, `label`) to its column in the task's own files.
        label_map: label as it stands in files to label name, such as `"0"` to `negative`.
        chosen_columns: field to the column that the user has chosen for this run; overrides all other names.

    Labels, those in `label_map` too, are spelled as `lateprompt.data.label_name` says.

    Raises:
        LatePromptError: a field that does not fit; the message names the field and quotes its value.

    Example:
        >>> from lateprompt.data import Task
        >>> task = Task(
        ...     name="reviews",
        ...     labels=("negative", "positive"),
        ...     label_words=("terrible", "great"),
        ...     template="{text} . It was {mask} .",
        ...     decoder_template="{text} It was {label} .",
        ...     head_template="{text}",
        ... )
        >>> task.is_pair, task.metrics
        (False, ('accuracy',))
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
    chosen_columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise LatePromptError(f"name {self.name!r} is no name; give a word")
        object.__setattr__(self, "labels", tuple(map(_spelled, self.labels)))
        object.__setattr__(self, "label_map", _spelled_map(self.label_map))
        for key in ("labels", "label_words", "metrics"):
            check_words(key, getattr(self, key))
        if len(self.labels) < 2:
            raise LatePromptError(f"labels {list(self.labels)!r}: a task needs at least two labels")
        for key in ("labels", "metrics"):
            twice = sorted(word for word, count in Counter(getattr(self, key)).items() if count > 1)
            if twice:
                raise LatePromptError(f"{key} has {twice[0]!r} twice; each may occur once")
        if len(self.label_words) != len(self.labels):
            raise LatePromptError(
                f"label_words {list(self.label_words)!r} are {len(self.label_words)} words for {len(self.labels)} "
                "labels; give one word per label"
            )
        check_template("template", self.template, needs="mask")
        check_template("decoder_template", self.decoder_template, needs="label")
        check_template("head_template", self.head_template, needs=None)
        check_columns(self.columns, self.data_fields)
        check_columns(self.chosen_columns, self.data_fields)
        known = frozenset(self.labels)
        for raw, label in self.label_map.items():
            if label not in known:
                raise LatePromptError(
                    f"label_map {raw!r}: {label!r} is no label; the labels are {some_of(self.labels)}"
                )

    @property
    def data_fields(self) -> tuple[str, ...]:
        """Return the fields of a row that its columns can be named for."""
        return DATA_FIELDS

    @property
    def is_pair(self) -> bool:
        """Return whether the task reads two texts: a template has `{text_pair}`."""
        return any("{text_pair}" in text for text in (self.template, self.decoder_template, self.head_template))

    @classmethod
    def from_dict(cls, data: object, source: str) -> Task:
        """Make a task from the content of its YAML file.

        Args:
            data: a mapping with `name` and `labels` (a mapping from label to label word, or a list; then `label_words`
                has the words, by default the labels themselves), and optionally `template`, `decoder_template`,
                `head_template` (plain ones by default), `metrics`, `columns`, `label_map` and `multi_label` (true makes
                a `MultiLabelTask`).
            source: where it came from, for error messages.

        Raises:
            LatePromptError: anything that does not fit; the message names the source and the key and quotes the value.
        """
        try:
            arguments = _arguments(data)
            kind = MultiLabelTask if arguments.pop(MULTI_LABEL) else cls
            return kind(**arguments)
        except LatePromptError as error:
            raise LatePromptError(f"{source}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, in plain types; labels as a list, so that sorting keys keeps their order."""
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
            **({"chosen_columns": dict(self.chosen_columns)} if self.chosen_columns else {}),
        }


@dataclass(frozen=True)
class MultiLabelTask(Task):
    """A classification task whose texts have any number of its labels, or none; the readout is a trained head.

    Args:
        name, labels, label_words, template, decoder_template, head_template, label_map: as in `Task`; only the head's
            template is used, and label words are not. A label has no `|`, which stands between labels in text files.
        metrics: some of micro_f1, macro_f1 and subset_accuracy; all are computed, and micro F1 chooses the best
            weights.
        columns, chosen_columns: field (`text`, `text_pair`, `labels`) to column.

    Raises:
        LatePromptError: a field that does not fit; the message names the field and quotes its value.

    Example:
        >>> from lateprompt.data import multi_label_task
        >>> task = multi_label_task(["film", "food", "music"], pair=False)
        >>> task.metrics, task.to_dict()["multi_label"]
        (('micro_f1',), True)
    """

    metrics: tuple[str, ...] = MULTI_LABEL_METRICS[:1]

    def __post_init__(self) -> None:
        super().__post_init__()
        for label in self.labels:
            if BETWEEN_LABELS in label:
                raise LatePromptError(
                    f"labels has {label!r}, but {BETWEEN_LABELS} stands between labels in text files; rename it"
                )
        for metric in self.metrics:
            if metric not in MULTI_LABEL_METRICS:
                raise LatePromptError(
                    f"metric {metric!r} is none of a multi-label task; choose from {', '.join(MULTI_LABEL_METRICS)}"
                )
        first = MULTI_LABEL_METRICS[0]
        object.__setattr__(self, "metrics", (first, *(metric for metric in self.metrics if metric != first)))

    @property
    def data_fields(self) -> tuple[str, ...]:
        return MULTI_LABEL_FIELDS

    def to_dict(self) -> dict[str, Any]:
        unused = ("template", "decoder_template", "label_words")
        return {**{key: value for key, value in super().to_dict().items() if key not in unused}, MULTI_LABEL: True}


def _spelled(label: object) -> str:
    """Spell a label; raise LatePromptError for a missing one."""
    name = label_name(label)
    if name is None:
        raise LatePromptError(f"labels has {label!r}, which is no name; give each label a name")
    return name


def _word(label: object) -> object:
    """Return the label itself as its label word."""
    return label if isinstance(label, str) else label_name(label)


def _spelled_map(label_map: Mapping[Any, Any]) -> dict[str, str]:
    """Spell the keys and values of a label map."""
    found: dict[str, str] = {}
    for raw, label in label_map.items():
        name, known = label_name(raw), label_name(label)
        if name is None or known is None:
            raise LatePromptError(f"label_map {raw!r}: {label!r} maps no label to a label; give both")
        if found.setdefault(name, known) != known:
            raise LatePromptError(f"label_map has {name!r} twice, for {found[name]!r} and {known!r}; keep one")
    return found


def check_columns(columns: Mapping[str, str], fields: Sequence[str]) -> None:
    """Raise LatePromptError unless `columns` maps known fields to column names."""
    for key, value in columns.items():
        if key not in fields or not isinstance(value, str):
            raise LatePromptError(f"columns {key!r}: {value!r} is no column; map {', '.join(fields)} to column names")


def check_words(key: str, words: Sequence[object]) -> None:
    """Raise LatePromptError for a word that is no string, is empty, or has surrounding space."""
    for word in words:
        if not isinstance(word, str):
            raise LatePromptError(f"{key} has {word!r}, which is no string; quote it in YAML, as in 'Yes'")
        if not word or word != word.strip():
            raise LatePromptError(f"{key} has {word!r}; write it without space around it, and not empty")


def _arguments(data: object) -> dict[str, Any]:
    """Turn a YAML file's content into the arguments of `Task`."""
    if not isinstance(data, Mapping):
        raise LatePromptError(f"a task is a mapping with {', '.join(REQUIRED_KEYS)}, not {type(data).__name__}")
    known = (*REQUIRED_KEYS, *OPTIONAL_KEYS)
    for key in data:
        if key not in known:
            raise LatePromptError(
                f"unknown key {key!r}{did_you_mean(key, known)}: {data[key]!r}; the keys are {', '.join(known)}"
            )
    for key in REQUIRED_KEYS:
        if key not in data:
            raise LatePromptError(
                f"key {key!r} is missing; a task needs {', '.join(REQUIRED_KEYS)} (one whose answers are texts has "
                "{target} in its template)"
            )
    pair = any("{text_pair}" in str(data.get(key, "")) for key in TEMPLATE_KEYS)
    plain, plain_decoder = PLAIN_PAIR if pair else PLAIN_SINGLE
    arguments: dict[str, Any] = {"name": data["name"]}
    arguments["template"] = data.get("template", plain)
    arguments["decoder_template"] = data.get("decoder_template", plain_decoder)
    labels = data["labels"]
    if isinstance(labels, Mapping):
        if "label_words" in data:
            raise LatePromptError("label_words: labels already maps each label to its word; leave label_words out")
        words = list(labels.values())
    else:
        labels = as_list("labels", labels)
        words = as_list("label_words", data.get("label_words", [_word(label) for label in labels]))
    arguments |= {"labels": tuple(labels), "label_words": tuple(words)}
    arguments["head_template"] = data.get("head_template") or (HEAD_PAIR if pair else HEAD_SINGLE)
    if data.get("metrics"):
        arguments["metrics"] = tuple(as_list("metrics", data["metrics"]))
    arguments[MULTI_LABEL] = data.get(MULTI_LABEL, False)
    if not isinstance(arguments[MULTI_LABEL], bool):
        raise LatePromptError(f"{MULTI_LABEL} {arguments[MULTI_LABEL]!r} is no switch; give true or false")
    arguments["columns"] = as_mapping("columns", data.get("columns") or {})
    arguments["label_map"] = as_mapping("label_map", data.get("label_map") or {})
    arguments["chosen_columns"] = as_mapping("chosen_columns", data.get("chosen_columns") or {})
    return arguments


def as_list(key: str, value: object) -> list[Any]:
    """Return a YAML value as a list; raise LatePromptError if it is none."""
    if not isinstance(value, list | tuple):
        raise LatePromptError(f"{key} {value!r} is no list")
    return list(value)


def as_mapping(key: str, value: object) -> dict[Any, Any]:
    """Return a YAML value as a dict; raise LatePromptError if it is no mapping."""
    if not isinstance(value, Mapping):
        raise LatePromptError(f"{key} {value!r} is no mapping")
    return dict(value)


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
    """Make a task with plain templates, for data that has nothing but texts and labels.

    Args:
        labels: label names; the index of a label is its class id.
        pair: whether rows have two texts.
        name, template, decoder_template, head_template: as in `Task`; plain ones by default.
        label_words: one per label; by default the labels' own names.

    Raises:
        LatePromptError: as `Task` does.

    Example:
        >>> from lateprompt.data import default_task
        >>> default_task(["bad", "good"], pair=False).template
        '{text} . It was {mask} .'
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


def multi_label_task(
    labels: Sequence[str], *, pair: bool, name: str = "custom", head_template: str | None = None
) -> MultiLabelTask:
    """Make a multi-label task with plain templates, for data that has nothing but texts and lists of labels.

    Args:
        labels: label names; the index of a label is its column in scores.
        pair: whether rows have two texts.
        name, head_template: as in `MultiLabelTask`; a plain template by default.

    Raises:
        LatePromptError: as `MultiLabelTask` does.

    Example:
        >>> from lateprompt.data import multi_label_task
        >>> multi_label_task(["film", "food"], pair=True).head_template
        '{text} {sep} {text_pair}'
    """
    plain, plain_decoder = PLAIN_PAIR if pair else PLAIN_SINGLE
    return MultiLabelTask(
        name=name,
        labels=tuple(labels),
        label_words=tuple(labels),
        template=plain,
        decoder_template=plain_decoder,
        head_template=(HEAD_PAIR if pair else HEAD_SINGLE) if head_template is None else head_template,
    )
