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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lateprompt.classifier import TextClassifier
from lateprompt.errors import LatePromptError
from lateprompt.files import read_json, write_json, write_lines, write_text
from lateprompt.methods import check_method
from lateprompt.model_card import CARD_FILE, model_card
from lateprompt.row_checks import check_choosing_labels, shared_rows, unknown_labels, warn_shared, warn_unknown
from lateprompt.run_folder import METRICS_FILE, RunFolder, reading
from lateprompt.saved_run import TASK_FILE, read_run, read_task, section_of
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
from lateprompt.training.data_settings import DataSettings as DataSettings
from lateprompt.training.feed import Feed
from lateprompt.training.fit import FitResult, fit
from lateprompt.training.kept import StatesFeed, StatesSettings, rows_needed
from lateprompt.training.metrics import check_metrics
from lateprompt.training.parallel import processes
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.tuned import TunedModel
from lateprompt.writer import TextWriter

DEV_ROWS = 1000
"""Dev rows of a few-shot run without a dev file (the paper's)."""
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


@dataclass
class Rows:
    """The rows of a run.

    Args:
        task: what is asked.
        train: what is trained on.
        dev: what chooses the best weights; empty without.
        more_dev: further dev sets by path.
        test: test sets by path.
    """

    task: AnyTask
    train: list[Row]
    dev: list[Row]
    more_dev: dict[str, list[Row]]
    test: dict[str, list[Row]]

    def sets(self) -> dict[str, list[Row]]:
        """All rows by the name of their set: train, dev, and paths, with the split where one path names two sets."""
        named = {"train": self.train, "dev": self.dev}
        for split, sets in (("validation", self.more_dev), ("test", self.test)):
            other = self.test if split == "validation" else self.more_dev
            for path, rows in sets.items():
                named[f"{path} ({split})" if path in ("train", "dev") or path in other else path] = rows
        return named

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Which rows they are, set by set."""
        return {name: fingerprint(rows) for name, rows in self.sets().items()}


def load_rows(data: DataSettings, seed: int, readout: str = "auto") -> Rows:
    """Read, check and sample what the settings name.

    Labels of dev and test rows may be ones that the task does not have: such rows count as wrong.

    Raises:
        LatePromptError: bad data; dev rows without any label of the task.
    """
    named = with_columns(load_task(data.task), data.columns) if data.task is not None else None
    train = read_rows(data.train, task=named, split="train", columns=data.columns)
    task = resolve_task(data, train, readout)
    known = named or (task if isinstance(task, TextTask) else None)
    # By split too: one data set of the hub may be both.
    more_dev, test = (
        {path: read_rows(path, task=known, split=split, columns=data.columns, any_label=True) for path in paths}
        for paths, split in ((data.dev, "validation"), (data.test, "test"))
    )
    dev = more_dev.pop(data.dev[0]) if data.dev else []
    if dev:
        check_choosing_labels(dev, task, data.dev[0])
    if data.shots is not None:
        train, rest = few_shot(train, data.shots, seed, dev_size=data.dev_rows or DEV_ROWS)
        dev = dev or rest
    elif data.dev_rows is not None:
        if data.dev_rows >= len(train):
            raise LatePromptError(
                f"dev_rows {data.dev_rows!r} leave none of the {len(train)} rows in {data.train!r} to train on"
            )
        train, dev = few_shot(train, len(train) - data.dev_rows, seed, dev_size=data.dev_rows)
    return Rows(task, train, dev, more_dev, test)


def check_sets(rows: Rows) -> dict[str, Any]:
    """Warn of rows that sets share, and of labels that the task does not have; what a run folder says about both."""
    sets = rows.sets()
    shared = shared_rows(sets)
    unknown = {name: unknown_labels(part, rows.task) for name, part in sets.items()}
    if processes().is_main:
        warn_shared(shared)
        for name, labels in unknown.items():
            warn_unknown(labels, len(sets[name]), name)
    return {"shared_rows": shared, "unknown_labels": {name: labels for name, labels in unknown.items() if labels}}


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
        more_dev: feeds of the further dev sets, by path.
        test: feeds of the test sets, by path.
        fill_seconds: time to compute the trunk's states.
        facts: recipe, data with fingerprints, labels: what a run folder says about it.
    """

    tuned: TunedModel
    rows: Rows
    result: FitResult
    dev: Feed | None
    more_dev: dict[str, Feed]
    test: dict[str, Feed]
    fill_seconds: float
    facts: dict[str, Any]

    def measure(self, batch_size: int) -> dict[str, Any]:
        """Score the further dev sets and the test sets; what goes to `metrics.json`."""
        more_dev, test = (
            {path: self.tuned.evaluate(feed, batch_size=batch_size) for path, feed in sets.items()}
            for sets in (self.more_dev, self.test)
        )
        measured = self.measured(test, more_dev)
        if self.dev is not None:
            measured |= self.tuned.measure_more(self.dev, batch_size=batch_size)
        return measured

    def measured(
        self, test: dict[str, dict[str, float]], more_dev: dict[str, dict[str, float]] | None = None
    ) -> dict[str, Any]:
        """What goes to `metrics.json`; `test` and `more_dev` are the metrics of the further sets, by path."""
        rows, result = self.rows, self.result
        return {
            **result.metrics,
            "dev_sets": more_dev or {},
            "test": test,
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


def load_run(
    folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
) -> TextClassifier | TextWriter:
    """The classifier or writer of a run folder, as `TunedModel.load` does."""
    with reading(folder):
        kind = kind_of(read_task(Path(folder))) if (Path(folder) / TASK_FILE).is_file() else TextClassifier
        return kind.load(folder, model=model, device=device, check_model=check_model)


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
    recipe = recipe.resolved(len(rows.train), model.method)
    check_metrics(rows.task.metrics)
    tuned = kind_of(rows.task).build(model, rows.task, seed=recipe.seed)
    train = tuned.feed(rows.train)
    dev = tuned.feed(rows.dev, any_label=True) if rows.dev else None
    more_dev, test = (
        {path: tuned.feed(part, any_label=True) for path, part in sets.items()} for sets in (rows.more_dev, rows.test)
    )
    whole = [feed for feed in (dev, *more_dev.values(), *test.values()) if feed is not None]
    parts = [(train, rows_needed(train, recipe)), *((feed, np.arange(len(feed))) for feed in whole)]
    facts: dict[str, Any] = {
        "recipe": asdict(recipe),
        "data": {**asdict(data), "fingerprints": rows.fingerprints()},
        "labels": list(rows.task.labels),
        "num_layers": tuned.layer.num_layers,
    }
    settings = json.dumps({"model": asdict(tuned.settings), **facts}, sort_keys=True)
    facts["data"] |= check_sets(rows)
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
        settings=settings,
        quiet=quiet,
    )
    kept_test = whole[len(more_dev) :]
    more_dev, test = dict(zip(more_dev, whole, strict=False)), dict(zip(test, kept_test, strict=True))
    return Trained(tuned, rows, result, dev, more_dev, test, fill_seconds, facts)


