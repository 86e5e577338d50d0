"""Whether an adapter's sizes fit its model: a slip of three zeros is found before memory is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lateprompt.utils.errors import LatePromptError

FREE = 2**26
"""An adapter of so many parameters fits any model; a larger one must be smaller than its model."""
PROMPT = 1024
"""Prompt vectors that any model takes; more only up to its number of positions."""
_TUNER_SIZES = ("r", "init_r", "target_r", "rank", "bottleneck_dim", "num_virtual_tokens", "encoder_hidden_size")


class Room:
    """How large an adapter of one model may be.

    Args:
        core: the backbone.
    """

    def __init__(self, core: Any) -> None:
        self.model = sum(parameter.numel() for parameter in core.parameters())
        self.most = max(FREE, self.model)
        self.width = int(core.config.hidden_size)
        positions = getattr(core.config, "max_position_embeddings", None)
        self.positions = positions if isinstance(positions, int) else 0

    def check_prompt(self, name: str, number: int) -> None:
        """Raise LatePromptError for more prompt vectors than any text has positions."""
        most = max(PROMPT, self.positions)
        if number > most:
            raise LatePromptError(
                f"{name} {number!r} is too many: a prompt stands beside the text in every layer, and this model has "
                f"{self.positions or 'no set number of'} positions; give 1 to {most} (5 to 100 are usual)"
            )

    def check(self, name: str, value: int, count: Callable[[int], int]) -> None:
        """Raise LatePromptError if an adapter with this size has more parameters than fit.

        Args:
            name: the setting.
            value: its value.
            count: from a value to the adapter's parameters; it grows with the value.
        """
        if count(value) <= self.most:
            return
        low, high = 0, value
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(middle) <= self.most else (low, middle)
        advice = f"give at most {low}" if low else "the adapter's other sizes are too large already; make them smaller"
        raise LatePromptError(
            f"{name} {value!r} is too large: the adapter would have {count(value):,} parameters, and the model itself "
            f"has {self.model:,}; {advice}"
        )


def check_tuner(tuner: Mapping[str, Any], room: Room, layers: int) -> None:
    """Raise LatePromptError for a tuner's rank, width or number of tokens that the model has no room for.

    Args:
        tuner: PEFT's options, with `peft_type`.
        room: the model's.
        layers: how many of its layers get the tuner.
    """
    if tuner.get("peft_type") == "LOKR":
        return  # a rank above the width means whole matrices there
    for name in _TUNER_SIZES:
        values = [tuner.get(name), *(_values(tuner.get("rank_pattern")) if name == "r" else ())]
        for value in values:
            if isinstance(value, int):
                room.check(f"{name} of the tuner", value, lambda size: 4 * size * room.width * layers)
    if isinstance(tuner.get("num_virtual_tokens"), int):
        room.check_prompt("num_virtual_tokens", tuner["num_virtual_tokens"])


def _values(pattern: Any) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, dict) else []


def depth_of(value: Any, limit: int) -> int:
    """How deep lists and mappings are nested, counted up to a limit."""
    level, depth = [value], 0
    while level and depth <= limit:
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
    return depth
