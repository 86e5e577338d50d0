"""The cut of a Hugging Face backbone, and its forward pass: trunk → prompt → tail."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lateprompt.backbone.late_backbone import LateBackbone, PromptSlot

__all__ = ["LateBackbone", "PromptSlot"]


def __getattr__(name: str) -> Any:
    # Lazily: the table of families is read without importing transformers' models.
    if name in __all__:
        return getattr(import_module("lateprompt.backbone.late_backbone"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
