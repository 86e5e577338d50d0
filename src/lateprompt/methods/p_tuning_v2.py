"""P-tuning v2 (Liu et al., ACL 2022, https://aclanthology.org/2022.acl-short.8), by PEFT's prefix tuning.

k trained keys and values are put in front of those of each layer (late: of each layer above p). The paper's
reparameterisation by an MLP is left out.
Parameters: 2 k L w, with w the width of a layer's keys (d, less with grouped-query attention); late: 2 k (L − p) w.
"""

from __future__ import annotations

from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.training.settings import ModelSettings


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    return {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": options["tokens"]}


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    config = shape.backbone.config
    width = shape.width
    groups = getattr(config, "num_key_value_heads", None)
    if groups:
        width = groups * (getattr(config, "head_dim", None) or shape.width // config.num_attention_heads)
    return 2 * int(options["tokens"]) * (shape.layers - (shape.prompt_layer if late else 0)) * width


METHODS = (
    Method(
        "p-tuning-v2",
        "P-tuning v2",
        "Liu et al., ACL 2022",
        "tuner",
        _fragment,
        _count,
        {"tokens": 20},
    ),
)
