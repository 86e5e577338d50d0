"""`peft.get_peft_model` as we call it."""

from __future__ import annotations

import warnings
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model

from lateprompt.utils.randomness import in_turn


@in_turn
def wrap(base: Any, config: PeftConfig, name: str = "default") -> PeftModel:
    """`peft.get_peft_model`, without its warning of a name in transformers that is about to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        model = get_peft_model(base, config, adapter_name=name)
    assert isinstance(model, PeftModel)
    return model
