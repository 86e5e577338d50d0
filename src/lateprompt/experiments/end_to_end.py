"""`lateprompt bench job`: a whole job on a data file, from the first step to the last evaluation, by several methods.

A job is what `lateprompt train` does: fill the kept trunk states (where there is a trunk to skip), then epochs of
training with an evaluation of the dev rows after each. All methods train on the same rows in the same batches (but for
the run with another seed), with the same recipe, dtype and attention kernel, and read the same positions through the
same kind of head: a new one on the pooled states, or the model's LM head over the label words. What comes with the
library is counted in its favour: kept states, the lean tail and cheap dropout; PEFT's methods run as PEFT has them.

The methods take turns, one epoch each, so that the machine's drift hits all alike; each has its own random
numbers, so that it trains as if it were alone. Loading models and encoding rows are counted for none, and every method
makes a forward and a backward pass before the clock starts.

On a busy machine OpenMP's threads, which wait for each other by spinning, can make one method several times as slow and
spare another: measure on a quiet machine, or with OMP_WAIT_POLICY=passive. The result holds the machine's load.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn

from lateprompt.backbone.kernels.cpu_mode import CpuKernels
from lateprompt.data import TextTask
from lateprompt.data.batches import Feed
from lateprompt.experiments.baselines import PROMPT_TOKENS, PROMPT_TUNING, RIVALS, make_rival
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.loading import load_config, max_positions
from lateprompt.prompts import GENERATORS
from lateprompt.readouts import PhraseReadout, Readout
from lateprompt.runs.data import DEV, TRAIN, Rows, check_sets, fingerprint, load_rows
from lateprompt.runs.environment import versions
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.loop import Trainer, plan_steps, trainable_parameters
from lateprompt.training.metrics import primary_metric
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.aliases import takes_earlier_names
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.randomness import RunNumbers
from lateprompt.utils.suggestions import did_you_mean
from lateprompt.utils.validation import Count, OneOf, check_types

NO_LIMIT_GB = 1e6


@takes_earlier_names
@dataclass
class JobSettings:
    """What is measured.

    Args:
        model: folder or hub id of a pretrained model.
        train: training rows.
        dev: dev rows, evaluated after each epoch.
        task: name of a task (see lateprompt tasks) or a YAML file; default a plain one from the labels found.
        prompt_layer: number of layers below the late prompt, or a fraction of the depth.
        method: the late prompt's generator: npg, mppg, appg, atpg, rpg or fixed.
        epochs: passes over the training rows; ignored when max_steps is given.
        max_steps: number of optimiser steps.
        shots: train on so many rows in all, class-proportional; without dev, 1000 of the others become dev rows.
        batch_size: rows in a batch.
        lr: peak learning rate of all methods.
        eval_every: evaluate every so many steps; default once an epoch.
        seed: seed of all methods but the second run, which has the next one.
        rivals: PEFT methods to compare with: prompt-tuning, lora, both, or none.
        rival_epochs: stop PEFT's methods after so many epochs and extrapolate their time; default they go to the end.
        states: folder of kept states; default a fresh one, so that the first run fills it; removed at the end.
        readout: masked_lm, causal_lm, head or auto.
        head_pooling: what a trained head reads, of all methods: cls, mean or last; default mean for encoders, last for
            decoders.
        dtype: float type of the frozen weights of all methods.
        device: where to run; default a GPU if there is one.
    """

    model: str | None = None
    train: str | None = None
    dev: str | None = None
    task: str | None = None
    prompt_layer: int | float | str = "0.5"
    method: str = "npg"
    epochs: int = 10
    max_steps: int | None = None
    shots: int | None = None
    batch_size: int = 32
    lr: float = 1e-3
    eval_every: int | None = None
    seed: int = 42
    rivals: list[Annotated[str, OneOf(tuple(RIVALS))]] = field(default_factory=lambda: list(RIVALS))
    rival_epochs: Count | None = None
    states: str | None = None
    readout: str = "auto"
    head_pooling: str | None = None
    dtype: str = "float32"
    device: str | None = None

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        if self.model is None or self.train is None:
            raise LatePromptError(
                "bench job needs a model and training rows: lateprompt bench job --model MODEL --train FILE --dev FILE"
            )
        check_types(self)
        if self.method not in GENERATORS:
            raise LatePromptError(
                f"method {self.method!r} makes no late prompt{did_you_mean(self.method, GENERATORS)}; "
                f"choose one of {', '.join(GENERATORS)}"
            )
        if self.states in ("on", "off"):
            raise LatePromptError(
                f"states {self.states!r} is no folder; give one, or leave --states out for a fresh one"
            )
        self.recipe().check()
        self.late_prompt(self.method).check()

    def recipe(self) -> RecipeSettings:
        """The recipe of all methods."""
        return RecipeSettings(
            epochs=self.epochs,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            lr=self.lr,
            eval_every=self.eval_every,
            seed=self.seed,
        )

    def late_prompt(self, method: str) -> ModelSettings:
        """A late prompt's settings; its loss is over the label words, as the rivals' is."""
        assert self.model is not None
        return ModelSettings(
            model=self.model,
            method=method,
            prompt_layer=self.prompt_layer,
            readout=self.readout,
            head_pooling=self.head_pooling,
            loss="labels",
            dtype=self.dtype,
            device=self.device,
        )


class Job:
    """One method on its way through the job, a turn at a time; the clock runs within turns only.

    Args:
        name: the row's name.
        model: holds what is trained.
        readout: gives loss and scores.
        feeds: the training rows and the dev rows.
        recipe: the recipe, with this job's seed.
        metrics: the task's metrics.
        device: where the model is.
        pipeline: of a late prompt: what keeps its trunk states and frees weights.
        stop_after: epochs after which it is stopped; None for all.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        readout: Readout,
        feeds: tuple[Feed, Feed | None],
        recipe: RecipeSettings,
        *,
        metrics: Sequence[str],
        device: torch.device,
        pipeline: Pipeline | None = None,
        stop_after: int | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.readout = readout
        self.feeds = feeds
        self.recipe = recipe
        self.metrics = metrics
        self.device = device
        self.pipeline = pipeline
        self.stop_after = stop_after
        self.per_epoch, self.steps = plan_steps(len(feeds[0]), recipe)
        self.seconds = 0.0
        self.ends: list[float] = []
        self.history: list[dict[str, Any]] = []
        self._trainer: Trainer | None = None

    @property
    def steps_done(self) -> int:
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def finished(self) -> bool:
        """Whether it took its last step, or was stopped."""
        stopped = self.stop_after is not None and self.steps_done >= self.stop_after * self.per_epoch
        return stopped or self.steps_done == self.steps

    def warm_up(self) -> None:
        """A forward and a backward pass that is not counted and leaves no trace."""
        self.readout.layer.train()
        quick = bool(getattr(self.readout.layer, "drops_out_quickly", False))
        dropout = CpuKernels if quick else nullcontext
        with RunNumbers(self.recipe.seed, self.device).step(shared=not quick), dropout():
            rows = np.arange(min(self.recipe.batch_size, len(self.feeds[0])))
            self.readout.loss(self.feeds[0].batch(rows).to(self.device)).backward()
            self.model.zero_grad(set_to_none=True)

    def turn(self) -> None:
        """Go on to the end of the next epoch (or of the next eval_every steps), its evaluation included."""
        _synchronize(self.device)
        started = time.perf_counter()
        if self._trainer is None:
            self._trainer = self._start()
        self.history.append(self._trainer.run_to_evaluation() or {})
        _synchronize(self.device)
        self.seconds += time.perf_counter() - started
        self.ends.append(self.seconds)
        if self.finished:
            self._trainer = None

    def _start(self) -> Trainer:
        train, dev = self.feeds
        if self.pipeline is not None:
            train, dev = _kept_feeds(self.pipeline)
        return Trainer(self.model, self.readout, train, dev, self.recipe, metrics=self.metrics, device=self.device)

    def row(self) -> dict[str, Any]:
        """What was measured; `total_seconds` is extrapolated where the method was stopped before its last step."""
        total = self.seconds * self.steps / self.steps_done
        metric = f"dev_{primary_metric(self.metrics)}"
        return {
            "method": self.name,
            "seed": self.recipe.seed,
            "trainable_parameters": sum(p.numel() for p in trainable_parameters(self.model).values()),
            "steps": self.steps,
            "steps_measured": self.steps_done,
            "epochs_measured": self.steps_done / self.per_epoch,
            "seconds_to_epoch_end": self.ends,
            "measured_seconds": self.seconds,
            "training_seconds": self.history[-1]["seconds"],
            "extrapolated": self.steps_done < self.steps,
            "total_seconds": total,
            "fill_seconds": None if self.pipeline is None else self.pipeline.fill_seconds,
            "trunk_share": None if self.pipeline is None else self.pipeline.fill_seconds / total,
            "dev": self.history[-1].get(metric),
            "dev_at_epoch_end": [entry.get(metric) for entry in self.history],
        }


