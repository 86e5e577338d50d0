"""The ways to tune a classifier: method name to adapter configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lateprompt.config import NO_PROMPT, LatePromptConfig
from lateprompt.training.settings import ModelSettings

MakeConfig = Callable[[ModelSettings, dict[str, Any]], LatePromptConfig]


def _late_prompt(settings: ModelSettings, extra: dict[str, Any], *, generator: str, tokens: int) -> LatePromptConfig:
    """Late Prompt Tuning (Liu et al. 2022) with one of its generators; k is the paper's unless set."""
    return LatePromptConfig(
        prompt_layer=settings.prompt_layer,
        num_prompt_tokens=settings.num_prompt_tokens or tokens,
        generator=generator,
        bottleneck_dim=settings.bottleneck_dim,
        prompt_dropout=settings.prompt_dropout,
        trunk_dropout=settings.trunk_dropout,
        **extra,
    )


def _head(settings: ModelSettings, extra: dict[str, Any]) -> LatePromptConfig:
    """A linear head on the frozen model: no prompt, so no gradient below the head."""
    if extra.get("head_labels") is None:
        raise ValueError("method 'head' trains a head and nothing else; use it with --readout head")
    return LatePromptConfig(prompt_layer=settings.prompt_layer, generator=NO_PROMPT, **extra)


def check_method(name: str) -> None:
    """Raise ValueError unless `name` is in the table of methods."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; choose one of {', '.join(METHODS)}")


METHODS: dict[str, MakeConfig] = {
    "npg": partial(_late_prompt, generator="npg", tokens=5),
    "mppg": partial(_late_prompt, generator="mppg", tokens=5),
    "appg": partial(_late_prompt, generator="appg", tokens=5),
    "fixed": partial(_late_prompt, generator="fixed", tokens=20),
    "head": _head,
}
