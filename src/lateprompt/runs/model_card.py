"""The README of a run folder: a model card as the hub takes it, without any path of the machine it was made on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lateprompt.data import MultiLabelTask, TextTask
from lateprompt.methods import is_linear, parse_method, title_of
from lateprompt.predictors.saved_run import TASK_FILE
from lateprompt.utils.names import READ_ONLY

if TYPE_CHECKING:
    from lateprompt.predictors.kinds import Tuned

CARD_FILE = "README.md"
_UNNAMED = "custom"
"""The name of tasks that were made from the rows' labels."""
_HUB_METRICS = {
    "accuracy": "accuracy",
    "micro_f1": "f1",
    "macro_f1": "f1",
    "subset_accuracy": "accuracy",
    "f1": "f1",
    "accuracy_f1_mean": "accuracy",
    "mcc": "matthews_correlation",
    "perplexity": "perplexity",
    "exact_match": "exact_match",
    "rouge_l": "rouge",
}
"""Our metrics, and what the hub calls them."""
_SAYS_NOTHING = re.compile(
    r"(?i)(model|models|base|checkpoint|checkpoints|final|best|last|hf|output|checkpoint-\d+|\.*)"
)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MOST_LABELS = 4
_MOST_LISTED = 50


def model_card(tuned: Tuned, measured: Mapping[str, Any], recipe: Any) -> str:
    """The text of a run folder's README.

    Args:
        tuned: the trained classifier or writer.
        measured: what goes to `metrics.json`; what is not there is not told.
        recipe: the recipe it was trained by, as settings or as a mapping.
    """
    settings = dict(asdict(recipe)) if is_dataclass(recipe) and not isinstance(recipe, type) else dict(recipe)
    base, reads_model = base_name(tuned.settings.model), parse_method(tuned.settings.method)[0].method.reads_model
    return _TEMPLATE.render(
        front_matter=_front_matter(tuned, measured, base if reads_model else ""),
        title=title(tuned),
        what=_what(tuned),
        parameters=tuned.trainable_parameters,
        base=base,
        is_linear=is_linear(tuned.settings.method),
        reads_model=reads_model,
        results=_results(measured),
        training=_training(tuned, measured, settings),
        writes=isinstance(tuned.task, TextTask),
        is_pair=getattr(tuned.task, "is_pair", False),
        has_thresholds=isinstance(tuned.task, MultiLabelTask),
        has_dev=bool(measured.get("dev_rows")),
        max_length=tuned.max_length,
        was_tested=bool(measured.get("test")),
    )


def title(tuned: Tuned) -> str:
    """What it is, how it was made, and on what: `sst2 classifier: npg late prompt on MiniLM-L6`."""
    task = tuned.task
    if isinstance(task, TextTask):
        what = "Answers" if task.name == _UNNAMED else f"{_plain(task.name)} answers"
    elif task.name != _UNNAMED:
        what = f"{_plain(task.name)} classifier"
    else:
        shown = " / ".join(_plain(label) for label in task.labels[:_MOST_LABELS])
        what = f"{shown}{' / …' if len(task.labels) > _MOST_LABELS else ''} classifier"
    if not parse_method(tuned.settings.method)[0].method.reads_model:
        return f"{what}: {_method(tuned.settings.method)}"
    return f"{what}: {_method(tuned.settings.method)} on {base_name(tuned.settings.model)}"


def base_name(model: str) -> str:
    """The base model without a path: a hub id as it is, a folder's own name (its parent's, where that says nothing)."""
    if _is_hub_id(model):
        return model
    parts = [part for part in re.split(r"[/\\]+", str(Path(model).expanduser())) if part not in ("", ".", "..")]
    in_cache = next((part for part in reversed(parts) if part.startswith("models--")), None)
    if in_cache is not None:  # the hub's cache: models--org--name/snapshots/…
        return "/".join(in_cache.split("--")[1:])
    names = [part for part in reversed(parts) if not _SAYS_NOTHING.fullmatch(part)]
    name = names[0] if names else parts[-1] if parts else ""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "a local model"


