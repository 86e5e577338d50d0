"""The recipe: AdamW, warm-up and linear decay, clipping, best weights by dev (Liu et al. 2022, appendix)."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lateprompt.backbone.kernels.cpu_mode import CpuKernels
from lateprompt.data.batches import Batches, batch_order
from lateprompt.readouts import Batch, Readout
from lateprompt.training.accelerator import RunAccelerator
from lateprompt.training.checkpoint import Progress, Weights, load_checkpoint, save_checkpoint
from lateprompt.training.distributed import processes
from lateprompt.training.evaluate import evaluate
from lateprompt.training.metrics import is_better, primary_metric
from lateprompt.training.settings import PAPER_EPOCHS, RecipeSettings
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import RunNumbers


@dataclass
class FitResult:
    """What a training run measured.

    Args:
        metrics: dev metrics of the weights kept (empty without dev rows).
        history: one entry per evaluation: step, epoch, train_loss, seconds, and the dev metrics.
        steps: optimiser steps done.
        train_seconds: time in training steps, evaluations left out.
        tokens_per_second: real tokens trained on per second of it; None where no steps are done on batches.
    """

    metrics: dict[str, float]
    history: list[dict[str, Any]]
    steps: int
    train_seconds: float
    tokens_per_second: float | None


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(parameters: dict[str, nn.Parameter], recipe: RecipeSettings) -> torch.optim.Optimizer:
    """AdamW without weight decay on biases and normalisation weights (all parameters of one dimension)."""
    decayed = [p for p in parameters.values() if p.ndim > 1]
    plain = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.peak_rate, fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: RecipeSettings, steps: int, done: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """How the rate rises and falls over so many steps, of which some are done."""
    warmup = math.ceil(recipe.warmup_ratio * steps)
    made: torch.optim.lr_scheduler.LambdaLR
    if recipe.schedule == "constant":
        made = get_constant_schedule_with_warmup(optimizer, warmup, done - 1)
    else:
        fall = get_cosine_schedule_with_warmup if recipe.schedule == "cosine" else get_linear_schedule_with_warmup
        made = fall(optimizer, warmup, steps, last_epoch=done - 1)
    return made


def plan_steps(rows: int, recipe: RecipeSettings) -> tuple[int, int]:
    """Optimiser steps per epoch and in all."""
    per_epoch = math.ceil(math.ceil(rows / recipe.batch_size) / recipe.grad_accumulation)
    return per_epoch, recipe.max_steps if recipe.max_steps is not None else per_epoch * (recipe.epochs or PAPER_EPOCHS)


def rows_needed(feed: Batches, recipe: RecipeSettings) -> np.ndarray:
    """The rows that training will see: all, unless it stops within the first epoch."""
    per_epoch, total = plan_steps(len(feed), recipe)
    if total >= per_epoch:
        return np.arange(len(feed))
    order = batch_order(feed.lengths, recipe.batch_size, recipe.seed, 0)
    return np.sort(np.concatenate(order[: total * recipe.grad_accumulation]))


def _step_batches(
    feed: Batches, recipe: RecipeSettings, first_step: int, total: int
) -> Generator[list[tuple[Batch, float]], None, None]:
    """This process's batches of each optimiser step from `first_step` on, and the share of the step's rows in each."""
    own = processes()
    per_epoch, _ = plan_steps(len(feed), recipe)
    step = first_step
    while step < total:
        epoch, done = divmod(step, per_epoch)
        order = batch_order(feed.lengths, recipe.batch_size, recipe.seed, epoch)
        order = order[done * recipe.grad_accumulation :]
        shares = [own.share(rows) for rows in order]
        # A process without a row of its own takes one along that counts nothing.
        taken = [share if len(share) else rows[:1] for share, rows in zip(shares, order, strict=True)]
        batches: list[tuple[Batch, int]] = []
        rows = 0
        for batch, share, whole in zip(feed.batches(taken), shares, order, strict=True):
            batches.append((batch, len(share)))
            rows += len(whole)
            if len(batches) == recipe.grad_accumulation:
                yield [(part, size / rows) for part, size in batches]
                step, batches, rows = step + 1, [], 0
                if step == total:
                    return
        if batches:
            yield [(part, size / rows) for part, size in batches]
            step += 1


class Trainer:
    """Train what is trainable in a model; with dev rows, keep the weights that were best on them.

    `run` does it all; `step` and `evaluate` are its parts. The model is in training mode until the last evaluation is
    over. Random numbers come from the recipe's seed alone; torch's, numpy's and Python's own are neither used nor
    changed.

    Args:
        model: the PEFT model; its trainable parameters are trained in place.
        readout: gives loss and scores of a batch.
        train, dev: the rows.
        recipe: the recipe's settings.
        metrics: the task's metrics; the first (or the mean of accuracy and F1) decides which weights are best.
        device: where batches go; the model is there already.
        checkpoint: a folder to write the state to at each evaluation, and to resume from if it holds one.
        settings: what the run is, as JSON: a checkpoint of another run is refused.
        quiet: no progress bar.

    Raises:
        LatePromptError: the checkpoint is broken, or of another run.

    Example:
        >>> from lateprompt.data import Row, load_task
        >>> from lateprompt.demo import installed_encoder
        >>> from lateprompt.predictors.classifier import TextClassifier
        >>> from lateprompt.training.settings import ModelSettings
        >>> tuned = TextClassifier.build(ModelSettings(installed_encoder(), readout="head"), load_task("sst2"), seed=1)
        >>> rows = tuned.batches([Row("a gem .", label="positive"), Row("so dull", label="negative")])
        >>> recipe = RecipeSettings(max_steps=4, eval_every=2)
        >>> trainer = Trainer(tuned.model, tuned.readout, rows, rows, recipe, metrics=["accuracy"], device=tuned.device)
        >>> trainer.step()
        >>> trainer.evaluate()["step"], trainer.run().steps
        (1, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        readout: Readout,
        train: Batches,
        dev: Batches | None,
        recipe: RecipeSettings,
        *,
        metrics: Sequence[str],
        device: torch.device,
        checkpoint: Path | None = None,
        settings: str = "{}",
        quiet: bool = True,
    ) -> None:
        self.readout, self.dev, self.metrics, self.device = readout, dev, metrics, device
        self.recipe = recipe = recipe.resolved(len(train))
        self.checkpoint, self.settings = checkpoint, settings
        self.steps_per_epoch, self.total_steps = plan_steps(len(train), recipe)
        self.parameters = trainable_parameters(model)
        self.optimizer = make_optimizer(self.parameters, recipe)
        self.accelerator = RunAccelerator(device, recipe.precision)
        self.numbers = RunNumbers(recipe.seed, device, processes().rank)  # weights start alike, dropout is each one's
        self._before = {name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()}
        self._progress, self._best = Progress(), cast(Weights, {})
        self._tokens, self._loss_sum = 0, torch.zeros((), device=device)  # since the last evaluation
        with self._undone_on_error():
            self._resume()
        readout.layer.train()
        # Asked in training mode; a baseline drops out as PEFT has it.
        self._fast_dropout = bool(getattr(readout.layer, "drops_out_quickly", False))
        self.schedule = make_schedule(self.optimizer, recipe, self.total_steps, self.steps_done)
        self._batches = _step_batches(train, recipe, self.steps_done, self.total_steps)
        quiet = quiet or not processes().is_main
        self._bar = Bar("training", self.total_steps, quiet=quiet, start=self.steps_done)

    @property
    def steps_done(self) -> int:
        """Optimiser steps done, those before a resume included."""
        return self._progress.step

    @property
    def history(self) -> list[dict[str, Any]]:
        """What `evaluate` gave, so far."""
        return self._progress.history

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or patience with the dev metric is at its end."""
        patience = self.recipe.patience if self.dev is not None else None
        return self.steps_done >= self.total_steps or (patience is not None and self._progress.waited >= patience)

    def run(self) -> FitResult:
        """Train to the end, from wherever it stands.

        Raises:
            LatePromptError: the loss or a weight is no number any more. After this, an interruption or any other error
                the weights are those from before the trainer was made.
        """
        with self._undone_on_error(), closing(self._batches), self._bar:
            self.run_to_evaluation()
            while not self.finished:
                self.run_to_evaluation()
        return self.result()

    def run_to_evaluation(self) -> dict[str, Any] | None:
        """Go on to the next evaluation, and give its entry; at the last one, take the best weights.

        Returns:
            What `evaluate` gave; None if the training was finished before.
        """
        entry = None
        if not self.finished:
            every = self.recipe.eval_every or self.steps_per_epoch
            self.step()
            while self.steps_done % every and self.steps_done < self.total_steps:
                self.step()
            entry = self.evaluate()
        if self.finished:
            self._finish()
        return entry

    def step(self) -> None:
        """Do one optimiser step, on the next rows.

        Raises:
            LatePromptError: all steps are done.
        """
        batches = next(self._batches, None)
        if batches is None:
            raise LatePromptError(f"all {self.total_steps} steps are done; give more steps to go on")
        started = time.perf_counter()
        with self.numbers.step(shared=not self._fast_dropout):
            for batch, share in batches:
                self._backward(batch, share)
            self.accelerator.add_gradients(self.parameters.values())
            if self.recipe.max_grad_norm:
                self._clip(self.recipe.max_grad_norm)
            self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._progress.step += 1
        self._progress.loss_steps += 1
        self._progress.seconds += time.perf_counter() - started
        self._bar.advance()

    def _backward(self, batch: Batch, share: float) -> None:
        """Add a batch's gradients; `share` is its part of all rows of the step."""
        self._tokens += int(batch.attention_mask.sum()) if share else 0  # known here without asking the device
        with CpuKernels() if self._fast_dropout else nullcontext(), self.accelerator.autocast():
            loss = self._loss(batch.to(self.device))
            loss = loss if share == 1 else loss * share  # two operations less, where a step is one batch
        self.accelerator.backward(loss)
        self._loss_sum += loss.detach()

    def _loss(self, batch: Batch) -> torch.Tensor:
        """What is made small."""
        return self.readout.loss(batch)

    def _clip(self, max_norm: float) -> None:
        """Bound the step's gradients."""
        self.accelerator.clip_grad_norm_(self.parameters.values(), max_norm)

    def evaluate(self) -> dict[str, Any]:
        """Measure the training since the last evaluation and the dev rows; keep the weights if they are the best.

        Returns:
            The history's new entry: step, epoch, train_loss, seconds, and the dev metrics.

        Raises:
            LatePromptError: the loss is no number any more, or there was no step since the last evaluation.
        """
        progress = self._progress
        entry = {"step": progress.step, "epoch": progress.step / self.steps_per_epoch}
        entry |= {"train_loss": self._mean_loss(), "seconds": progress.seconds}
        if self.dev is not None:
            entry |= {f"dev_{name}": value for name, value in self._evaluate_dev(self.dev).items()}
            metric = primary_metric(self.metrics)
            self._bar.note(f"loss {entry['train_loss']:.3f}, dev {metric} {entry[f'dev_{metric}']:.3f}")
        progress.history.append(entry)
        if self.checkpoint is not None and progress.step < self.total_steps and processes().is_main:
            weights = snapshot(self.parameters)
            save_checkpoint(self.checkpoint, progress, weights, self._best, self.optimizer, self.settings, self.numbers)
        return entry

    def _mean_loss(self) -> float:
        """The mean loss of the steps since the last evaluation, all processes together; the counts begin anew."""
        progress = self._progress
        if not progress.loss_steps:
            raise LatePromptError(
                f"no step since the evaluation at step {progress.step}; call step() before evaluate()"
            )
        loss, tokens = self.accelerator.add(float(self._loss_sum), self._tokens)
        mean = loss / progress.loss_steps
        if not math.isfinite(mean):
            raise LatePromptError(
                f"training diverged: the loss is {mean} by step {progress.step} at lr {self.recipe.lr!r}; "
                "lower lr, or clip gradients"
            )
        progress.tokens += int(tokens)
        progress.loss_steps = self._tokens = 0
        self._loss_sum.zero_()
        return mean

    def _evaluate_dev(self, dev: Batches) -> dict[str, float]:
        """Metrics of the dev rows; the weights are kept if they are the best so far."""
        values = evaluate(
            self.readout,
            dev,
            self.metrics,
            batch_size=self.recipe.eval_batch_size,
            device=self.device,
            autocast=self.accelerator.mixed_precision == "bf16",
        )
        progress, metric = self._progress, primary_metric(self.metrics)
        if is_better(metric, values[metric], progress.best):
            progress.best, progress.best_step, progress.waited = values[metric], progress.step, 0
            self._best = snapshot(self.parameters)
        else:
            progress.waited += 1
        return values

    def result(self) -> FitResult:
        """What was measured so far."""
        progress = self._progress
        best = [entry for entry in progress.history if entry["step"] == progress.best_step]
        metrics = {name: value for entry in best for name, value in entry.items() if name.startswith("dev_")}
        return FitResult(
            metrics={name.removeprefix("dev_"): value for name, value in metrics.items()},
            history=progress.history,
            steps=progress.step,
            train_seconds=progress.seconds,
            tokens_per_second=progress.tokens / max(progress.seconds, 1e-9),
        )

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        found = None
        if self.checkpoint is not None:
            found = load_checkpoint(self.checkpoint, self.optimizer, self.settings, self.numbers)
        if found is not None:
            self._progress, weights, self._best = found
            restore(self.parameters, weights)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", self.recipe.peak_rate)

    def _finish(self) -> None:
        """Take the best weights."""
        if self._best:
            restore(self.parameters, self._best)
        broken = next((name for name, value in self.parameters.items() if not bool(value.isfinite().all())), None)
        if broken is not None:  # the last step did it: no loss has shown it
            raise LatePromptError(
                f"training diverged: {broken} is no number after step {self.steps_done} at lr {self.recipe.lr!r}; "
                "lower lr, or clip gradients"
            )
        self.readout.layer.eval()

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """After an error the weights are those from before."""
        try:
            yield
        except BaseException:
            for parameter in self.parameters.values():
                parameter.grad = None
            restore(self.parameters, self._before)
            self.readout.layer.eval()
            raise


def fit(
    model: nn.Module,
    readout: Readout,
    train: Batches,
    dev: Batches | None,
    recipe: RecipeSettings,
    *,
    metrics: Sequence[str],
    device: torch.device,
    checkpoint: Path | None = None,
    settings: str = "{}",
    quiet: bool = True,
) -> FitResult:
    """Train what is trainable in `model` on `train`: a `Trainer`'s `run`, with the arguments of the `Trainer`."""
    more: dict[str, Any] = {"checkpoint": checkpoint, "settings": settings, "quiet": quiet}
    return Trainer(model, readout, train, dev, recipe, metrics=metrics, device=device, **more).run()


def snapshot(parameters: dict[str, nn.Parameter]) -> Weights:
    """Return copies of parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def restore(parameters: dict[str, nn.Parameter], weights: Weights) -> None:
    """Put the weights of `snapshot` back."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
