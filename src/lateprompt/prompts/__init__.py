"""Prompt generators: from the hidden states at the prompt layer to k prompt vectors (Liu et al. 2022, section 3.2).

Each generator is one class and one entry of `GENERATORS`. `forward(hidden, source_mask)` takes hidden states
(batch, length, hidden) and a mask (batch, length) of the positions that may be read, and returns the prompt
(batch, k, hidden).
"""

from __future__ import annotations

from lateprompt.prompts.attention import AttentionPoolingGenerator
from lateprompt.prompts.base import GeneratorSpec as GeneratorSpec
from lateprompt.prompts.base import PromptGenerator as PromptGenerator
from lateprompt.prompts.base import read_position as read_position
from lateprompt.prompts.base import read_state as read_state
from lateprompt.prompts.fixed import FixedPrompt as FixedPrompt
from lateprompt.prompts.naive import NaiveGenerator
from lateprompt.prompts.pooling import AveragePoolingGenerator, MaxPoolingGenerator
from lateprompt.prompts.pooling import PoolingGenerator as PoolingGenerator
from lateprompt.prompts.pooling import pooling_slots as pooling_slots
from lateprompt.prompts.residual import ResidualGenerator
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import unknown

GENERATORS: dict[str, type[PromptGenerator]] = {
    "fixed": FixedPrompt,
    "npg": NaiveGenerator,
    "mppg": MaxPoolingGenerator,
    "appg": AveragePoolingGenerator,
    "atpg": AttentionPoolingGenerator,
    "rpg": ResidualGenerator,
}


def parameters_of(name: str, width: int, bottleneck_dim: int, num_prompt_tokens: int) -> int:
    """Return the number of parameters of a generator, without building it.

    With d the width, m the bottleneck and k the number of prompt tokens: fixed k·d; npg d·m + m + m·k·d + k·d; rpg
    k·d + d·m + m + k·m + m·d; mppg and appg d·m + m + m·d + d; atpg k·m more than these.

    Args:
        name: a name in `GENERATORS`.
        width: d, the width of the hidden states.
        bottleneck_dim: m, the generator's inner width.
        num_prompt_tokens: k, the number of prompt vectors.

    Example:
        >>> parameters_of("npg", width=1024, bottleneck_dim=128, num_prompt_tokens=5)
        791680
    """
    d, m, k = width, bottleneck_dim, num_prompt_tokens
    if name == "fixed":
        return k * d
    if name == "rpg":
        return k * d + d * m + m + k * m + m * d
    outputs = k * d if name == "npg" else d
    return d * m + m + m * outputs + outputs + (k * m if name == "atpg" else 0)


def check_generator(name: str) -> None:
    """Raise LatePromptError unless `name` is in the table of generators."""
    if name not in GENERATORS:
        raise LatePromptError(unknown("generator", name, GENERATORS))


def build_generator(name: str, spec: GeneratorSpec) -> PromptGenerator:
    """Build the generator `name` with the sizes in `spec`.

    Raises:
        LatePromptError: a name that is not in `GENERATORS`.
    """
    check_generator(name)
    return GENERATORS[name](spec)
