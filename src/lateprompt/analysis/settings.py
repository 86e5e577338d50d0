"""The settings that the analyses share. Nothing heavy is imported: the command line shows them in its help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

SEED = 42


@dataclass
class StudySettings:
    """What is analysed: a model on some rows, with prompts trained at some layers, from some seeds.

    Args:
        model: the model's settings; its prompt layer and method are those of each run.
        data: the rows.
        recipe: how prompts are trained; its seed is that of each run.
        states: whether and where trunk states are kept.
        methods: the methods to train.
        layers: prompt layers, as numbers or shares of the depth; empty: all from 1 to L-1.
        seeds: of samples, initialisation and order.
        quiet: no progress bars.
    """

    model: ModelSettings
    data: DataSettings
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    states: StatesSettings = field(default_factory=StatesSettings)
    methods: Sequence[str] = ("npg",)
    layers: Sequence[int | float | str] = ()
    seeds: Sequence[int] = (SEED,)
    quiet: bool = True

    def check(self) -> None:
        """Raise LatePromptError for settings that cannot be, before anything is read."""
        from lateprompt.methods import check_method, parse_method
        from lateprompt.training.settings import check_seed

        self.data.check()
        self.states.check(self.model.trunk_dropout)
        for name, given in (("methods", self.methods), ("seeds", self.seeds)):
            if not given:
                raise LatePromptError(f"{name} is empty; give at least one")
            if len(set(given)) < len(given):
                raise LatePromptError(f"{name} {' '.join(map(str, given))} has one twice; give each once")
        for seed in self.seeds:
            check_seed(seed)
        for method in self.methods:
            replace(self.model, method=method).check()
            check_method(method, self.model.options)
            parts = parse_method(method)
            if any(not part.late for part in parts) or parts[0].method.kind == "head":
                raise LatePromptError(
                    f"method {method!r} is the same for every prompt layer; choose ones that enter late, such as npg, "
                    "read-npg or late-lora"
                )
        self.recipe.check()
        if not (self.data.dev or self.data.shots or self.data.dev_rows):
            raise LatePromptError("an analysis measures on rows apart from those it trains on: give --dev FILE")

    def of(self, method: str, layer: int | float | str) -> ModelSettings:
        """Return the model's settings of one run."""
        return replace(self.model, method=method, prompt_layer=layer)

    def asked(self) -> dict[str, Any]:
        """Return what all results of a folder share: not methods, layers and seeds, nor what no result depends on."""
        model = {k: v for k, v in asdict(self.model).items() if k not in ("method", "prompt_layer", "device")}
        recipe = {k: v for k, v in asdict(self.recipe).items() if k not in ("seed", "eval_batch_size")}
        return {**model, **asdict(self.data), **recipe}

    def inputs(self) -> list[str]:
        """Return the files that are read."""
        return [self.data.train, *self.data.dev, *self.data.test, *([self.data.task] if self.data.task else [])]
