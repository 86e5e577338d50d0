"""Prompt tuning (Lester et al., EMNLP 2021, https://aclanthology.org/2021.emnlp-main.243), by PEFT.

k trained vectors are put in front of the word embeddings, of width e. Parameters: k e.
"""

from __future__ import annotations

from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.training.settings import ModelSettings


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    return {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": options["tokens"]}


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> int:
    return int(options["tokens"]) * shape.embedding_width


METHODS = (
    Method(
        "prompt-tuning",
        "prompt tuning",
        "Lester et al., EMNLP 2021",
        "tuner",
        _fragment,
        _count,
        {"tokens": 20},
        late=False,
    ),
)
