"""The settings of a search. Nothing heavy is imported: the command line shows them in its help."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.validation import Count, check_types

AUTO = "auto"
DEFAULT_LAYER = "0.5"
"""`prompt_layer` when nobody has said it: with the method auto the layer is then searched too."""
DEFAULT_BUDGET = "2m"
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass
class SearchSettings:
    """How long methods, prompt layers and rates are tried, with method or prompt_layer auto.

    Args:
        budget: time for the search and the training of its winner, such as 90s, 2m or 1h30m; default 2m, if no tries
            are given.
        tries: how many settings are tried; without a budget the same seed then tries and finds the same.

    Example:
        >>> from lateprompt.search.settings import SearchSettings
        >>> SearchSettings("1m30s").seconds, SearchSettings(tries=5).seconds
        (90.0, None)
    """

    budget: str | None = None
    tries: Count | None = None

    def check(self, model: ModelSettings) -> None:
        """Raise LatePromptError for a setting that cannot be, or that nothing is searched by."""
        check_types(self)
        _ = self.seconds
        if not asks_search(model) and (self.budget is not None or self.tries is not None):
            name, value = ("budget", self.budget) if self.budget is not None else ("tries", self.tries)
            raise LatePromptError(
                f"{name} {value!r} is for a search; give {option('method', AUTO)} or {option('prompt_layer', AUTO)}"
            )

    @property
    def seconds(self) -> float | None:
        """The budget in seconds; None: only tries count."""
        if self.budget is None:
            return None if self.tries is not None else parse_time(DEFAULT_BUDGET)
        return parse_time(self.budget)


def asks_search(model: ModelSettings) -> bool:
    """Return whether settings leave the method or the prompt layer to a search."""
    return AUTO in (model.method, model.prompt_layer)


def searches_layers(model: ModelSettings) -> bool:
    """Return whether the prompt layer is searched: asked for, or left out together with the method."""
    return model.prompt_layer == AUTO or (model.method == AUTO and str(model.prompt_layer) == DEFAULT_LAYER)


def parse_time(text: str) -> float:
    """Seconds of a time such as 90s, 2m or 1h30m.

    Raises:
        LatePromptError: a text that is no time above 0.

    Example:
        >>> parse_time("1h30m")
        5400.0
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower())
    seconds = sum(float(n) * unit for n, unit in zip(parts.groups(), _UNITS.values(), strict=True) if n) if parts else 0
    if not seconds > 0:
        raise LatePromptError(f"budget {text!r} is no time; give one such as 90s, 2m or 1h30m")
    return float(seconds)