def _kept_feeds(pipeline: Pipeline) -> tuple[Feed, Feed | None]:
    """The training and dev rows with trunk states, without the weights that training does not read then."""
    pipeline.keep_states()
    if not isinstance(pipeline.feeds[TRAIN], CachedBatches):
        raise LatePromptError(
            f"trunk states do not fit on the disk of {pipeline.states.states!r}; "
            "give a folder on another disk with --states"
        )
    pipeline.free_weights()
    return pipeline.feeds[TRAIN], pipeline.feeds.get(DEV)


def make_jobs(settings: JobSettings, rows: Rows, states: Path) -> list[Job]:
    """The rivals, then the late prompts, in the order of their turns: the first late prompt fills the states."""
    recipe = settings.recipe()
    other = "mppg" if settings.method != "mppg" else "npg"
    plans = [
        (f"LPT {settings.method}, first run", settings.method, settings.seed),
        (f"LPT {settings.method}, second run", settings.method, (settings.seed + 1) % 2**32),
        (f"LPT {other}, second run", other, settings.seed),
    ]
    length = _max_length(settings)
    kept = StatesSettings(states=str(states), states_limit_gb=NO_LIMIT_GB)
    pipelines: list[Pipeline] = []
    jobs: list[Job] = []
    for name, method, seed in plans:
        late_prompt = replace(settings.late_prompt(method), max_length=length)
        pipeline = Pipeline(late_prompt, rows, replace(recipe, seed=seed), kept)
        pipeline.build()
        if isinstance(pipeline.tuned.readout, PhraseReadout):
            raise LatePromptError(
                f"task {rows.task.name!r} has label words of several tokens on {settings.model!r}: PEFT's methods "
                f"have no readout for them here; use {option('readout', 'head')}"
            )
        if pipelines:
            pipeline.feeds = dict(pipelines[0].feeds)
        else:
            pipeline.encode()
        pipelines.append(pipeline)
        jobs.append(
            Job(
                name,
                pipeline.tuned.model,
                pipeline.tuned.readout,
                (pipeline.feeds[TRAIN], pipeline.feeds.get(DEV)),
                pipeline.recipe,
                metrics=rows.task.metrics,
                device=pipeline.tuned.device,
                pipeline=pipeline,
            )
        )
    first, feeds = pipelines[0].tuned, jobs[0].feeds
    assert isinstance(first, TextClassifier)
    rivals = []
    for key in dict.fromkeys(settings.rivals):
        model, readout = make_rival(key, first, seed=settings.seed)
        rivals.append(
            Job(
                RIVALS[key][0],
                model,
                readout,
                feeds,
                recipe,
                metrics=rows.task.metrics,
                device=first.device,
                stop_after=settings.rival_epochs,
            )
        )
    return rivals + jobs