def data_name(source: str) -> str:
    """A data set without a path: a hub id as it is, a file's own name."""
    if _is_hub_id(source) and not PurePath(source).suffix:
        return source
    return _plain(PureWindowsPath(source).name or source)


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _method(name: str) -> str:
    """A method's name in words."""
    words = []
    for part in parse_method(name):
        own = part.method.name
        if part.method.read_only:
            words.append(f"{own.removeprefix(READ_ONLY)} read-only late prompt")
            continue
        if words and "read-only" in words[0]:  # it lies on the prompt's own path, not in the text's layers
            words.append(f"{title_of(own)} on the prompt's path")
            continue
        late_prompt = part.method.kind == "prompt" and part.method.late
        words.append(f"{own} late prompt" if late_prompt else title_of(f"late-{own}" if _is_late(part) else own))
    return " with ".join(words)


def _is_late(part: Any) -> bool:
    return bool(part.late and part.method.kind == "tuner")


def _front_matter(tuned: Tuned, measured: Mapping[str, Any], base: str) -> str:
    writes = isinstance(tuned.task, TextTask)
    sets = [measured, *(measured.get("dev_sets") or {}).values(), *(measured.get("test") or {}).values()]
    metrics = dict.fromkeys(theirs for ours, theirs in _HUB_METRICS.items() if any(ours in values for values in sets))
    pipeline = "text-generation" if writes else "text-classification"
    facts: dict[str, Any] = {
        "library_name": "lateprompt" if is_linear(tuned.settings.method) else "peft",
        **({"base_model": base} if _HUB_ID.fullmatch(base) else {}),
        "pipeline_tag": pipeline,
        "tags": ["late-prompt-tuning", "lateprompt", pipeline],
        **({"metrics": list(metrics)} if metrics else {}),
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _what(tuned: Tuned) -> str:
    task = tuned.task
    if isinstance(task, TextTask):
        return "Writes answers to texts"
    about = "pairs of texts" if task.is_pair else "texts"
    does = "Gives {} any of" if isinstance(task, MultiLabelTask) else "Sorts {} into"
    shown = ", ".join(f"`{_plain(label)}`" for label in task.labels[:_MOST_LISTED])
    more = f", … (all are in `{TASK_FILE}`)" if len(task.labels) > _MOST_LISTED else ""
    return f"{does.format(about)} {len(task.labels):,} labels: {shown}{more}"


def _results(measured: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Which rows, metric, value."""
    sets = [("dev", measured)]
    for kind, key in (("dev", "dev_sets"), ("test", "test")):
        sets += [(f"{kind}, {data_name(str(source))}", values) for source, values in (measured.get(key) or {}).items()]
    return [
        (rows, name, values[name])
        for rows, values in sets
        for name in _HUB_METRICS
        if isinstance(values.get(name), int | float) and not isinstance(values[name], bool)
    ]


def _training(tuned: Tuned, measured: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and values; None is not told."""
    settings = tuned.settings
    first = [
        ("training rows", measured.get("train_rows")),
        ("dev rows, which chose the weights", measured.get("dev_rows") or None),
        ("method", settings.method),
        ("options", ", ".join(f"{key}={value}" for key, value in settings.options.items()) or None),
    ]
    if is_linear(settings.method):
        return [*first, ("C (inverse regularisation)", measured.get("C")), ("seed", recipe.get("seed"))]
    return [
        *first,
        ("prompt after layer", settings.prompt_layer),
        ("readout", settings.readout),
        ("steps", measured.get("steps")),
        ("batch size", recipe.get("batch_size")),
        ("learning rate", recipe.get("lr")),
        ("seed", recipe.get("seed")),
    ]


def _plain(value: Any, most: int = 60) -> str:
    """Text for one line of Markdown."""
    text = " ".join(str(value).split())
    text = re.sub(r"[`|<>]", "'", text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _template() -> Template:
    environment = Environment(  # Markdown, not HTML: what comes from outside passes through _plain
        loader=PackageLoader("lateprompt.runs", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    return environment.get_template("model_card.md.jinja")


_TEMPLATE = _template()
