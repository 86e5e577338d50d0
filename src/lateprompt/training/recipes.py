"""The default recipe of each method: learning rate, schedule and least number of steps.

The rates were chosen on dev rows: with 100 rows of sst2 and trec (`experiments/small-few-shot.yaml`,
`experiments/small-decoder.yaml`) and all rows of both (`experiments/small-full-data.yaml`) on MiniLM-L6 and SmolLM2,
the late prompts' with 60 to 1,000 rows too (docs/results.md, and docs/decisions.md of 2026-11-28).
"""

from __future__ import annotations

from dataclasses import dataclass

from lateprompt.utils.names import GENERATORS, READ_ONLY

FEW_ROWS = 2000
"""Below so many training rows `few_rows_lr` holds."""
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """What a method trains with where its user has left it open.

    Args:
        lr: peak learning rate of AdamW.
        few_rows_lr: the same below `FEW_ROWS` training rows; None: the same rate.
        schedule: how the rate falls after the warm-up: linear or cosine (to 0), or constant.
        least_steps: optimiser steps of a run whose length nobody has set, at least.

    Example:
        >>> from lateprompt.training.recipes import recipe_of
        >>> recipe_of("npg").rate(60), recipe_of("npg").rate(5000)
        (0.005, 0.001)
        >>> recipe_of("late-full").lr
        0.0002
    """

    lr: float = 1e-3
    few_rows_lr: float | None = None
    schedule: str = "linear"
    least_steps: int = 400

    def rate(self, rows: int) -> float:
        """The peak learning rate for so many training rows."""
        return self.few_rows_lr if rows < FEW_ROWS and self.few_rows_lr is not None else self.lr


PAPER = Recipe(lr=1e-3, least_steps=0)
"""The authors' encoder settings (Liu et al. 2022, appendix), for any method."""

_GENERATOR = Recipe(lr=1e-3, few_rows_lr=5e-3)
_READ_ONLY = Recipe(lr=2e-3)
_READ_ONLY_TUNER = Recipe(lr=3e-3)
_INPUT_PROMPT = Recipe(lr=2e-2, least_steps=200)
_TUNER = Recipe(lr=1e-3, least_steps=200)
_LORA = Recipe(lr=3e-3, few_rows_lr=1e-3, least_steps=200)
_FULL = Recipe(lr=5e-5, least_steps=200)

METHOD_RECIPES: dict[str, Recipe] = {
    **dict.fromkeys(GENERATORS, _GENERATOR),
    "head": Recipe(lr=1e-2),
    "full": _FULL,
    "late-full": Recipe(lr=2e-4, least_steps=200),
    "lora": _LORA,
    "late-lora": Recipe(lr=3e-3, few_rows_lr=5e-3, least_steps=200),
    "bitfit": Recipe(lr=5e-3, least_steps=200),
    "adapter": _TUNER,
    "adapterdrop": _TUNER,
    "prompt-tuning": _INPUT_PROMPT,
    "p-tuning-v2": _INPUT_PROMPT,
    "s-idpg": _INPUT_PROMPT,
}
"""By the method's name; a late variant takes its method's, unless it has one of its own."""


def recipe_of(method: str) -> Recipe:
    """Return the default recipe of a method, a late variant, a read-only prompt or a pair such as npg+late-lora.

    A pair has the lower rate of its parts and the longer training; a read-only prompt's tuner lies on the prompt's own
    path and has one rate with it. A method that is not in the table has PEFT's customary rate, 1e-3.

    Example:
        >>> recipe_of("npg+late-full").lr, recipe_of("read-npg+lora").lr
        (0.0002, 0.003)
    """
    if method.startswith(READ_ONLY):
        return _READ_ONLY_TUNER if "+" in method else _READ_ONLY
    found = [
        METHOD_RECIPES.get(part) or METHOD_RECIPES.get(part.removeprefix("late-"), _TUNER) for part in method.split("+")
    ]
    if len(found) == 1:
        return found[0]
    few = min(part.rate(0) for part in found)
    return Recipe(min(part.lr for part in found), few, least_steps=max(part.least_steps for part in found))
