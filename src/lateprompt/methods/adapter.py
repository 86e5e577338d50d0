"""Adapter (Houlsby et al., ICML 2019) and AdapterDrop (Rücklé et al., EMNLP 2021): h + up(gelu(down(h))) twice a layer.

Parameters: 2 (2 d m + m + d) a layer. Layers: all of them; AdapterDrop: all but the first n; late: those above p.
"""

from __future__ import annotations

from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.peft_method.extra.base import Stack
from lateprompt.peft_method.extra.houlsby import PEFT_TYPE
from lateprompt.training.settings import ModelSettings


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    return {"peft_type": PEFT_TYPE, **options}


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    d, m = shape.width, int(options["bottleneck_dim"])
    first = shape.prompt_layer if late else int(options.get("drop_layers", 0))
    layers = Stack.of(shape.backbone).choose(range(first, shape.layers))  # layers that share their weights count once
    return len(layers) * 2 * (2 * d * m + m + d)


_OPTIONS = {"bottleneck_dim": 64, "activation": "gelu", "dropout": 0.0}
METHODS = (
    Method("adapter", "Adapter", "Houlsby et al., ICML 2019", "tuner", _fragment, _count, _OPTIONS),
    Method(
        "adapterdrop",
        "AdapterDrop",
        "Rücklé et al., EMNLP 2021",
        "tuner",
        _fragment,
        _count,
        {**_OPTIONS, "drop_layers": 5},
        late=False,  # its late variant is late-adapter
    ),
)
