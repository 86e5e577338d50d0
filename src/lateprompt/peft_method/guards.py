"""Checks that PEFT and transformers leave out when an adapter is made: names that clash, adapters made half."""

from __future__ import annotations

import inspect
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.models.auto import modeling_auto

from lateprompt.backbone.call_context import BASE
from lateprompt.peft_method.layer import LatePromptLayer
from lateprompt.utils.errors import LatePromptError


def check_adapter_name(name: str, model: nn.Module) -> None:
    """Raise LatePromptError for an adapter's name that is a part of its weights' names.

    PEFT tells adapters apart by a part of these names: such a part as an adapter's name loses weights on saving.
    """
    taken = {part for key, _ in model.named_parameters() for part in key.split(".") if not part.isdigit()}
    taken |= {
        "base_model",
        "model",
        "base_layer",
        "up",
        "down",
        "prompt",
        "weight",
        "bias",
        *LatePromptLayer.adapter_layer_names,
    }
    taken |= {"modules_to_save", "original_module", BASE}
    for module in model.modules():  # other adapters, of LoRA below perhaps
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            taken -= _adapters_of(module)
    if not name or "." in name or name in taken or hasattr(nn.ModuleDict(), name):
        raise LatePromptError(
            f"adapter name {name!r} is taken: it is empty, has a dot, or names a part of the model; choose another"
        )


def check_head(model: nn.Module) -> None:
    """Raise LatePromptError for a Hugging Face model whose head reads every position: a read-only prompt is at one."""
    names = {kind.__name__ for kind in type(model).__mro__}
    if names & _EVERY_POSITION:
        raise LatePromptError(
            f"the head of {type(model).__name__} reads every position, and a read-only prompt answers at one, the "
            "anchor: all others are the frozen model's own and would learn nothing; use read_only=False"
        )


_EVERY_POSITION = {
    name
    for table in (
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    )
    for name in table.values()
}
"""Classes whose heads read every position."""


def transformers_call() -> str:
    """`add_adapter` or `load_adapter`, if transformers' own one makes this adapter: they change a model in place."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "transformers.integrations.peft":
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


def forget_failure(model: Any) -> None:
    """transformers notes an adapter before it has one: after an error there is none."""
    if getattr(model, "_hf_peft_config_loaded", False) and not getattr(model, "peft_config", None):
        model._hf_peft_config_loaded = False


def _adapters_of(module: Any) -> set[str]:
    tables = getattr(module, "adapter_layer_names", ("modules_to_save",))
    found = (getattr(module, table, None) for table in tables)
    return {str(key) for table in found if isinstance(table, (nn.ModuleDict, nn.ParameterDict)) for key in table}