def train_run(
    model: ModelSettings,
    data: DataSettings,
    recipe: RecipeSettings,
    output: str | Path | None,
    *,
    states: StatesSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
) -> tuple[TunedModel, dict[str, Any]]:
    """Train a classifier or writer and leave its run folder at `output` (None: nowhere).

    Everything that can be wrong with settings and data is found before the folder is touched. The files of the new run
    take their places together, when all of them are there: until then an old one stays as it was.

    Returns:
        The model with its best weights, and what went to `metrics.json`.

    Raises:
        LatePromptError: settings or data that cannot be, or a folder that may not be written to.
    """
    states = states or StatesSettings()
    check_run(model, data, recipe, states)
    if output is None:
        trained = train_model(model, data, recipe, states, quiet=quiet)
        return trained.tuned, trained.measure(recipe.eval_batch_size)
    folder = RunFolder(output)
    if resume:
        folder.settle()
        if folder.is_finished:  # nothing to go on with
            _check_finished(folder.path, model, data, recipe)
            _check_same_rows(folder.path, load_rows(data, recipe.seed, model.readout))
            tuned = load_run(folder.path, device=model.device)
            return tuned, read_json(folder.path / METRICS_FILE, "metrics")
    with ExitStack() as held:
        checkpoint = _Checkpoint(folder, held, data, overwrite=overwrite and not resume, resume=resume)
        try:
            trained = train_model(model, data, recipe, states, prepare=checkpoint.begin, quiet=quiet)
            measured = trained.measure(recipe.eval_batch_size)
            if processes().is_main:
                folder.replace(lambda place: _write_run(place, trained, measured, recipe, states))
        except Exception as error:
            checkpoint.abandon(error)
            raise
    return trained.tuned, measured