def run_job(settings: JobSettings, *, quiet: bool = True) -> dict[str, Any]:
    """Take all methods through the job in turns.

    Returns:
        `rows`, one entry per method; `machine`; and `job`: the settings, and the rows by number and SHA-256.
    """
    settings.check()
    assert settings.train is not None
    data = DataSettings(
        train=settings.train,
        dev=[] if settings.dev is None else [settings.dev],
        task=settings.task,
        shots=settings.shots,
    )
    rows = load_rows(data, settings.seed, settings.readout)
    if isinstance(rows.task, TextTask):
        raise LatePromptError(f"task {rows.task.name!r} has texts for answers; a bench job compares classifiers")
    check_sets(rows)
    load = _load()
    with tempfile.TemporaryDirectory(prefix="lateprompt-job-") as fresh:
        jobs = make_jobs(settings, rows, Path(settings.states or fresh))
        for job in jobs:
            job.warm_up()
        turns = max(-(-job.steps // (settings.eval_every or job.per_epoch)) for job in jobs)
        with Bar("epochs", turns, quiet=quiet) as bar:
            while waiting := [job for job in jobs if not job.finished]:
                for job in waiting:
                    bar.note(job.name)
                    job.turn()
                bar.advance()
    results = [job.row() for job in jobs]
    baseline = next((row for row in results if row["method"] == RIVALS[PROMPT_TUNING][0]), None)
    for row in results:
        row["speed_vs_prompt_tuning"] = baseline and baseline["total_seconds"] / row["total_seconds"]
        row["speed_extrapolated"] = baseline and (baseline["extrapolated"] or row["extrapolated"])
    return {
        "rows": results,
        "machine": {**_machine(jobs[0].device), "load_before": load, "load_after": _load()},
        "job": {
            **asdict(settings),
            "metric": primary_metric(rows.task.metrics),
            "steps_per_epoch": jobs[0].per_epoch,
            "train_rows": fingerprint(rows.train),
            "dev_rows": fingerprint(rows.dev),
        },
    }


def _max_length(settings: JobSettings) -> int:
    """The longest input of all methods: it leaves room for prompt tuning's virtual tokens among the positions."""
    assert settings.model is not None
    length = settings.late_prompt(settings.method).max_length
    limit = max_positions(load_config(settings.model))
    if limit is None or PROMPT_TUNING not in settings.rivals:
        return length
    return min(length, limit - PROMPT_TOKENS)


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "platform": platform.platform(),
        **versions(),
    }


def _load() -> float | None:
    """Processes that wanted a CPU in the last minute, this one included."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
