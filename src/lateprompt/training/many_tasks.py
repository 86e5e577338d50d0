"""`TasksTrainer`: many tasks trained in one run, each as it would be trained alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lateprompt.data.batch import IGNORED, Batch
from lateprompt.data.batches import Batches
from lateprompt.readouts.tasks import TasksReadout
from lateprompt.training.evaluate import measure, predict_scores
from lateprompt.training.loop import FitResult, Trainer
from lateprompt.training.metrics import is_better, primary_metric
from lateprompt.training.settings import RecipeSettings


class TasksTrainer(Trainer):
    """Train the adapters of several tasks on the same texts.

    Tasks do not influence each other: the gradients of each are clipped alone, each keeps the weights that were best on
    its own dev rows, and with `patience` each stops by itself. A step in which no row has a label for a task leaves its
    weights alone.

    Args:
        model, device: as the `Trainer`'s.
        readout: gives the tasks' losses and scores.
        train, dev: the rows, whose `labels` are (rows, tasks), -100 where a row has none.
        recipe: the recipe's settings.
        sizes: each task's number of labels, in the order of the labels' columns.
        metrics: each task's metrics.
        quiet: no progress bar.
    """

    readout: TasksReadout

    def __init__(
        self,
        model: nn.Module,
        readout: TasksReadout,
        train: Batches,
        dev: Batches | None,
        recipe: RecipeSettings,
        *,
        sizes: Mapping[str, int],
        metrics: Mapping[str, Sequence[str]],
        device: torch.device,
        quiet: bool = True,
    ) -> None:
        self.sizes, self.task_metrics = dict(sizes), dict(metrics)
        names = list(readout.readouts)
        shared = [name for name in metrics[names[0]] if all(name in own for own in metrics.values())]
        super().__init__(model, readout, train, dev, recipe, metrics=shared, device=device, quiet=quiet)
        self.histories: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        """Each task's entries, as a `Trainer` of its own would give them."""
        self._own = {name: self._parameters_of(readout.adapters[name]) for name in names}
        self._best_values: dict[str, float] = {}
        self._best_steps = dict.fromkeys(names, 0)
        self._task_waited = dict.fromkeys(names, 0)
        self._asked: list[str] = []
        self._sums = {name: torch.zeros((), device=device) for name in names}
        self._shares = dict.fromkeys(names, 0.0)
        self._share = 1.0
        self._losses: dict[str, float] = {}
        self._measured: dict[str, dict[str, float]] = {}

    def _parameters_of(self, adapter: str) -> list[str]:
        """The names of an adapter's parameters."""
        layer: Any = self.readout.layer
        tables = [getattr(layer, name) for name in layer.adapter_layer_names]
        own = {id(value) for table in tables if adapter in table for value in table[adapter].parameters()}
        return [name for name, value in self.parameters.items() if id(value) in own]

    @property
    def going_on(self) -> list[str]:
        """The tasks whose patience with their dev metric is not at its end."""
        patience = self.recipe.patience if self.dev is not None else None
        return [name for name, waited in self._task_waited.items() if patience is None or waited < patience]

    def _backward(self, batch: Batch, share: float) -> None:
        assert batch.labels is not None
        labelled = (batch.labels != IGNORED).any(0).tolist()  # known here without asking the device
        self._asked = [name for name in self.going_on if labelled[self.readout.columns[name]]]
        self._share = share
        if self._asked:
            super()._backward(batch, share)

    def _loss(self, batch: Batch) -> torch.Tensor:
        losses = self.readout.losses(batch, self._asked)
        for name, loss in losses.items():
            self._sums[name] += loss.detach() * self._share
            self._shares[name] += self._share
        return torch.stack(list(losses.values())).sum()

    def _clip(self, max_norm: float) -> None:
        for names in self._own.values():
            own = [self.parameters[name] for name in names]
            if any(parameter.grad is not None for parameter in own):
                self.accelerator.clip_grad_norm_(own, max_norm)

    def evaluate(self) -> dict[str, Any]:
        """As the `Trainer`'s; the tasks' own entries are in `histories`.

        Returns:
            The history's new entry, with the means over the tasks.
        """
        going_on, self._measured = self.going_on, {}
        entry = super().evaluate()
        for name in going_on:
            own = {"step": entry["step"], "epoch": entry["epoch"]}
            own |= {"train_loss": self._losses[name]} if name in self._losses else {}
            own |= {"seconds": entry["seconds"]}
            own |= {f"dev_{metric}": value for metric, value in self._measured.get(name, {}).items()}
            self.histories[name].append(own)
        return entry

    def _mean_loss(self) -> float:
        super()._mean_loss()  # that of the sum: it finds what is no number, and counts anew
        self._losses = {name: float(self._sums[name]) / share for name, share in self._shares.items() if share}
        for name, total in self._sums.items():
            total.zero_()
            self._shares[name] = 0.0
        return float(np.mean(list(self._losses.values()))) if self._losses else 0.0

    def _evaluate_dev(self, dev: Batches) -> dict[str, float]:
        """Means over the tasks of their dev metrics; each task's weights are kept if they are its best so far."""
        going_on, progress = self.going_on, self._progress
        values = self.measure(dev)
        if not self._best:
            self._best = {name: value.detach().clone() for name, value in self.parameters.items()}
        for name in going_on:
            if name not in values:
                continue
            metric = primary_metric(self.task_metrics[name])
            if is_better(metric, values[name][metric], self._best_values.get(name)):
                self._best_values[name], self._best_steps[name] = values[name][metric], progress.step
                self._task_waited[name] = 0
                self._best |= {own: self.parameters[own].detach().clone() for own in self._own[name]}
            else:
                self._task_waited[name] += 1
        progress.waited, progress.best_step = min(self._task_waited.values()), max(self._best_steps.values())
        self._measured = {name: values[name] for name in going_on if name in values}
        return means(values)

    def measure(self, batches: Batches) -> dict[str, dict[str, float]]:
        """The metrics of each task on its rows, of tasks that have any."""
        found = self.scores(batches)
        return {name: measure(scores, labels, self.task_metrics[name]) for name, (scores, labels) in found.items()}

    def scores(self, batches: Batches) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each task that has rows, their scores (rows, labels) and class ids (rows,)."""
        scores = predict_scores(
            self.readout,
            batches,
            batch_size=self.recipe.eval_batch_size,
            device=self.device,
            autocast=self.accelerator.mixed_precision == "bf16",
        )
        found, start = {}, 0
        for (name, size), labels in zip(self.sizes.items(), batches.labels.T, strict=True):
            rows = np.flatnonzero(labels != IGNORED)
            if len(rows):
                found[name] = scores[rows, start : start + size], labels[rows]
            start += size
        return found

    def results(self) -> dict[str, FitResult]:
        """What was measured so far, task by task; steps, seconds and tokens are those of all tasks together."""
        whole = self.result()
        found = {}
        for name, history in self.histories.items():
            best = [entry for entry in history if entry["step"] == self._best_steps[name]]
            metrics = {
                key.removeprefix("dev_"): v for entry in best for key, v in entry.items() if key.startswith("dev_")
            }
            found[name] = FitResult(metrics, history, whole.steps, whole.train_seconds, whole.tokens_per_second)
        return found


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By metric its mean over the tasks that have it."""
    names = dict.fromkeys(metric for own in values.values() for metric in own)
    return {metric: float(np.mean([own[metric] for own in values.values() if metric in own])) for metric in names}
