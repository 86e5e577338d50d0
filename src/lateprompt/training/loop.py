"""The recipe: AdamW, warm-up and linear decay, clipping, best weights by dev (Liu et al. 2022, appendix)."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from lateprompt.backbone.kernels.cpu_dropout import FastDropout
from lateprompt.data.batches import Feed, batch_order
from lateprompt.readouts import Batch, Readout
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
        tokens_per_second: real tokens trained on per second of it.
    """

    metrics: dict[str, float]
    history: list[dict[str, Any]]
    steps: int
    train_seconds: float
    tokens_per_second: float


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


def plan_steps(rows: int, recipe: RecipeSettings) -> tuple[int, int]:
    """Optimiser steps per epoch and in all."""
    per_epoch = math.ceil(math.ceil(rows / recipe.batch_size) / recipe.grad_accumulation)
    return per_epoch, recipe.max_steps if recipe.max_steps is not None else per_epoch * (recipe.epochs or PAPER_EPOCHS)


def rows_needed(feed: Feed, recipe: RecipeSettings) -> np.ndarray:
    """The rows that training will see: all, unless it stops within the first epoch."""
    per_epoch, total = plan_steps(len(feed), recipe)
    if total >= per_epoch:
        return np.arange(len(feed))
    order = batch_order(feed.lengths, recipe.batch_size, recipe.seed, 0)
    return np.sort(np.concatenate(order[: total * recipe.grad_accumulation]))


def _step_batches(
    feed: Feed, recipe: RecipeSettings, first_step: int, total: int
) -> Iterator[list[tuple[Batch, float]]]:
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


def fit(
    model: nn.Module,
    readout: Readout,
    train: Feed,
    dev: Feed | None,
    recipe: RecipeSettings,
    *,
    metrics: Sequence[str],
    device: torch.device,
    checkpoint: Path | None = None,
    settings: str = "{}",
    quiet: bool = True,
) -> FitResult:
    """Train what is trainable in `model` on `train`; with dev rows, keep the weights that were best on them.

    Random numbers come from the recipe's seed alone; torch's, numpy's and Python's own are neither used nor changed.

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
        LatePromptError: the loss or a weight is no number any more. After this, an interruption or any other error the
            weights are those from before.
    """
    parameters = trainable_parameters(model)
    before = {name: value.detach().to("cpu", copy=True) for name, value in parameters.items()}
    turns = fit_turns(
        model,
        readout,
        train,
        dev,
        recipe,
        metrics=metrics,
        device=device,
        checkpoint=checkpoint,
        settings=settings,
        quiet=quiet,
    )
    try:
        while True:
            try:
                next(turns)
            except StopIteration as finished:
                return cast(FitResult, finished.value)
    except BaseException:
        turns.close()
        for parameter in parameters.values():
            parameter.grad = None
        _restore(parameters, before)
        readout.layer.eval()
        raise


