"""One training run, from data files to a run folder."""

from __future__ import annotations

import contextlib
import gc
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lateprompt.data import AnyTask, TextTask
from lateprompt.data.batches import Feed
from lateprompt.methods import check_method
from lateprompt.predictors.base import TunedModel
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.saved_run import TASK_FILE, asked_by, read_task
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.run_folder.folder import METRICS_FILE, RunFolder, reading
from lateprompt.runs.data import DEV_ROWS as DEV_ROWS
from lateprompt.runs.data import Rows as Rows
from lateprompt.runs.data import check_sets as check_sets
from lateprompt.runs.data import fingerprint as fingerprint
from lateprompt.runs.data import load_rows as load_rows
from lateprompt.runs.data import resolve_task as resolve_task
from lateprompt.runs.finished import check_same_rows, check_same_settings, check_same_task
from lateprompt.runs.model_card import CARD_FILE, model_card
from lateprompt.runs.training_folder import TrainingFolder
from lateprompt.state_cache.feed import StatesFeed
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings as DataSettings
from lateprompt.training.distributed import processes
from lateprompt.training.loop import FitResult, fit, rows_needed
from lateprompt.training.metrics import check_metrics
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.files import read_json, write_json, write_lines, write_text

HISTORY_FILE = "history.jsonl"


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
    asked = {"task": asked_by(rows.task), "model weights": tuned.base_fingerprint}
    settings = json.dumps({"model": asdict(tuned.settings), **facts, **asked}, sort_keys=True)
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
            check_same_settings(folder.path, model, data, recipe)
            rows = load_rows(data, recipe.seed, model.readout)
            check_same_rows(folder.path, rows.fingerprints())
            check_same_task(folder.path, rows.task)
            tuned = load_run(folder.path, device=model.device)
            return tuned, read_json(folder.path / METRICS_FILE, "metrics")
    inputs = [data.train, *data.dev, *data.test, *([data.task] if data.task else [])]
    with ExitStack() as held:
        checkpoint = TrainingFolder(folder, held, inputs, overwrite=overwrite and not resume, resume=resume)
        with checkpoint.training():
            trained = train_model(model, data, recipe, states, prepare=checkpoint.begin, quiet=quiet)
        with checkpoint.writing():
            measured = trained.measure(recipe.eval_batch_size)
            if processes().is_main:
                folder.replace(lambda place: _write_run(place, trained, measured, recipe, states))
    return trained.tuned, measured


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
