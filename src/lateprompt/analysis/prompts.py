"""The prompts of a tuned model, row by row: what they are, the gradient that reaches them, and scores without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.late_pass import mean_state
from lateprompt.backbone.views import PromptSlot
from lateprompt.data.batch import Batch
from lateprompt.data.batches import Batches, sorted_batches
from lateprompt.prompts.base import read_state
from lateprompt.readouts import HeadReadout, Readout
from lateprompt.utils.errors import LatePromptError

BATCH_SIZE = 64
"""Rows that go through the model together."""

Change = Callable[[np.ndarray, torch.Tensor], torch.Tensor]
"""From row numbers (batch,) and their whole prompts (batch, k, hidden) to the prompts that take their place."""


def prompt_of_layer(layer: LateBackbone) -> tuple[str, nn.Module, PromptSlot]:
    """Return the active adapter's name, its generator and where its prompt enters.

    Raises:
        LatePromptError: no late prompt is active.
    """
    name = layer.selected_adapter()
    if name is None or name not in layer.late_prompt_generators or name in layer.input_prompts:
        raise LatePromptError(
            "the model has no late prompt to analyse; choose a method with one, such as npg, fixed or read-npg"
        )
    return name, layer.late_prompt_generators[name], layer.slots[name]


def prompts_of(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return the prompt of each row (rows, k, hidden) as it enters: the generator's vectors and what they start from.

    Args:
        readout: of a model with an active late prompt.
        batches: the rows, with trunk states or without.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: no late prompt is active.

    Example:
        >>> from lateprompt.analysis.prompts import prompts_of
        >>> from lateprompt.data import Row, load_task
        >>> from lateprompt.demo import installed_encoder
        >>> from lateprompt.predictors.classifier import TextClassifier
        >>> from lateprompt.training.settings import ModelSettings
        >>> settings = ModelSettings(installed_encoder(), readout="head", num_prompt_tokens=3)
        >>> tuned = TextClassifier.build(settings, load_task("sst2"), seed=1)
        >>> rows = [Row("a gem .", label="positive"), Row("so dull", label="negative")]
        >>> prompts_of(tuned.readout, tuned.batches(rows)).shape
        (2, 3, 384)
    """
    found: dict[int, np.ndarray] = {}

    def keep(rows: np.ndarray, prompts: torch.Tensor) -> torch.Tensor:
        found.update(zip(rows.tolist(), prompts.float().cpu().numpy(), strict=True))
        return prompts

    _scores(readout, batches, keep, batch_size)
    return np.stack([found[row] for row in range(len(batches))])