def fit_turns(
    model: nn.Module,
    readout: Readout,
    train: Feed,
    dev: Feed | None,
    recipe: RecipeSettings,
    *,
    metrics: Sequence[str],
    device: torch.device,
    checkpoint: Path | None = None,
    settings: str = "{}",
    quiet: bool = True,
) -> Generator[dict[str, Any], None, FitResult]:
    """`fit` in turns: yields the history's entry after each evaluation, and goes on when asked for the next one."""
    recipe = recipe.resolved(len(train))
    parameters = trainable_parameters(model)
    optimizer = make_optimizer(parameters, recipe)
    per_epoch, total = plan_steps(len(train), recipe)
    eval_every = recipe.eval_every or per_epoch
    progress, best = Progress(), cast(Weights, {})
    own, tokens = processes(), 0
    numbers = RunNumbers(recipe.seed, device, own.rank)  # weights start alike; dropout is each process's own
    resumed = load_checkpoint(checkpoint, optimizer, settings, numbers) if checkpoint is not None else None
    if resumed is not None:
        progress, weights, best = resumed
        _restore(parameters, weights)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", recipe.peak_rate)
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(recipe.warmup_ratio * total), total, last_epoch=progress.step - 1
    )
    autocast = recipe.precision == "bf16"
    loss_sum = torch.tensor(progress.loss_sum, device=device)
    patience = recipe.patience if dev is not None else None
    stop = total if patience is None or progress.waited < patience else progress.step
    readout.layer.train()
    quick = bool(getattr(readout.layer, "drops_out_quickly", False))  # a rival drops out as PEFT has it
    dropout = FastDropout if quick else nullcontext
    with Bar("training", total, quiet=quiet or not own.is_main, start=progress.step) as bar:
        for batches in _step_batches(train, recipe, progress.step, stop):
            started = time.perf_counter()
            with numbers.step(shared=not quick):
                for batch, share in batches:
                    # Lengths are known here without asking the device.
                    tokens += int(batch.attention_mask.sum()) if share else 0
                    with dropout(), torch.autocast(device.type, dtype=torch.bfloat16) if autocast else nullcontext():
                        loss = readout.loss(batch.to(device)) * share
                    loss.backward()
                    loss_sum += loss.detach()
                own.add_gradients(parameters.values())
                if recipe.max_grad_norm:
                    nn.utils.clip_grad_norm_(parameters.values(), recipe.max_grad_norm)
                optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.loss_steps += 1
            progress.seconds += time.perf_counter() - started
            bar.advance()
            if progress.step % eval_every == 0 or progress.step == total:
                summed_loss, summed_tokens = own.add(float(loss_sum), tokens)
                mean_loss = summed_loss / progress.loss_steps
                if not math.isfinite(mean_loss):
                    raise LatePromptError(
                        f"training diverged: the loss is {mean_loss} by step {progress.step} at lr {recipe.lr!r}; "
                        "lower lr, or clip gradients"
                    )
                progress.tokens += int(summed_tokens)
                tokens = 0
                entry: dict[str, Any] = {"step": progress.step, "epoch": progress.step / per_epoch}
                entry |= {"train_loss": mean_loss, "seconds": progress.seconds}
                loss_sum.zero_()
                progress.loss_steps = 0
                if dev is not None:
                    values = evaluate(
                        readout, dev, metrics, batch_size=recipe.eval_batch_size, device=device, autocast=autocast
                    )
                    entry |= {f"dev_{name}": value for name, value in values.items()}
                    metric = primary_metric(metrics)
                    best = _keep_best(progress, metric, values[metric], parameters, best)
                    bar.note(f"loss {mean_loss:.3f}, dev {metric} {values[metric]:.3f}")
                progress.history.append(entry)
                if checkpoint is not None and progress.step < total and own.is_main:
                    save_checkpoint(checkpoint, progress, _snapshot(parameters), best, optimizer, settings, numbers)
                yield entry
                if patience is not None and progress.waited >= patience:
                    break
    if best:
        _restore(parameters, best)
    broken = next((name for name, value in parameters.items() if not bool(value.isfinite().all())), None)
    if broken is not None:  # the last step did it: no loss has shown it
        raise LatePromptError(
            f"training diverged: {broken} is no number after step {progress.step} at lr {recipe.lr!r}; "
            "lower lr, or clip gradients"
        )
    readout.layer.eval()
    return FitResult(
        metrics=_metrics_at(progress) if dev is not None else {},
        history=progress.history,
        steps=progress.step,
        train_seconds=progress.seconds,
        tokens_per_second=progress.tokens / max(progress.seconds, 1e-9),
    )


def _keep_best(
    progress: Progress, metric: str, value: float, parameters: dict[str, nn.Parameter], best: Weights
) -> Weights:
    if is_better(metric, value, progress.best):
        progress.best, progress.best_step, progress.waited = value, progress.step, 0
        return _snapshot(parameters)
    progress.waited += 1
    return best


def _metrics_at(progress: Progress) -> dict[str, float]:
    entry = next(entry for entry in progress.history if entry["step"] == progress.best_step)
    return {name.removeprefix("dev_"): value for name, value in entry.items() if name.startswith("dev_")}


def _snapshot(parameters: dict[str, nn.Parameter]) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def _restore(parameters: dict[str, nn.Parameter], weights: Weights) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
