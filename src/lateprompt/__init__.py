"""Late Prompt Tuning (Liu et al., Findings of EMNLP 2022): tune frozen transformers by prompts that enter late.

The layers below the prompt (the trunk) never see it and need no gradient; what they compute is a pure function of the
text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lateprompt.backbone import LateBackbone
from lateprompt.config import LatePromptConfig
from lateprompt.errors import LatePromptError
from lateprompt.families import FAMILIES, Family, register_family
from lateprompt.generators import GENERATORS
from lateprompt.split import split_backbone
from lateprompt.tuner import LatePromptModel
from lateprompt.tuners import AdapterConfig, BitFitConfig

if TYPE_CHECKING:
    from lateprompt.estimator import LatePromptClassifier
    from lateprompt.states import TrunkStates

__all__ = [
    "FAMILIES",
    "GENERATORS",
    "AdapterConfig",
    "BitFitConfig",
    "Family",
    "LateBackbone",
    "LatePromptClassifier",
    "LatePromptConfig",
    "LatePromptError",
    "LatePromptModel",
    "TrunkStates",
    "register_family",
    "split_backbone",
]


def __getattr__(name: str) -> Any:
    if name == "LatePromptClassifier":  # scikit-learn is imported only by those who use the estimator
        from lateprompt.estimator import LatePromptClassifier

        return LatePromptClassifier
    if name == "TrunkStates":
        from lateprompt.states import TrunkStates

        return TrunkStates
    raise AttributeError(f"module 'lateprompt' has no attribute {name!r}")