def scores_with(readout: Readout, batches: Batches, prompts: np.ndarray, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return the label scores (rows, labels) that the model gives with other prompts in the place of its own.

    Args:
        readout: of a model with an active late prompt.
        batches: the rows.
        prompts: (rows, k, hidden), each row's prompt as `prompts_of` gives it.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: prompts of another shape, or no late prompt is active.
    """

    def put(rows: np.ndarray, own: torch.Tensor) -> torch.Tensor:
        given = torch.from_numpy(prompts[rows]).to(own)
        if given.shape != own.shape:
            raise LatePromptError(f"prompts have the shape {prompts.shape[1:]} a row; give {tuple(own.shape[1:])}")
        return given

    if len(prompts) != len(batches):
        raise LatePromptError(f"there are {len(prompts)} prompts for {len(batches)} rows; give one a row")
    return _scores(readout, batches, put, batch_size)


def own_scores(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return the label scores (rows, labels) with the rows' own prompts."""
    return _scores(readout, batches, None, batch_size)


def scores_without(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return the label scores (rows, labels) without the prompt; everything else that was trained stays.

    An ordinary prompt's positions are taken out. A read-only prompt's answer is read from it, so that it cannot be
    taken out: it becomes what it started from (the state of the anchor, or the text's mean), without its generator.

    Args:
        readout: of a model with an active late prompt.
        batches: the rows.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: no late prompt is active.
    """
    layer = readout.layer
    name, generator, slot = prompt_of_layer(layer)
    if slot.read_only:
        with _hooked(generator, lambda _module, _inputs, output: torch.zeros_like(output)):
            return _scores(readout, batches, None, batch_size)
    del layer.late_prompt_generators[name]
    try:
        return _scores(readout, batches, None, batch_size)
    finally:
        layer.late_prompt_generators[name] = generator


@dataclass(frozen=True)
class PromptGradients:
    """How strongly each row's loss pulls at its prompt.

    Args:
        norms: (rows,), Frobenius norm of the gradient of the row's own loss by its prompt (k, hidden).
        state_norms: (rows,), mean norm of the row's text states at the prompt layer.
    """

    norms: np.ndarray
    state_norms: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """(rows,), gradient times state norm: change of the loss (nats) for a change as large as a state.

        Norms of states grow with the layers, so that gradients of different layers compare in this unit only.
        """
        return self.norms * self.state_norms  # type: ignore[no-any-return]


def prompt_gradients(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> PromptGradients:
    """Measure the gradient of the loss that reaches the prompt, row by row, without dropout.

    A prompt that nothing of the output depends on has a gradient of 0.

    Args:
        readout: of a model with an active late prompt.
        batches: labelled rows.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: no late prompt is active, or a row without a label.
    """
    if (batches.labels < 0).any():
        raise LatePromptError("gradients need rows with labels that the task has; leave out the others")
    _, generator, _ = prompt_of_layer(readout.layer)
    norms, state_norms = np.zeros(len(batches)), np.zeros(len(batches))
    held: dict[str, Any] = {}

    def watch(_module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        held["prompt"] = output.detach().requires_grad_()
        states, mask = inputs[0].float(), inputs[1]
        held["norms"] = mean_state(states.norm(dim=-1, keepdim=True), mask)[:, 0]
        return held["prompt"]  # type: ignore[no-any-return]

    with _hooked(generator, watch):
        for rows, batch in passes(readout, batches, batch_size):
            with torch.enable_grad():
                loss = readout.loss(replace(batch, weights=None)) * len(rows)  # the sum of the rows' own losses
            _check_rows(held["prompt"], rows)
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, held["prompt"], allow_unused=True)
                if gradient is not None:
                    norms[rows] = gradient.float().flatten(1).norm(dim=1).cpu().numpy()
            state_norms[rows] = held["norms"].detach().cpu().numpy()
    return PromptGradients(norms, state_norms)


def _scores(readout: Readout, batches: Batches, change: Change | None, batch_size: int) -> np.ndarray:
    """Label scores (rows, labels), with prompts that `change` has seen."""
    current: dict[str, Any] = {}
    parts: list[tuple[np.ndarray, np.ndarray]] = []

    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        assert change is not None
        rows, batch = current["pass"]
        _check_rows(output, rows)
        start = _start(slot, readout, batch, *inputs)
        if start is None:
            return change(rows, output)
        return change(rows, output + start) - start

    hooks = []
    if change is not None:
        _, generator, slot = prompt_of_layer(readout.layer)
        hooks = [(generator, hook)]
    with _all_hooked(hooks), torch.no_grad():
        for rows, batch in passes(readout, batches, batch_size):
            current["pass"] = rows, batch
            parts.append((rows, readout.scores(batch).float().cpu().numpy()))
    scores = np.empty((len(batches), parts[0][1].shape[1]), dtype=np.float32)
    for rows, part in parts:
        scores[rows] = part
    return scores


def passes(readout: Readout, batches: Batches, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield row numbers and batch of each pass over the rows; the model is in eval mode meanwhile."""
    if not len(batches):
        raise LatePromptError("there are no rows to analyse; give some")
    layer = readout.layer
    device, _ = layer.placement
    was_training = layer.training
    layer.eval()
    try:
        order = sorted_batches(batches.lengths, batch_size)
        for rows, batch in zip(order, batches.batches(order), strict=True):
            yield rows, batch.to(device)
    finally:
        layer.train(was_training)


def _check_rows(prompts: torch.Tensor, rows: np.ndarray) -> None:
    if len(prompts) != len(rows):
        raise LatePromptError(
            "label words of several tokens get a prompt for each label here; use label words of one token, or "
            "--readout head"
        )


def _start(
    slot: PromptSlot, readout: Readout, batch: Batch, states: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """What the prompt starts from (batch, 1, hidden): the states that the generator reads, or None."""
    if slot.start == "none":
        return None
    if slot.start == "mean":
        return mean_state(states, mask)[:, None]
    if isinstance(readout, HeadReadout) and readout.pooling == "mean" and not slot.read_only:
        return read_state(states, mask, last=readout.layer.family.causal)[:, None]
    return states[torch.arange(len(states), device=states.device), readout.anchor(batch)][:, None]


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _all_hooked(hooks: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