class _Checkpoint:
    """A run folder in the hands of a training: the main process locks it and writes, all know where the state is kept.

    Args:
        folder: the folder.
        held: what ends with the training.
        data: whose files must not be replaced.
        overwrite, resume: as in `train_run`.
    """

    def __init__(
        self, folder: RunFolder, held: ExitStack, data: DataSettings, *, overwrite: bool, resume: bool
    ) -> None:
        self.folder, self.held, self.overwrite, self.resume = folder, held, overwrite, resume
        self.inputs = [data.train, *data.dev, *data.test, *([data.task] if data.task else [])]
        self.place: Path | None = None
        if processes().is_main:
            self._check()
            if folder.path.exists():  # else there is nothing yet that another one could be at work in
                self._lock()

    def _check(self) -> None:
        self.folder.check(overwrite=self.overwrite, resume=self.resume, inputs=self.inputs)

    def _lock(self) -> None:
        self.held.enter_context(self.folder.locked())
        self.folder.settle(locked=True)
        self._check()  # another one may have ended in between
        self.is_locked = True

    is_locked = False

    def begin(self) -> Path:
        """Where the state is kept; called when nothing can be wrong with settings and data any more."""
        together = processes()
        if together.is_main:
            if not self.is_locked:
                self._lock()
            self.place = self.folder.begin(overwrite=self.overwrite, resume=self.resume)
        place = together.gather(self.place)[0]
        assert isinstance(place, Path)
        return place

    def abandon(self, error: Exception) -> None:
        """Leave the folder as it was, unless there is a state to go on from."""
        if self.place is not None:
            self.folder.abandon(self.place, error, fresh=self.overwrite)


def _write_run(
    place: Path, trained: Trained, measured: dict[str, Any], recipe: RecipeSettings, states: StatesSettings
) -> None:
    """All files of a run."""
    facts = {
        **trained.facts,
        "states": asdict(states),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    trained.tuned.write_files(place, facts)
    write_lines(place / HISTORY_FILE, trained.result.history)
    write_text(place / CARD_FILE, model_card(trained.tuned, measured, recipe))
    write_json(place / METRICS_FILE, measured)


def _check_finished(folder: Path, model: ModelSettings, data: DataSettings, recipe: RecipeSettings) -> None:
    """Raise LatePromptError unless a finished run was made by these settings."""
    saved = read_run(folder)
    theirs = {
        key: value
        for part in ("model_settings", "data", "recipe")
        for key, value in section_of(saved, part, folder).items()
    }
    rows = read_json(folder / METRICS_FILE, "metrics").get("train_rows")
    if "recipe" not in theirs:  # of a version that knew but one
        recipe = replace(recipe, recipe="paper")
    recipe = recipe.resolved(rows if isinstance(rows, int) else 0, model.method)
    ours = {**asdict(model), **asdict(data), **asdict(recipe)}
    layers = saved.get("num_layers")
    if isinstance(layers, int) and layers > 1:
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


def _check_same_rows(folder: Path, rows: Rows) -> None:
    """Raise LatePromptError unless a finished run was trained and measured on these rows."""
    theirs = section_of(read_run(folder), "data", folder).get("fingerprints")
    if not isinstance(theirs, dict):
        return  # an early version's
    changed = [
        f"{name!r} ({theirs[name].get('rows')} rows then, {ours['rows']} now)"
        for name, ours in rows.fingerprints().items()
        if isinstance(theirs.get(name), dict) and theirs[name] != ours
    ]
    if changed:
        raise LatePromptError(
            f"{str(folder)!r} holds a finished run on other rows: {', '.join(changed)} changed since; use --overwrite "
            "without --resume to train again"
        )


def _resolved(value: Any) -> Any:
    """A setting with paths, alone or in a list, as they are on the disk."""
    if isinstance(value, list):
        return [_resolved(part) for part in value]
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value
