"""The settings of a run: what is trained, on what, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from lateprompt.utils.aliases import takes_earlier_names, todays_value
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.names import DTYPES, GENERATORS, LOSSES, POOLINGS, PRECISIONS, READOUTS
from lateprompt.utils.suggestions import unknown
from lateprompt.utils.validation import check_types


@dataclass
class ModelSettings:
    """What is trained: the backbone, the method, and the readout.

    Args:
        model: folder or hub id of a pretrained model.
        method: npg, mppg, appg, atpg, rpg or fixed (a late prompt), head (a linear head on the frozen model), or
            another one that `lateprompt methods` lists: lora, late-lora, npg+late-lora, full, prompt-tuning, …
        options: the method's own options, by name.
        prompt_layer: number of layers below the prompt, 1 to L-1, or a fraction of the depth such as 0.5.
        num_prompt_tokens: number of prompt vectors; default 5 with a generator, 20 without (the paper's).
        bottleneck_dim: inner width of the generator.
        prompt_dropout: dropout rate on the prompt; default the backbone's hidden dropout rate.
        trunk_dropout: keep dropout in the frozen trunk while training, as the authors' code does.
        readout: masked_lm (label words of a masked LM), causal_lm (label words of a causal LM), head (a trained head),
            generate (a causal LM writes the answer; only and always where the task has targets), or auto.
        head_pooling: what a trained head reads: cls, mean or last; default mean for encoders, last for decoders.
        loss: vocabulary (the label word among all words, the paper's) or labels (among the label words).
        max_length: longest input in tokens, template included; longer texts are cut.
        max_target_length: of these, the most for a target, where the answers are texts.
        dtype: float type of the frozen model's weights: float32, bfloat16 or float16.
        device: cpu, cuda, … ; default a GPU if there is one.
        compile: compile the layers above the prompt (torch.compile): slower to start, faster on most GPUs.
    """

    model: str
    method: str = "npg"
    options: dict[str, Any] = field(default_factory=dict)
    prompt_layer: int | float | str = "0.5"
    num_prompt_tokens: int | None = None
    bottleneck_dim: int = 128
    prompt_dropout: float | None = None
    trunk_dropout: bool = False
    readout: str = "auto"
    head_pooling: str | None = None
    loss: str = "vocabulary"
    max_length: int = 256
    max_target_length: int = 64
    dtype: str = "float32"
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        self.readout = todays_value("readout", self.readout)

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be, before anything is loaded."""
        check_types(self)
        _one_of("readout", self.readout, ("auto", *READOUTS, "generate"))
        _one_of("loss", self.loss, LOSSES)
        _one_of("dtype", self.dtype, DTYPES)
        if self.head_pooling is not None:
            _one_of("head_pooling", self.head_pooling, POOLINGS)
        _at_least("bottleneck_dim", self.bottleneck_dim, 1)
        _at_least("max_length", self.max_length, 4)
        _at_least("max_target_length", self.max_target_length, 1)
        if self.num_prompt_tokens is not None:
            _at_least("num_prompt_tokens", self.num_prompt_tokens, 1)
        if self.prompt_dropout is not None and not 0 <= self.prompt_dropout < 1:
            raise LatePromptError(f"prompt_dropout {self.prompt_dropout!r} is no rate; give 0.0 to below 1.0")


RECIPES = ("auto", "paper")
PAPER_EPOCHS, PAPER_LR = 10, 1e-3
"""The authors' encoder settings (Liu et al. 2022, appendix)."""
FEW_ROWS = 1000
"""Below so many training rows a late prompt's generator takes `FEW_ROWS_LR` (dev rows' figures: docs/results.md)."""
FEW_ROWS_LR = 5e-3
LEAST_STEPS = 400
"""Optimiser steps of a run whose length nobody has set, at least."""
EVALUATIONS = 10
"""Evaluations of a run whose length nobody has set, as often as the paper's few-shot runs evaluate."""


@takes_earlier_names
@dataclass
class RecipeSettings:
    """How it is trained: optimiser, schedule, evaluation.

    What is left out follows from the number of training rows and the method (`resolved`); what is given holds.

    Args:
        recipe: where lr, epochs and max_steps are left out: auto (10 epochs but at least 400 steps; a learning rate of
            5e-3 for the generators of late prompts below 1,000 training rows, else 1e-3) or paper (10 epochs, 1e-3).
        epochs: passes over the training rows; ignored when max_steps is given; default see recipe.
        max_steps: number of optimiser steps; default see recipe.
        batch_size: rows in a batch.
        grad_accumulation: batches per optimiser step.
        lr: peak learning rate of AdamW; default see recipe.
        weight_decay: weight decay, not on biases and normalisation weights.
        warmup_ratio: share of the steps over which the rate rises; afterwards it falls linearly to 0.
        max_grad_norm: largest norm of the gradient; 0 for no clipping.
        eval_every: evaluate on dev rows every so many steps; default once an epoch (with recipe auto and no epochs
            given, at most ten times).
        patience: stop after so many evaluations without a better dev metric; default never.
        eval_batch_size: rows in a batch when evaluating.
        precision: fp32, or bf16 for bfloat16 autocast.
        seed: seed of initialisation, order of rows and dropout.
    """

    recipe: str = "auto"
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 32
    grad_accumulation: int = 1
    lr: float | None = None
    weight_decay: float = 0.1
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    eval_every: int | None = None
    patience: int | None = None
    eval_batch_size: int = 64
    precision: str = "fp32"
    seed: int = 42

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        check_types(self)
        _one_of("recipe", self.recipe, RECIPES)
        for name in ("batch_size", "grad_accumulation", "eval_batch_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("epochs", "max_steps", "eval_every", "patience"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.lr is not None and not self.lr > 0:
            raise LatePromptError(f"lr {self.lr!r} is no learning rate; give a number above 0, e.g. 1e-3")
        for name in ("weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise LatePromptError(f"{name} {getattr(self, name)!r} is negative; give 0 or more")
        if not 0 <= self.warmup_ratio < 1:
            raise LatePromptError(f"warmup_ratio {self.warmup_ratio!r} is no share of the steps; give 0.0 to below 1.0")
        _one_of("precision", self.precision, PRECISIONS)
        check_seed(self.seed)

    def resolved(self, rows: int, method: str | None = None) -> RecipeSettings:
        """Fill in what was left out, for so many training rows and a method (None: any but a generator's).

        Example:
            >>> recipe = RecipeSettings().resolved(60, "npg")
            >>> recipe.max_steps, recipe.lr, recipe.eval_every
            (400, 0.005, 40)
        """
        auto = self.recipe == "auto"
        per_epoch = math.ceil(math.ceil(rows / self.batch_size) / self.grad_accumulation)
        found: dict[str, Any] = {}
        if self.lr is None:
            few = auto and rows < FEW_ROWS and method in GENERATORS
            found["lr"] = FEW_ROWS_LR if few else PAPER_LR
        if self.epochs is None:
            found["epochs"] = PAPER_EPOCHS
            if auto and self.max_steps is None and per_epoch * PAPER_EPOCHS < LEAST_STEPS:
                found["max_steps"] = LEAST_STEPS
                if self.eval_every is None:
                    found["eval_every"] = max(per_epoch, LEAST_STEPS // EVALUATIONS)
        return replace(self, **found)

    @property
    def peak_rate(self) -> float:
        """The learning rate, `PAPER_LR` where it is still left out."""
        return PAPER_LR if self.lr is None else self.lr


def check_seed(seed: int) -> None:
    """Raise LatePromptError for a seed that not every generator of random numbers takes."""
    if not 0 <= seed < 2**32:
        raise LatePromptError(f"seed {seed!r} is out of range; give a whole number from 0 to 2**32-1")


def _one_of(name: str, value: str, known: object) -> None:
    choices = list(known)  # type: ignore[call-overload]
    if value not in choices:
        raise LatePromptError(unknown(name, value, choices))


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise LatePromptError(f"{name} {value!r} is too small; give a whole number from {low}")
