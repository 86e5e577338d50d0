"""Full tuning: all weights of the backbone; late: those of the layers above p and of the norm after the last layer.

The LM head's own weights stay frozen; where it shares the word embeddings, it changes with them.
Parameters: all of the backbone's; late: about (L − p) (12 d² + 13 d) for BERT's layers with an inner width of 4 d.
"""

from __future__ import annotations

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.peft_method.tail_tuner import FULL, trained_weights
from lateprompt.training.settings import ModelSettings


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    return sum(p.numel() for p in trained_weights(shape.backbone, shape.prompt_layer, late=late).values())


METHODS = (
    Method(
        "full",
        "full tuning",
        "Devlin et al., NAACL 2019",
        "tuner",
        lambda options, settings: {"peft_type": FULL},
        _count,
    ),
)
