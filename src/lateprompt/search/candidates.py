"""What a search may try: methods with their rates, and the prompt layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lateprompt.methods import NAMES
from lateprompt.search.settings import AUTO
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.names import DEFAULT_METHOD

RATES = (1.0, 0.4, 2.5)
"""Learning rates that are tried, as multiples of the method's own; the first is tried first."""
MOST_TRAINED = 60_000_000
"""Trained parameters, at most: a search holds the weights, gradients and moments of each fold."""


CANDIDATES = (
    DEFAULT_METHOD,
    "read-npg+lora",
    "late-lora",
    "read-npg",
    "npg+late-lora",
    "late-full",
    "embedding-lr",
    "head",
    "rpg",
)
"""What `--method auto` tries, in the order in which each is tried once; the first is the default that others must beat.

An entry more is a method more to try: one that trains on kept states (`lateprompt.methods.is_late`), or a linear model
of the frozen model's pooled output (`LINEAR`). Names that the methods' table does not have are left out.
"""
LINEAR = ("embedding-lr",)
"""The candidates that are logistic regressions: they have neither prompt layer nor learning rate."""


@dataclass(frozen=True)
class Trial:
    """One setting: method, prompt layer and the multiple of the method's own rate.

    Example:
        >>> from lateprompt.search.candidates import Trial
        >>> Trial("late-lora", 3, 1.0)
        Trial(method='late-lora', layer=3, rate=1.0)
    """

    method: str
    layer: int
    rate: float

    def model(self, asked: ModelSettings) -> ModelSettings:
        """The model's settings with this method and layer."""
        return replace(asked, method=self.method, prompt_layer=self.layer)

    def recipe(self, asked: RecipeSettings, rows: int) -> RecipeSettings:
        """The recipe for so many training rows, all filled in, with this rate."""
        own = asked.resolved(rows, self.method)
        return own if self.rate == 1 else replace(own, lr=own.peak_rate * self.rate)


@dataclass(frozen=True)
class Space:
    """All trials that may be: every method with every layer and rate.

    Args:
        methods: the methods, the default first.
        layers: the prompt layers.
        rates: the multiples of the methods' own rates.
        default: what the others must beat; its layer is among the layers.
        best_layer: where each method is tried first.
    """

    methods: tuple[str, ...]
    layers: tuple[int, ...]
    rates: tuple[float, ...]
    default: Trial
    best_layer: int

    def first(self) -> list[Trial]:
        """What is tried first: the default, then each method once at the best layer."""
        trials = [self.default, *(self.normal(Trial(method, self.best_layer, 1.0)) for method in self.methods)]
        return list(dict.fromkeys(trials))

    def normal(self, trial: Trial) -> Trial:
        """The trial itself, or the one that stands for all of its method."""
        return Trial(trial.method, self.default.layer, 1.0) if trial.method in LINEAR else trial

    @property
    def size(self) -> int:
        """How many trials there are."""
        linear = sum(method in LINEAR for method in self.methods)
        return (len(self.methods) - linear) * len(self.layers) * len(self.rates) + linear


def methods_of(model: ModelSettings) -> tuple[str, ...]:
    """The methods that the settings leave open: all candidates, or the one that is named."""
    return (
        tuple(name for name in CANDIDATES if name in NAMES or "+" in name) if model.method == AUTO else (model.method,)
    )


def rates_of(recipe: RecipeSettings) -> tuple[float, ...]:
    """The multiples of a method's own rate: only 1 where the rate is given."""
    return RATES if recipe.lr is None else RATES[:1]


def asked_of(model: ModelSettings, recipe: RecipeSettings) -> dict[str, Any]:
    """What a search was asked to leave as it is, for the run file."""
    return {"method": model.method, "prompt_layer": model.prompt_layer, "lr": recipe.lr}
