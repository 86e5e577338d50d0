"""A linear head on the frozen model, without a prompt. Only the head has parameters and gradients."""

from __future__ import annotations

from lateprompt.methods.base import Method
from lateprompt.peft_method.config import NO_PROMPT

METHODS = (
    Method(
        "head",
        "linear head",
        "–",
        "head",
        lambda options, settings: {"generator": NO_PROMPT},
        lambda shape, options, settings, late: 0,
    ),
)
