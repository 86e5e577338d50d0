"""Late Prompt Tuning (Liu et al., Findings of EMNLP 2022): tune frozen transformers by prompts that enter late.

The layers below the prompt (the trunk) never see it and need no gradient; what they compute is a pure function of the
text.

Names are imported when they are used, so that `import lateprompt` is quick; PEFT knows our methods all the same.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lateprompt.registration import register_with_peft

if TYPE_CHECKING:
    from lateprompt.backbone import LateBackbone
    from lateprompt.config import LatePromptConfig
    from lateprompt.errors import LatePromptError
    from lateprompt.estimator import LatePromptClassifier
    from lateprompt.families import FAMILIES, Family, register_family
    from lateprompt.generators import GENERATORS
    from lateprompt.split import split_backbone
    from lateprompt.states import TrunkStates
    from lateprompt.tuner import LatePromptModel
    from lateprompt.tuners import AdapterConfig, BitFitConfig

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

_HOMES = {
    "FAMILIES": "families",
    "GENERATORS": "generators",
    "AdapterConfig": "tuners",
    "BitFitConfig": "tuners",
    "Family": "families",
    "LateBackbone": "backbone",
    "LatePromptClassifier": "estimator",
    "LatePromptConfig": "config",
    "LatePromptError": "errors",
    "LatePromptModel": "tuner",
    "TrunkStates": "states",
    "register_family": "families",
    "split_backbone": "split",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"lateprompt.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"lateprompt.{name}") is not None:
        return import_module(f"lateprompt.{name}")
    raise AttributeError(f"module 'lateprompt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_peft()
