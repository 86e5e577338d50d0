"""The settings of a run: what is trained, on what, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt

from lateprompt.training.recipes import FEW_ROWS as FEW_ROWS
from lateprompt.training.recipes import PAPER, SCHEDULES, recipe_of
from lateprompt.utils.aliases import takes_earlier_names, todays_value
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.names import BALANCED, DEFAULT_METHOD, DTYPES, LOSSES, POOLINGS, PRECISIONS, READOUTS
from lateprompt.utils.validation import Count, OneOf, Rate, Seed, check_types, checked


@dataclass
class ModelSettings:
    """What is trained: the backbone, the method, and the readout.

    Args:
        model: folder or hub id of a pretrained model; not needed for tfidf.
        method: npg, mppg, appg, atpg, rpg or fixed (a late prompt), head (a linear head on the frozen model), or
            another one that `lateprompt methods` lists: read-npg (a late prompt that the text does not see),
            read-npg+lora, lora, late-lora, npg+late-lora, full, prompt-tuning, …; auto: what is best for these rows
            (docs/auto.md).
        options: the method's own options, by name.
        prompt_layer: number of layers below the prompt, 1 to L-1, a fraction of the depth such as 0.5, or auto.
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

    Example:
        >>> from lateprompt.training.settings import ModelSettings
        >>> settings = ModelSettings("roberta-large", method="npg", prompt_layer=12, num_prompt_tokens=5)
        >>> settings.check()  # raises LatePromptError for values that cannot be; loads nothing
        >>> settings.dtype
        'float32'
    """

    model: str = ""
    method: str = DEFAULT_METHOD
    options: dict[str, Any] = field(default_factory=dict)
    prompt_layer: int | float | str = "0.5"
    num_prompt_tokens: Count | None = None
    bottleneck_dim: Count = 128
    prompt_dropout: Rate | None = None
    trunk_dropout: bool = False
    readout: Annotated[str, OneOf(("auto", *READOUTS, "generate"))] = "auto"
    head_pooling: Annotated[str, OneOf(POOLINGS)] | None = None
    loss: Annotated[str, OneOf(LOSSES)] = "vocabulary"
    max_length: Annotated[int, Ge(4)] = 256
    max_target_length: Count = 64
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        self.readout = todays_value("readout", self.readout)

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be, before anything is loaded."""
        check_types(self)


RECIPES = ("auto", "paper")
PAPER_EPOCHS, PAPER_LR = 10, PAPER.lr
"""The authors' encoder settings (Liu et al. 2022, appendix)."""
FEW_ROWS_LR, LEAST_STEPS = recipe_of("npg").rate(0), recipe_of("npg").least_steps
"""The late prompts' recipe, as earlier releases named it."""
EVALUATIONS = 10
"""Evaluations of a run whose length nobody has set, as often as the paper's few-shot runs evaluate."""


@takes_earlier_names
@dataclass
class RecipeSettings:
    """How it is trained: optimiser, schedule, evaluation.

    What is left out follows from the number of training rows and the method (`resolved`); what is given holds.

    Args:
        recipe: where lr, schedule, epochs and max_steps are left out: auto (10 epochs, but at least the method's own
            number of steps, at its own rate: `lateprompt methods` lists them) or paper (10 epochs, 1e-3).
        epochs: passes over the training rows; ignored when max_steps is given; default see recipe.
        max_steps: number of optimiser steps; default see recipe.
        batch_size: rows in a batch.
        grad_accumulation: batches per optimiser step.
        lr: peak learning rate of AdamW; default see recipe.
        weight_decay: weight decay, not on biases and normalisation weights.
        warmup_ratio: share of the steps over which the rate rises; afterwards it falls as the schedule says.
        schedule: linear or cosine (to 0) or constant; default see recipe.
        max_grad_norm: largest norm of the gradient; 0 for no clipping.
        eval_every: evaluate on dev rows every so many steps; default once an epoch (with recipe auto and no epochs
            given, at most ten times).
        patience: stop after so many evaluations without a better dev metric; default never.
        eval_batch_size: rows in a batch when evaluating.
        folds: without dev rows, folds of a cross-validation that says what accuracy to expect: each trains anew without
            some of the rows and is scored on them, while the run itself trains on all; 0: none; default 3 below 1,000
            rows, where states are cached.
        precision: fp32, or bf16 for bfloat16 autocast.
        seed: seed of initialisation, order of rows and dropout.
        class_weight: what the losses of a class's rows are multiplied with: balanced (in inverse proportion to how
            often it occurs) or a mapping, label to weight, where a label that is left out has 1; default no weights.
        calibrate: fit the temperature of the probabilities on the dev rows, once the weights are chosen.

    Example:
        >>> from lateprompt.training.settings import RecipeSettings
        >>> recipe = RecipeSettings(epochs=3, batch_size=16, seed=13)
        >>> recipe.check()
        >>> recipe.resolved(rows=500, method="npg").lr  # what is left out follows from rows and method
        0.005
    """

    recipe: Annotated[str, OneOf(RECIPES)] = "auto"
    epochs: Count | None = None
    max_steps: Count | None = None
    batch_size: Count = 32
    grad_accumulation: Count = 1
    lr: Annotated[float, Gt(0)] | None = None
    weight_decay: Annotated[float, Ge(0)] = 0.1
    warmup_ratio: Rate = 0.06
    schedule: Annotated[str, OneOf(SCHEDULES)] | None = None
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    eval_every: Count | None = None
    patience: Count | None = None
    eval_batch_size: Count = 64
    folds: Annotated[int, Ge(0)] | None = None
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32"
    seed: Seed = 42
    class_weight: Annotated[str, OneOf((BALANCED,))] | dict[str, Annotated[float, Ge(0)]] | None = None
    calibrate: bool = True

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        check_types(self)
        if self.folds == 1:
            raise LatePromptError("folds 1 leave no rows to train on; give 0 for none, or from 2 on")

    def resolved(self, rows: int, method: str | None = None) -> RecipeSettings:
        """Fill in what was left out, for so many training rows and a method (None: no method's own rate).

        Example:
            >>> recipe = RecipeSettings().resolved(60, "npg")
            >>> recipe.max_steps, recipe.lr, recipe.eval_every
            (400, 0.005, 40)
        """
        auto = self.recipe == "auto"
        own = recipe_of(method) if auto and method is not None else PAPER
        least = own.least_steps if method is not None else LEAST_STEPS
        per_epoch = math.ceil(math.ceil(rows / self.batch_size) / self.grad_accumulation)
        found: dict[str, Any] = {}
        if self.lr is None:
            found["lr"] = own.rate(rows)
        if self.schedule is None:
            found["schedule"] = own.schedule
        if self.epochs is None:
            found["epochs"] = PAPER_EPOCHS
            if auto and self.max_steps is None and per_epoch * PAPER_EPOCHS < least:
                found["max_steps"] = least
                if self.eval_every is None:
                    found["eval_every"] = max(per_epoch, least // EVALUATIONS)
        return replace(self, **found)

    @property
    def peak_rate(self) -> float:
        """The learning rate, `PAPER_LR` where it is still left out."""
        return PAPER_LR if self.lr is None else self.lr


def check_seed(seed: int) -> None:
    """Raise LatePromptError for a seed that not every generator of random numbers takes."""
    checked(RecipeSettings, "seed", seed)
