"""BitFit (Ben Zaken et al., ACL 2022, https://aclanthology.org/2022.acl-short.1): every bias b becomes b + δ.

Parameters: as many as there are biases in the backbone's linear maps and norms (late: in the layers above p), which is
7 d + f a layer for BERT with inner width f. In a model without biases each linear map of a layer gets one.
"""

from __future__ import annotations

from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.peft_method.extra.base import Stack, under
from lateprompt.peft_method.extra.bitfit import BitFitModel, is_linear
from lateprompt.training.settings import ModelSettings


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    modules = shape.modules(late=late)
    biased: list[Any] = [module for module in modules.values() if BitFitModel.accepts(module)]
    if biased:
        return sum(module.bias.numel() for module in biased)
    layers = Stack.of(shape.backbone).choose(None)
    maps: list[Any] = [module for key, module in modules.items() if is_linear(module) and under(key, layers)]
    return sum(module.out_features for module in maps)


METHODS = (
    Method(
        "bitfit",
        "BitFit",
        "Ben Zaken et al., ACL 2022",
        "tuner",
        lambda options, settings: {"peft_type": "BITFIT"},
        _count,
    ),
)
