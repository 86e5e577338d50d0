"""LoRA (Hu et al., ICLR 2022, https://openreview.net/forum?id=nZeVKeeFYf9), by PEFT: W x + (lora_alpha / r) B A x.

A is (r, in), B is (out, r) and starts at zero. Parameters: Σ r (in + out) over the wrapped maps: PEFT's choice for the
architecture (query and value of BERT's layers: 4 r d a layer), or `target_modules`.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraModel

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.training.settings import ModelSettings


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if value is not None}
    return {"peft_type": "LORA", **given}


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    names = options["target_modules"] or LoraModel.target_module_mapping[shape.backbone.config.model_type]
    wrapped = [
        module
        for key, module in shape.modules(late=late).items()
        if any(key.endswith(f".{name}") for name in names) and hasattr(module, "weight")
    ]
    return sum(int(options["r"]) * sum(module.weight.shape) for module in wrapped)  # type: ignore[arg-type,misc]


METHODS = (
    Method(
        "lora",
        "LoRA",
        "Hu et al., ICLR 2022",
        "tuner",
        _fragment,
        _count,
        {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "target_modules": None},
    ),
)
