"""The cut of a Hugging Face backbone, and its forward pass: trunk → prompt → tail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lateprompt.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lateprompt.backbone.late_backbone import LateBackbone, PromptSlot

__all__ = [
    "LateBackbone",
    "PromptSlot",
]

__getattr__ = lazy_names(
    __name__,
    {
        "LateBackbone": "lateprompt.backbone.late_backbone",
        "PromptSlot": "lateprompt.backbone.late_backbone",
    },
)
