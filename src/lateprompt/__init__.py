"""Late Prompt Tuning (Liu et al., Findings of EMNLP 2022): tune frozen transformers by prompts that enter late.

The layers below the prompt (the trunk) never see it and need no gradient; what they compute is a pure function of the
text.

Names are imported when they are used, so that `import lateprompt` is quick; PEFT knows our methods all the same.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lateprompt._old_names import install, todays_name
from lateprompt.peft_method.registry import register_with_peft
from lateprompt.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lateprompt.backbone.families import FAMILIES, Family, register_family
    from lateprompt.backbone.late_backbone import LateBackbone
    from lateprompt.backbone.split import split_backbone
    from lateprompt.estimator import LatePromptClassifier
    from lateprompt.peft_method.config import LatePromptConfig
    from lateprompt.peft_method.extra import AdapterConfig, BitFitConfig
    from lateprompt.peft_method.model import LatePromptModel
    from lateprompt.predictors.multi_task import MultiTask
    from lateprompt.prompts import GENERATORS
    from lateprompt.runs.many_tasks import train_tasks
    from lateprompt.state_cache import TrunkStates
    from lateprompt.utils.errors import LatePromptError

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
    "MultiTask",
    "TrunkStates",
    "register_family",
    "split_backbone",
    "train_tasks",
]

_public = lazy_names(
    __name__,
    {
        "FAMILIES": "lateprompt.backbone.families",
        "GENERATORS": "lateprompt.prompts",
        "AdapterConfig": "lateprompt.peft_method.extra",
        "BitFitConfig": "lateprompt.peft_method.extra",
        "Family": "lateprompt.backbone.families",
        "LateBackbone": "lateprompt.backbone.late_backbone",
        "LatePromptClassifier": "lateprompt.estimator",
        "LatePromptConfig": "lateprompt.peft_method.config",
        "LatePromptError": "lateprompt.utils.errors",
        "LatePromptModel": "lateprompt.peft_method.model",
        "MultiTask": "lateprompt.predictors.multi_task",
        "TrunkStates": "lateprompt.state_cache",
        "register_family": "lateprompt.backbone.families",
        "split_backbone": "lateprompt.backbone.split",
        "train_tasks": "lateprompt.runs.many_tasks",
    },
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _public(name)
    module = f"lateprompt.{name}"
    if not name.startswith("_") and (todays_name(module) is not None or find_spec(module) is not None):
        return import_module(module)
    raise AttributeError(f"module 'lateprompt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
register_with_peft()
