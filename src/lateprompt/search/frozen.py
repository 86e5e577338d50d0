"""`FrozenRows`: a pretrained model that is loaded once, and the kept states of a search's rows at all layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lateprompt.backbone.families import core_of, num_layers_of
from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data import Row, Task
from lateprompt.data.batches import Batches
from lateprompt.methods import is_late, parameter_count, parse_method
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.loading import load_base, load_config, load_tokenizer
from lateprompt.search.candidates import MOST_TRAINED
from lateprompt.search.settings import DEFAULT_LAYER
from lateprompt.state_cache.layers import LayerStates
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError

MOST_LAYERS = 8
"""Candidate layers: all of a model's, or so many, evenly spaced."""
READER = "read-npg"
"""Whose states are kept: a read-only prompt reads those of all layers above its own."""


class FrozenRows:
    """The frozen model with a search's rows: tuned models on copies of it, and batches from kept states.

    Args:
        model: the model's settings, method and layer left open.
        task: what is asked.
        rows: all rows: those to train on, and dev rows.
        methods: the methods that will be tried.
        weights: (rows,) factors of the rows' losses, or None.

    Raises:
        LatePromptError: a setting, model, task or label word that cannot be, or a row that cannot be encoded.
    """

    def __init__(
        self,
        model: ModelSettings,
        task: Task,
        rows: Sequence[Row],
        methods: Sequence[str],
        weights: np.ndarray | None = None,
    ) -> None:
        self.asked, self.task = model, task
        config = load_config(model.model)
        readout = TextClassifier.resolve_readout(config, model)
        self.tokenizer = load_tokenizer(model.model)
        self.base = load_base(model.model, readout, dtype=model.dtype)
        self.settings = replace(model, readout=readout)
        self.num_layers = num_layers_of(core_of(self.base))
        self.default_layer = resolve_prompt_layer(DEFAULT_LAYER, self.num_layers)
        self._first = self._reader(methods)
        self.rows: Batches = self._first.batches(rows, any_label=True)
        self.rows.weights = None if weights is None else weights.astype(np.float32)
        self.states: LayerStates | None = None

    def _reader(self, methods: Sequence[str]) -> TextClassifier:
        """The model whose readout says what is kept: one that reads all layers, where there are several methods."""
        if len(methods) == 1:
            return self.build(replace(self.settings, method=methods[0]), 1, seed=0)
        try:
            return self.build(replace(self.settings, method=READER), 1, seed=0)
        except LatePromptError:  # not for this architecture: then no read-only prompt will be
            return self.build(replace(self.settings, method=methods[0]), 1, seed=0)

    @property
    def layers(self) -> list[int]:
        """The layers where a prompt may be tried."""
        every = np.arange(1, self.num_layers)
        if len(every) > MOST_LAYERS:
            every = np.unique(np.linspace(1, self.num_layers - 1, MOST_LAYERS).round().astype(int))
        return sorted({*every.tolist(), self.default_layer})

    def keep(self, layers: Sequence[int], folder: Path, settings: StatesSettings, *, quiet: bool) -> None:
        """Compute the states of all rows at some layers, and of those above them for read-only prompts, in one pass."""
        readout = self._first.readout
        above = range(min(layers), self.num_layers) if readout.read_only_adapter() is not None else ()
        if settings.states_layers == "prompt":
            above = ()
        every = sorted({*layers, *above})
        pooling = readout.pooled_layer() if above else None
        self.states = LayerStates(
            self._first.model, readout, self.rows, every, folder, settings, pooling=pooling, quiet=quiet
        )

    def build(self, settings: ModelSettings, layer: int, *, seed: int) -> TextClassifier:
        """A fresh tuned model on the frozen one, which stays as it is.

        Raises:
            LatePromptError: a method that this model cannot do, or one that trains more than there is room for.
        """
        settings = replace(settings, prompt_layer=layer)
        if not is_late(settings.method):
            raise LatePromptError(f"method {settings.method!r} trains below the prompt layer too; give a prompt layer")
        # Shared, unless the weights themselves are trained: then there are copies of all of them.
        full = any(part.method.name == "full" for part in parse_method(settings.method))
        if full and parameter_count(settings, self.base, layer) > MOST_TRAINED:
            raise LatePromptError(
                f"method {settings.method!r} trains more than {MOST_TRAINED:,} weights; give it alone"
            )
        own = _copy(self.base, share=not full)
        return TextClassifier.build(settings, self.task, seed=seed, base=own, tokenizer=self.tokenizer)

    def batches(self, tuned: TextClassifier, rows: np.ndarray) -> Batches:
        """Some of the rows, by number, for a tuned model, with their kept states."""
        assert self.states is not None
        return self.states.batches(tuned.readout, int(tuned.settings.prompt_layer), rows)

    def features(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """One state (rows, hidden) of some rows at a layer: the last token's of a decoder, else the mean.

        At L, the number of layers, it is the model's output, or the last states that are kept.
        """
        assert self.states is not None
        if layer == self.num_layers and not self.states.has_output:
            layer = self.states.layers[-1]
        return self.states.pooled(layer, "last" if self._first.layer.family.causal else "mean", rows)


def _copy(model: nn.Module, *, share: bool) -> Any:
    """A copy of a model's modules, on the same tensors or on copies of them."""
    memo = {id(part): part for part in itertools.chain(model.parameters(), model.buffers())} if share else {}
    return copy.deepcopy(model, memo)
