"""A linear head on the frozen model: no prompt, so no gradient below the head. Parameters: the head's alone."""

from __future__ import annotations

from lateprompt.config import NO_PROMPT
from lateprompt.methods.base import Method

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
