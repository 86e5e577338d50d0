"""Many trained heads at once: the read-only prompts of all tasks read a batch of texts in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from lateprompt.backbone.read_only.tasks import keeps_keys
from lateprompt.data.batch import IGNORED, Batch
from lateprompt.readouts.base import Readout
from lateprompt.readouts.head import HeadReadout, pool_states


class TasksReadout(Readout):
    """The heads of several tasks on one model, whose adapters have read-only prompts of one pooling.

    `batch.labels` are (batch, tasks), -100 where a row has no label for a task; `batch.weights`, if there are any, too.

    Args:
        readouts: each task's head by its name, in the order of the labels' columns.
        adapters: each task's adapter.
    """

    kind = "head"

    def __init__(self, readouts: Mapping[str, HeadReadout], adapters: Mapping[str, str]) -> None:
        first = next(iter(readouts.values()))
        super().__init__(first.model, first.layer)
        self.readouts, self.adapters, self.first = dict(readouts), dict(adapters), first
        self.columns = {name: column for column, name in enumerate(readouts)}

    def pooled_layer(self) -> str | None:
        return self.first.pooled_layer()

    def task_scores(self, batch: Batch, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
        """Label scores (batch, labels) of some tasks, from one read pass."""
        layer, inputs = self.layer, batch.backbone_inputs()
        adapters = [self.adapters[name] for name in tasks]
        low = min(layer.slots[adapter].prompt_layer for adapter in adapters)
        sizes: list[Any] = [layer.late_prompt_generators[adapter].num_prompt_tokens for adapter in adapters]
        # Of texts whose states are kept, keys and values are made in the read pass if it needs them.
        made = "trunk_states" not in inputs and "text_keys" not in inputs
        keys = made and keeps_keys(layer.family, layer.config, batch.input_ids.shape[1], sum(sizes))
        pooled = batch.pooled_states
        anchor = self.first.anchor(batch)
        text = layer.frozen_text(low, whole=pooled is None, keys=keys, anchor=anchor, **inputs)
        if pooled is None:
            assert text.last is not None
            pooled = pool_states(text.last, batch.attention_mask, self.first.pooling)
        means = layer.read_tasks(adapters, text)
        return {name: self.readouts[name].read_scores(means[self.adapters[name]], pooled) for name in tasks}

    def scores(self, batch: Batch) -> torch.Tensor:
        """The scores of all tasks side by side (batch, labels of all tasks)."""
        return torch.cat(list(self.task_scores(batch, list(self.readouts)).values()), 1)

    def losses(self, batch: Batch, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
        """Of each of some tasks, the mean cross-entropy over the rows with a label; there must be one."""
        assert batch.labels is not None
        found = {}
        for name, scores in self.task_scores(batch, tasks).items():
            column = self.columns[name]
            labels = batch.labels[:, column]
            if batch.weights is None:
                found[name] = F.cross_entropy(scores.float(), labels, ignore_index=IGNORED)
            else:
                losses = F.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="none")
                found[name] = (losses * batch.weights[:, column]).sum() / (labels != IGNORED).sum()
        return found

    def loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the tasks' losses, so that a task's gradient does not depend on how many others there are."""
        assert batch.labels is not None
        labelled = (batch.labels != IGNORED).any(0).tolist()
        return torch.stack(
            list(self.losses(batch, [n for n, own in zip(self.columns, labelled, strict=True) if own]).values())
        ).sum()
