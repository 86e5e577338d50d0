"""`lateprompt bench end-to-end`: all of a training on a data file, from the first step to the last evaluation.

Each method does what `lateprompt train` does: it fills the stored trunk states (where there is a trunk to skip), then
trains for some epochs and evaluates the dev rows after each. All train on the same rows in the same batches (but for
the run with another seed), with the same recipe, dtype and attention kernel, and read the same positions through the
same kind of head: a new one on the pooled states, or the model's LM head over the label words. Late prompts use what
the library has: stored states, a last layer that runs at the read positions only, and cheap dropout. PEFT's methods run
as PEFT has them.

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
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import nn

from lateprompt.backbone.kernels.cpu_mode import CpuKernels
from lateprompt.data import TextTask
from lateprompt.data.batches import Batches
from lateprompt.experiments.baselines import make_baseline
from lateprompt.experiments.methods import BASELINE, BASELINES, METHODS
from lateprompt.methods import METHODS as KNOWN
from lateprompt.predictors.base import TunedModel
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.loading import load_config, max_positions
from lateprompt.readouts import Readout
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
from lateprompt.utils.names import READ_ONLY
from lateprompt.utils.randomness import RunNumbers
from lateprompt.utils.suggestions import did_you_mean
from lateprompt.utils.validation import Count, OneOf, check_types

NO_LIMIT_GB = 1e6


@takes_earlier_names
@dataclass
class EndToEndSettings:
    """What is measured.

    Args:
        model: folder or hub id of a pretrained model.
        train: training rows.
        dev: dev rows, evaluated after each epoch.
        task: name of a task (see lateprompt tasks) or a YAML file; default a plain one from the labels found.
        prompt_layer: number of layers below the late prompt, or a fraction of the depth.
        method: the late prompt: npg, mppg, appg, atpg, rpg or fixed, or one that the text does not see: read-npg, …
        epochs: passes over the training rows; ignored when max_steps is given.
        max_steps: number of optimiser steps.
        shots: train on so many rows in all, class-proportional; without dev, 1000 of the others become dev rows.
        batch_size: rows in a batch.
        lr: peak learning rate of all methods.
        eval_every: evaluate every so many steps; default once an epoch.
        seed: seed of all methods but the second run, which has the next one.
        baselines: PEFT methods to compare with: prompt-tuning, lora, both, or none.
        baseline_epochs: stop PEFT's methods after so many epochs and extrapolate their time; default they go to the
            end.
        states: folder of cached states; default a fresh one, so that the first run fills it; removed at the end.
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
    baselines: list[Annotated[str, OneOf(tuple(BASELINES))]] = field(default_factory=lambda: list(BASELINES))
    baseline_epochs: Count | None = None
    states: str | None = None
    readout: str = "auto"
    head_pooling: str | None = None
    dtype: str = "float32"
    device: str | None = None

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        if self.model is None or self.train is None:
            raise LatePromptError(
                "bench end-to-end needs a model and training rows: "
                "lateprompt bench end-to-end --model MODEL --train FILE --dev FILE"
            )
        check_types(self)
        known = [name for name, method in KNOWN.items() if method.kind == "prompt" and method.late]
        if self.method not in known:
            raise LatePromptError(
                f"method {self.method!r} makes no late prompt{did_you_mean(self.method, known)}; "
                f"choose one of {', '.join(known)}"
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
        """A late prompt's settings; its loss is over the label words, as the baselines' is."""
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


class MethodRun:
    """One method on its way through the benchmark, a turn at a time; the clock runs within turns only.

    Args:
        name: the row's name.
        model: holds what is trained.
        readout: gives loss and scores.
        batches: of the training rows and the dev rows.
        recipe: the recipe, with this method's seed.
        metrics: the task's metrics.
        device: where the model is.
        pipeline: of a late prompt: what stores its trunk states and frees weights.
        stop_after: epochs after which it is stopped; None for all.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        readout: Readout,
        batches: tuple[Batches, Batches | None],
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
        self.batches = batches
        self.recipe = recipe
        self.metrics = metrics
        self.device = device
        self.pipeline = pipeline
        self.stop_after = stop_after
        self.per_epoch, self.steps = plan_steps(len(batches[0]), recipe)
        self.seconds = 0.0
        self.ends: list[float] = []
        self.history: list[dict[str, Any]] = []
        self._trainer: Trainer | None = None

    @classmethod
    def of_late_prompt(cls, name: str, pipeline: Pipeline) -> MethodRun:
        """A late prompt, from a pipeline that has built it and encoded the rows."""
        assert isinstance(pipeline.tuned, TunedModel)
        tuned, batches = pipeline.tuned, (pipeline.batches[TRAIN], pipeline.batches.get(DEV))
        facts: dict[str, Any] = {"metrics": tuned.task.metrics, "device": tuned.device, "pipeline": pipeline}
        return cls(name, tuned.model, tuned.readout, batches, pipeline.recipe, **facts)

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
            rows = np.arange(min(self.recipe.batch_size, len(self.batches[0])))
            self.readout.loss(self.batches[0].batch(rows).to(self.device)).backward()
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
        train, dev = self.batches
        if self.pipeline is not None:
            train, dev = _cached_batches(self.pipeline)
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


def _cached_batches(pipeline: Pipeline) -> tuple[Batches, Batches | None]:
    """The training and dev rows with stored trunk states, without the weights that training does not read then."""
    pipeline.cache_states()
    if not isinstance(pipeline.batches[TRAIN], CachedBatches):
        raise LatePromptError(
            f"trunk states do not fit on the disk of {pipeline.states.states!r}; "
            "give a folder on another disk with --states"
        )
    pipeline.free_weights()
    return pipeline.batches[TRAIN], pipeline.batches.get(DEV)


def _title(method: str) -> str:
    return KNOWN[method].title if KNOWN[method].read_only else f"LPT {method}"


def make_runs(settings: EndToEndSettings, rows: Rows, states: Path) -> list[MethodRun]:
    """The baselines, then the late prompts, in the order of their turns: the first late prompt fills the states."""
    other = "mppg" if settings.method.removeprefix(READ_ONLY) != "mppg" else "npg"
    if KNOWN[settings.method].read_only:  # another kind of prompt would find other layers' states missing
        other = READ_ONLY + other
    plans = [
        (f"{_title(settings.method)}, first run", settings.method, settings.seed),
        (f"{_title(settings.method)}, second run", settings.method, (settings.seed + 1) % 2**32),
        (f"{_title(other)}, second run", other, settings.seed),
    ]
    length = _max_length(settings)
    stored = StatesSettings(states=str(states), states_limit_gb=NO_LIMIT_GB)
    late_prompts: list[MethodRun] = []
    feeds: dict[str, Batches] | None = None
    for name, method, seed in plans:
        late_prompt = replace(settings.late_prompt(method), max_length=length)
        pipeline = Pipeline(late_prompt, rows, replace(settings.recipe(), seed=seed), stored)
        pipeline.build()
        assert isinstance(pipeline.tuned, TunedModel)
        if pipeline.tuned.readout.continuations():
            raise LatePromptError(
                f"task {rows.task.name!r} has label words of several tokens on {settings.model!r}: PEFT's methods "
                f"have no readout for them here; use {option('readout', 'head')}"
            )
        if feeds is None:
            pipeline.encode()
            feeds = dict(pipeline.batches)
        pipeline.batches = dict(feeds)  # all methods get the very same rows
        late_prompts.append(MethodRun.of_late_prompt(name, pipeline))
    assert late_prompts[0].pipeline is not None
    first = cast(TextClassifier, late_prompts[0].pipeline.tuned)
    baselines = [
        MethodRun(
            BASELINES[name].title,
            *make_baseline(name, first, seed=settings.seed),
            late_prompts[0].batches,
            settings.recipe(),
            metrics=rows.task.metrics,
            device=first.device,
            stop_after=settings.baseline_epochs,
        )
        for name in dict.fromkeys(settings.baselines)
    ]
    return baselines + late_prompts


def run_end_to_end(settings: EndToEndSettings, *, quiet: bool = True) -> dict[str, Any]:
    """Take all methods through the benchmark in turns.

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
        raise LatePromptError(f"task {rows.task.name!r} has texts for answers; bench end-to-end compares classifiers")
    check_sets(rows)
    load = _load()
    with tempfile.TemporaryDirectory(prefix="lateprompt-job-") as fresh:
        runs = make_runs(settings, rows, Path(settings.states or fresh))
        for run in runs:
            run.warm_up()
        turns = max(-(-run.steps // (settings.eval_every or run.per_epoch)) for run in runs)
        with Bar("epochs", turns, quiet=quiet) as bar:
            while waiting := [run for run in runs if not run.finished]:
                for run in waiting:
                    bar.note(run.name)
                    run.turn()
                bar.advance()
    results = [run.row() for run in runs]
    prompt_tuning = next((row for row in results if row["method"] == METHODS[BASELINE].title), None)
    for row in results:
        row["speed_vs_prompt_tuning"] = prompt_tuning and prompt_tuning["total_seconds"] / row["total_seconds"]
        row["speed_extrapolated"] = prompt_tuning and (prompt_tuning["extrapolated"] or row["extrapolated"])
    return {
        "rows": results,
        "machine": {**_machine(runs[0].device), "load_before": load, "load_after": _load()},
        "job": {
            **asdict(settings),
            "metric": primary_metric(rows.task.metrics),
            "steps_per_epoch": runs[0].per_epoch,
            "train_rows": fingerprint(rows.train),
            "dev_rows": fingerprint(rows.dev),
        },
    }


def _max_length(settings: EndToEndSettings) -> int:
    """The longest input of all methods: it leaves room for prompt tuning's virtual tokens among the positions."""
    assert settings.model is not None
    length = settings.late_prompt(settings.method).max_length
    limit = max_positions(load_config(settings.model))
    tokens = max((BASELINES[name].input_tokens for name in settings.baselines), default=0)
    return length if limit is None else min(length, limit - tokens)


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


# -- names of earlier releases ----------------------------------------------------------------------------------------

JobSettings, Job, make_jobs, run_job = EndToEndSettings, MethodRun, make_runs, run_end_to_end
