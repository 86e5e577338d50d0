"""S-IDPG (Wu et al., NAACL 2022, https://aclanthology.org/2022.naacl-main.403): a prompt at the input, by text.

The prompt is W_up ReLU(W_down e), k vectors in front of the word embeddings, where e is the frozen model's own encoding
of the sentence, and both maps are parameterised hypercomplex layers W = Σ_i A_i ⊗ B_i, i = 1..n.
Parameters: 2 n³ + d m / n + m + m k e / n + k e.
"""

from __future__ import annotations

from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.peft_method.config import SENTENCE
from lateprompt.training.settings import ModelSettings


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    return {
        "generator": SENTENCE,
        "num_prompt_tokens": options["tokens"],
        "bottleneck_dim": options["bottleneck_dim"],
        "phm_n": options["phm_n"],
    }


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    k, m, n = int(options["tokens"]), int(options["bottleneck_dim"]), int(options["phm_n"])
    outputs = k * shape.embedding_width
    return 2 * n**3 + shape.output_width * m // n + m + m * outputs // n + outputs


METHODS = (
    Method(
        "s-idpg",
        "S-IDPG",
        "Wu et al., NAACL 2022",
        "prompt",
        _fragment,
        _count,
        {"tokens": 5, "bottleneck_dim": 16, "phm_n": 16},
        late=False,
    ),
)
