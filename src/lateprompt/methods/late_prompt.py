"""Late Prompt Tuning (Liu et al., Findings of EMNLP 2022, https://aclanthology.org/2022.findings-emnlp.95).

A generator makes k prompt vectors from a text's hidden states after layer p, and they are put in front of these
states. Formulas and parameter counts stand with the generators (`lateprompt.prompts`). The methods `read-NAME` keep the
prompt out of the text's sight (docs/read-only.md).

All of them have two options:

- `prompt_start`: what the generator's vectors are added to: `none`, `anchor` (the state at the position that answers:
  the mask, the last source token, or the first token under a head) or `mean` (the mean of the text's states at the
  prompt layer). Left out: none; of a read-only prompt the mean under a head that reads the mean, else the anchor.
- `zero_init`: `true` or `false`, whether a new generator makes (nearly) zero, so that the prompt begins as what it
  starts from. Left out: true where it starts from a state.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.prompts import parameters_of
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.names import READ_ONLY

SOURCE = "Liu et al., Findings of EMNLP 2022"
TOKENS = {"fixed": 20, "rpg": 20}
"""Default number of prompt tokens by generator; the others have 5, as in the paper."""


_START: dict[str, Any] = {"prompt_start": None, "zero_init": None}
"""What a prompt starts from, and whether its generator starts at zero; None: the method's own choice."""


def tokens_of(generator: str, settings: ModelSettings) -> int:
    """Return k, the number of prompt tokens: the one in the settings, or the generator's default."""
    return settings.num_prompt_tokens or TOKENS.get(generator, 5)


def _fragment(options: Options, settings: ModelSettings, *, generator: str) -> dict[str, Any]:
    return {"generator": generator, "num_prompt_tokens": tokens_of(generator, settings), **options}


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool, *, generator: str) -> int:
    return parameters_of(generator, shape.width, settings.bottleneck_dim, tokens_of(generator, settings))


def _method(generator: str, title: str, source: str = SOURCE, **options: Any) -> Method:
    return Method(
        generator,
        title,
        source,
        "prompt",
        partial(_fragment, generator=generator),
        partial(_count, generator=generator),
        {**options, **_START},
    )


def _read_only(generator: str, title: str, **options: Any) -> Method:
    def fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
        return {**_fragment(options, settings, generator=generator), "read_only": True}

    return Method(
        READ_ONLY + generator,
        title,
        "this library",
        "prompt",
        fragment,
        partial(_count, generator=generator),
        {**options, **_START},
        read_only=True,
    )


METHODS = (
    _method("npg", "LPT npg"),
    _method("mppg", "LPT mppg", pool_last_source=True),
    _method("appg", "LPT appg", pool_last_source=True),
    _method("atpg", "LPT attention pooling", "this library"),
    _method("rpg", "LPT residual prompt", "this library", fixed_init="normal"),
    _method("fixed", "LPT without generator", fixed_init="normal"),
    _read_only("npg", "read-only npg"),
    _read_only("mppg", "read-only mppg", pool_last_source=True),
    _read_only("appg", "read-only appg", pool_last_source=True),
    _read_only("atpg", "read-only attention pooling"),
    _read_only("rpg", "read-only residual prompt", fixed_init="normal"),
    _read_only("fixed", "read-only prompt without generator", fixed_init="normal"),
)
