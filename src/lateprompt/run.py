"""One training run, from data files to a run folder."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lateprompt.classifier import TextClassifier
from lateprompt.errors import LatePromptError
from lateprompt.files import clear_folder, prepare_folder, read_json, write_json, write_lines, write_text
from lateprompt.methods import check_method
from lateprompt.model_card import CARD_FILE, model_card
from lateprompt.split import resolve_prompt_layer
from lateprompt.tasks import (
    AnyTask,
    Row,
    TextTask,
    default_task,
    few_shot,
    load_task,
    plain_text_task,
    read_rows,
)
from lateprompt.tasks.columns import with_columns
from lateprompt.tasks.labels import spelled_words
from lateprompt.training.checkpoint import FOLDER as CHECKPOINT
from lateprompt.training.checkpoint import remove_checkpoint
from lateprompt.training.data_settings import DataSettings as DataSettings
from lateprompt.training.feed import Feed
from lateprompt.training.fit import FitResult, fit
from lateprompt.training.kept import StatesFeed, StatesSettings, rows_needed
from lateprompt.training.metrics import check_metrics
from lateprompt.training.parallel import processes
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.tuned import RUN_FILE, TASK_FILE, TunedModel, read_task
from lateprompt.writer import TextWriter

DEV_ROWS = 1000
"""Dev rows of a few-shot run without a dev file (the paper's)."""
MOST_CLASSES = 20
"""Different targets that may be classes."""
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.jsonl"


def resolve_task(data: DataSettings, rows: Sequence[Row], readout: str = "auto") -> AnyTask:
    """The named task, or a plain one: with the labels of the training rows, or for their targets."""
    if data.task is not None:
        if data.template is not None or data.label_words is not None:
            raise LatePromptError(
                f"task {data.task!r} has its own template and label words; leave out --template and --label-words"
            )
        return with_columns(load_task(data.task), data.columns)
    return with_columns(_plain_task(data, rows, readout), data.columns)


def _plain_task(data: DataSettings, rows: Sequence[Row], readout: str) -> AnyTask:
    pair = any(row.text_pair is not None for row in rows)
    if any(row.target is not None for row in rows):
        if data.label_words is not None:
            raise LatePromptError(
                f"label_words {data.label_words!r}: the rows have targets, not labels; leave them out"
            )
        _warn_of_classes(rows)
        return plain_text_task(pair=pair, template=data.template)
    labels = sorted({row.label for row in rows if row.label is not None})
    words = None if data.label_words is None else spelled_words(data.label_words)
    if words is not None and sorted(words) != labels:
        raise LatePromptError(
            f"label_words name the labels {sorted(words)}, the training rows have {labels}; name exactly these"
        )
    kinds = {"mask": "template", "label": "decoder_template"}
    template = {}
    if data.template is not None:
        kind = (
            "template"
            if "{mask}" in data.template
            else "decoder_template"
            if "{label}" in data.template
            else "head_template"
        )
        template = {kinds.get(readout, kind): data.template}
    return default_task(
        labels,
        pair=pair,
        label_words=None if words is None else [words[label] for label in labels],
        **template,
    )


def _warn_of_classes(rows: Sequence[Row]) -> None:
    """Warn where texts to be written look like classes: many rows, few different and short targets."""
    targets = {row.target for row in rows if row.target is not None}
    if len(targets) <= MOST_CLASSES and len(rows) >= 5 * len(targets) and all(len(t.split()) <= 2 for t in targets):
        warnings.warn(
            f"the {len(rows)} rows have {len(targets)} different targets ({', '.join(sorted(targets)[:3])}, …), which "
            "are taken for texts to be written; if they are classes, give --label-column target",
            stacklevel=2,
        )


@dataclass
class Rows:
    """The rows of a run."""

    task: AnyTask
    train: list[Row]
    dev: list[Row]
    more_dev: dict[str, list[Row]]
    test: dict[str, list[Row]]


def load_rows(data: DataSettings, seed: int, readout: str = "auto") -> Rows:
    """Read, check and sample what the settings name.

    Raises:
        LatePromptError: bad data; a label in dev or test that no training row has.
    """
    named = with_columns(load_task(data.task), data.columns) if data.task is not None else None
    train = read_rows(data.train, task=named, split="train", columns=data.columns)
    task = resolve_task(data, train, readout)
    known = {row.label for row in train}
    others: dict[str, list[Row]] = {}
    for path, split in [(p, "validation") for p in data.dev] + [(p, "test") for p in data.test]:
        others[path] = read_rows(
            path, task=named or (task if isinstance(task, TextTask) else None), split=split, columns=data.columns
        )
        for number, row in enumerate(others[path], 1):
            if row.label not in known:
                raise LatePromptError(
                    f"{path}: row {number} has label {row.label!r}, which no training row in {data.train!r} has; "
                    f"known are {', '.join(sorted(map(str, known)))}"
                )
    dev = others[data.dev[0]] if data.dev else []
    if data.shots is not None:
        train, rest = few_shot(train, data.shots, seed, dev_size=data.dev_rows or DEV_ROWS)
        dev = dev or rest
    elif data.dev_rows is not None:
        if data.dev_rows >= len(train):
            raise LatePromptError(
                f"dev_rows {data.dev_rows!r} leave none of the {len(train)} rows in {data.train!r} to train on"
            )
        train, dev = few_shot(train, len(train) - data.dev_rows, seed, dev_size=data.dev_rows)
    return Rows(task, train, dev, {p: others[p] for p in data.dev[1:]}, {p: others[p] for p in data.test})


def fingerprint(rows: Sequence[Row]) -> dict[str, Any]:
    """What rows were used: their number and a SHA-256 of texts and answers in order."""
    digest = hashlib.sha256()
    for row in rows:
        answer = row.label if row.target is None else row.target
        digest.update(json.dumps([row.text, row.text_pair, answer], ensure_ascii=False).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: of the GPU where one is used, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak_memory() -> None:
    """Let the peak begin anew, for another run in the same process; only Linux lets a process do so, and GPUs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def versions() -> dict[str, str]:
    names = ("lateprompt", "torch", "transformers", "peft", "safetensors")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


@dataclass
class Trained:
    """A model with its best weights, and what it was trained and can be measured on.

    Args:
        tuned: the classifier or writer.
        rows: the rows.
        result: what training measured.
        dev: the dev rows' feed.
        others: feeds of the further dev sets and of the test sets, by path.
        fill_seconds: time to compute the trunk's states.
        facts: recipe, data with fingerprints, labels: what a run folder says about it.
    """

    tuned: TunedModel
    rows: Rows
    result: FitResult
    dev: Feed | None
    others: dict[str, Feed]
    fill_seconds: float
    facts: dict[str, Any]

    def measured(self, values: dict[str, dict[str, float]]) -> dict[str, Any]:
        """What goes to `metrics.json`; `values` are the metrics of the further sets, by path."""
        rows, result = self.rows, self.result
        return {
            **result.metrics,
            "dev_sets": {path: values[path] for path in rows.more_dev},
            "test": {path: values[path] for path in rows.test},
            "train_rows": len(rows.train),
            "dev_rows": len(rows.dev),
            "steps": result.steps,
            "trainable_parameters": self.tuned.trainable_parameters,
            "train_seconds": result.train_seconds,
            "tokens_per_second": result.tokens_per_second,
            "peak_memory_bytes": peak_memory_bytes(self.tuned.device),
            "trunk_fill_seconds": self.fill_seconds,
        }


def kind_of(task: AnyTask) -> type[TextClassifier] | type[TextWriter]:
    """What learns a task."""
    return TextWriter if isinstance(task, TextTask) else TextClassifier


def load_run(folder: str | Path, *, model: str | None = None, device: str | None = None) -> TextClassifier | TextWriter:
    """The classifier or writer of a run folder, as `TunedModel.load` does."""
    kind = kind_of(read_task(Path(folder))) if (Path(folder) / TASK_FILE).is_file() else TextClassifier
    return kind.load(folder, model=model, device=device)


def check_run(model: ModelSettings, data: DataSettings, recipe: RecipeSettings, states: StatesSettings) -> None:
    """Raise LatePromptError for settings that cannot be, before anything is read."""
    model.check()
    check_method(model.method, model.options)
    data.check()
    recipe.check()
    states.check(model.trunk_dropout)


def train_model(
    model: ModelSettings,
    data: DataSettings,
    recipe: RecipeSettings,
    states: StatesSettings,
    *,
    prepare: Callable[[], Path | None] = lambda: None,
    quiet: bool = True,
) -> Trained:
    """Train a classifier, or a writer where rows have targets; of the test rows only the trunk's states are computed.

    Args:
        model, data, recipe, states: the settings.
        prepare: called once everything that can be wrong with them was found; gives the folder of checkpoints.
        quiet: no progress bar.

    Raises:
        LatePromptError: settings or data that cannot be.
    """
    rows = load_rows(data, recipe.seed, model.readout)
    check_metrics(rows.task.metrics)
    tuned = kind_of(rows.task).build(model, rows.task, seed=recipe.seed)
    train = tuned.feed(rows.train)
    dev = tuned.feed(rows.dev) if rows.dev else None
    others = {path: tuned.feed(part) for path, part in {**rows.more_dev, **rows.test}.items()}
    whole = [feed for feed in (dev, *others.values()) if feed is not None]
    parts = [(train, rows_needed(train, recipe)), *((feed, np.arange(len(feed))) for feed in whole)]
    facts = {
        "recipe": asdict(recipe),
        "data": {
            **asdict(data),
            "fingerprints": {
                "train": fingerprint(rows.train),
                "dev": fingerprint(rows.dev),
                **{path: fingerprint(part) for path, part in {**rows.more_dev, **rows.test}.items()},
            },
        },
        "labels": list(rows.task.labels),
        "num_layers": tuned.layer.num_layers,
    }
    checkpoint = prepare()
    together = processes()
    with together.main_first():  # it fills; the others find the states there
        (train, *whole), fill_seconds = tuned.kept(parts, states, quiet=quiet)
    if isinstance(train, StatesFeed):
        tuned.release()
    dev = whole.pop(0) if dev is not None else None
    result = fit(
        tuned.model,
        tuned.readout,
        train,
        dev,
        recipe,
        metrics=rows.task.metrics,
        device=tuned.device,
        checkpoint=checkpoint,
        settings=json.dumps({"model": asdict(tuned.settings), **facts}, sort_keys=True),
        quiet=quiet,
    )
    return Trained(tuned, rows, result, dev, dict(zip(others, whole, strict=True)), fill_seconds, facts)


def train_run(
    model: ModelSettings,
    data: DataSettings,
    recipe: RecipeSettings,
    output: Path | None,
    *,
    states: StatesSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
) -> tuple[TunedModel, dict[str, Any]]:
    """Train a classifier or writer and leave its run folder at `output` (None: nowhere).

    Everything that can be wrong with settings and data is found before the folder is touched; `metrics.json` is written
    last, so a folder that has it is whole.

    Returns:
        The model with its best weights, and what went to `metrics.json`.
    """
    states = states or StatesSettings()
    check_run(model, data, recipe, states)
    together = processes()
    if output is not None:
        if together.is_main:
            prepare_folder(output, overwrite=overwrite, resume=resume)
        if resume and (output / METRICS_FILE).is_file():  # finished before: nothing to go on with
            _check_finished(output, model, data, recipe)
            return load_run(output, device=model.device), read_json(output / METRICS_FILE, "metrics")

    def prepare() -> Path | None:
        if output is None:
            return None
        if together.is_main:
            if overwrite and not resume:
                clear_folder(output)
            output.mkdir(parents=True, exist_ok=True)
        together.wait()
        return output / CHECKPOINT

    trained = train_model(model, data, recipe, states, prepare=prepare, quiet=quiet)
    tuned, size = trained.tuned, recipe.eval_batch_size
    values = {path: tuned.evaluate(feed, batch_size=size) for path, feed in trained.others.items()}
    measured = trained.measured(values)
    if trained.dev is not None:
        measured |= tuned.measure_more(trained.dev, batch_size=size)
    if output is not None and together.is_main:
        facts = {
            **trained.facts,
            "states": asdict(states),
            "versions": versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        tuned.save(output, facts)
        write_lines(output / HISTORY_FILE, trained.result.history)
        write_text(output / CARD_FILE, model_card(tuned, measured, recipe))
        write_json(output / METRICS_FILE, measured)
        remove_checkpoint(output / CHECKPOINT)
    return tuned, measured


def _check_finished(folder: Path, model: ModelSettings, data: DataSettings, recipe: RecipeSettings) -> None:
    """Raise LatePromptError unless a finished run was made by these settings."""
    saved = read_json(folder / RUN_FILE, "run file")
    theirs = {**saved.get("model_settings", {}), **saved.get("data", {}), **saved.get("recipe", {})}
    ours = {**asdict(model), **asdict(data), **asdict(recipe)}
    layers = int(saved.get("num_layers") or 0)
    if layers:
        ours["prompt_layer"] = resolve_prompt_layer(model.prompt_layer, layers)
    # What no result depends on, and what either side leaves to the model.
    left_open = {"device", "eval_batch_size"}
    left_open |= {name for name in ("readout", "head_pooling") if ours[name] in (None, "auto")}
    left_open |= {name for name in ("num_prompt_tokens",) if None in (ours[name], theirs.get(name))}
    changed = [
        name
        for name, value in ours.items()
        if name not in left_open and _resolved(value) != _resolved(theirs.get(name, value))
    ]
    if changed:
        raise LatePromptError(
            f"{str(folder)!r} holds a finished run with other settings ({', '.join(changed)}); resume with the same "
            "ones, or use --overwrite without --resume"
        )


def _resolved(value: Any) -> Any:
    """A setting with paths, alone or in a list, as they are on the disk."""
    if isinstance(value, list):
        return [_resolved(part) for part in value]
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value
