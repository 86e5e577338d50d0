"""BitFit (Ben Zaken et al., ACL 2022, https://aclanthology.org/2022.acl-short.1): every bias b becomes b + δ.

Parameters: Σ |b| over the backbone's linear maps and norms (late: of the layers above p): 7 d + f a layer of BERT's
with inner width f.
"""

from __future__ import annotations

from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.training.settings import ModelSettings
from lateprompt.tuners.bitfit import BitFitModel


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    biased: list[Any] = [module for module in shape.modules(late=late).values() if BitFitModel.accepts(module)]
    return sum(module.bias.numel() for module in biased)


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
