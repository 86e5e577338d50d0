"""The settings of cached trunk states. Nothing heavy is imported: the command line shows them in its help."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.validation import OneOf, check_types

FOLDER_VARIABLE = "LATEPROMPT_STATES"


@dataclass
class StatesSettings:
    """Whether and where trunk states are kept.

    Args:
        states: on (the folder of the variable LATEPROMPT_STATES, or ~/.cache/lateprompt/states), off, or a folder.
        states_dtype: how they lie on disk: auto (the backbone's type), float32, bfloat16, float16 or int8.
        states_layers: which layers' states a read-only prompt has kept: all that it reads, prompt (those at the prompt
            layer alone: the text then runs through the layers above without gradient), or auto: all, if they take at
            most half of the limit. Other methods keep the prompt layer's.
        keys_memory_gb: most memory, in 10^9 bytes, for the keys and values that read-only prompts read of kept states;
            never more than a quarter of the machine's; 0: they are made from the states at each step.
        states_limit_gb: most that the folder may hold, in 10^9 bytes; the least recently used states are removed first.

    Example:
        >>> from lateprompt.state_cache.settings import StatesSettings
        >>> states = StatesSettings("states", states_dtype="bfloat16", states_limit_gb=5.0)
        >>> states.check(trunk_dropout=False)
        >>> states.folder.name, StatesSettings("off").folder
        ('states', None)
    """

    states: str = "on"
    states_dtype: str = "auto"
    states_layers: Annotated[str, OneOf(("auto", "all", "prompt"))] = "auto"
    keys_memory_gb: Annotated[float, Ge(0)] = 4.0
    states_limit_gb: Annotated[float, Gt(0)] = 20.0

    def check(self, trunk_dropout: bool) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        check_types(self)
        if not self.states.strip() or "\0" in self.states:
            raise LatePromptError(
                f"states {self.states!r} is no folder; give one, or on or off (. for the working directory)"
            )
        if self.states_dtype != "auto":
            from lateprompt.state_cache.codec import check_dtype

            check_dtype(self.states_dtype)
        if self.states not in ("on", "off"):
            _folder(self.states, "states")
        if trunk_dropout and self.states != "off":
            raise LatePromptError(
                f"trunk_dropout makes the trunk's states change at each step; use it with {option('states', 'off')}"
            )

    @property
    def folder(self) -> Path | None:
        """Where states are kept, or None for off, or where there is no home folder to keep them in."""
        if self.states == "off":
            return None
        if self.states != "on":
            return _folder(self.states, "states")
        if os.environ.get(FOLDER_VARIABLE):
            return _folder(os.environ[FOLDER_VARIABLE], FOLDER_VARIABLE)
        try:
            return Path.home() / ".cache" / "lateprompt" / "states"
        except RuntimeError:  # a container's user without a name
            warnings.warn(
                f"there is no home folder to keep trunk states in; set {FOLDER_VARIABLE}, or give "
                f"{option('states', 'FOLDER')}; until then the trunk is computed at each step",
                stacklevel=2,
            )
            return None


def _folder(name: str, what: str) -> Path:
    from lateprompt.utils.files import given_path

    return given_path(name, what)
