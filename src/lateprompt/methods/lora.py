"""LoRA (Hu et al., ICLR 2022, https://openreview.net/forum?id=nZeVKeeFYf9), by PEFT: W x + (lora_alpha / r) B A x.

A is (r, in), B is (out, r) and starts at zero. `target_modules` names the linear maps that get A and B; left out,
PEFT's choice for the architecture (query and value of BERT's layers: 4 r d parameters a layer), or the entry of
`lateprompt.FAMILIES` where PEFT has none. Parameters: the sum of r (in + out) over these maps.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraModel

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.peft_method.tail_tuner import default_targets, targets_in
from lateprompt.training.settings import ModelSettings


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if value is not None}
    return {"peft_type": "LORA", **given}


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    core = shape.backbone
    names = options["target_modules"] or default_targets(LoraModel, core)
    paths = targets_in(core, names, range(shape.prompt_layer, shape.layers) if late else None)
    weights = [getattr(core.get_submodule(path), "weight", None) for path in paths]
    return sum(int(options["r"]) * sum(weight.shape) for weight in weights if weight is not None)


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
