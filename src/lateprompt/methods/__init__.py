"""The tuning methods: a table from name to `Method`, and names that combine methods.

`late-NAME` applies a method such as LoRA to the layers above the prompt layer only, so that it can be trained from
cached trunk states. `PROMPT+TUNER` trains a late prompt and such a method together: `npg+late-lora`. `read-NAME` is a
late prompt that reads the text and is not seen by it; a tuner beside it (`read-npg+lora`) lies on the prompt's own
path.

Example:
    >>> from lateprompt.methods import METHODS, check_method, title_of
    >>> METHODS["lora"].options["r"]
    8
    >>> check_method("npg+late-lora", {"r": 4})
    >>> title_of("npg+late-lora")
    'LPT npg + late LoRA'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lateprompt.methods import (
    adapter,
    bitfit,
    full,
    head,
    late_prompt,
    linear,
    lora,
    p_tuning_v2,
    prompt_tuning,
    s_idpg,
)
from lateprompt.methods.base import Method, Shape
from lateprompt.peft_method.config import NO_PROMPT, LatePromptConfig
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.names import READ_ONLY
from lateprompt.utils.suggestions import did_you_mean
from lateprompt.utils.validation import is_of
from lateprompt.utils.yaml_files import parse_yaml

_FILES = (late_prompt, head, full, lora, bitfit, adapter, prompt_tuning, p_tuning_v2, s_idpg, linear)
METHODS: dict[str, Method] = {method.name: method for file in _FILES for method in file.METHODS}
LATE = "late-"
NAMES = (*METHODS, *(f"{LATE}{name}" for name, method in METHODS.items() if method.kind == "tuner" and method.late))
"""All single methods. A late prompt and one other method can be combined with `+`."""


@dataclass(frozen=True)
class Part:
    """One method in a name such as `npg+late-lora`.

    Args:
        method: the method.
        late: whether it trains only what lies above the prompt layer.
    """

    method: Method
    late: bool


def parse_method(name: str) -> list[Part]:
    """Split a name such as `npg+late-lora` into its methods, the late prompt first.

    Raises:
        LatePromptError: an unknown name, or methods that cannot be combined.

    Example:
        >>> [(part.method.name, part.late) for part in parse_method("late-lora+npg")]
        [('npg', True), ('lora', True)]
    """
    parts = [_part(piece, name) for piece in name.split("+")]
    if len(parts) == 1:
        return parts
    alone = next((part.method.name for part in parts if part.method.kind == "linear"), None)
    if alone is not None:
        raise LatePromptError(f"method {name!r} cannot be: {alone!r} is a linear model without a prompt; use it alone")
    kinds = sorted(part.method.kind for part in parts)
    if kinds != ["prompt", "tuner"]:
        raise LatePromptError(
            f"method {name!r} cannot be: put one late prompt and one tuner together, as in npg+late-lora"
        )
    prompt, tuner = sorted(parts, key=lambda part: part.method.kind)
    apart = tuner.method.name in ("prompt-tuning", "p-tuning-v2")
    if not prompt.late or apart:
        other = prompt.method.name if not prompt.late else tuner.method.name
        raise LatePromptError(
            f"method {name!r} cannot be: {other!r} takes another way through the backbone; use it alone"
        )
    if prompt.method.read_only:
        if tuner.method.name == "full":
            raise LatePromptError(
                f"method {name!r} cannot be: the text's states would change; put another tuner on the prompt's path"
            )
        tuner = Part(tuner.method, late=True)
    return [prompt, tuner]


def _part(piece: str, name: str) -> Part:
    if piece in METHODS:
        method = METHODS[piece]
        return Part(method, late=method.late and method.kind != "tuner")
    method_or_none = METHODS.get(piece.removeprefix(LATE)) if piece.startswith(LATE) else None
    if method_or_none is not None and method_or_none.kind == "tuner" and method_or_none.late:
        return Part(method_or_none, late=True)
    hint = did_you_mean(piece, NAMES)
    raise LatePromptError(
        f"method {name!r} is unknown{hint}; choose one of {', '.join(NAMES)}, or a pair such as npg+late-lora"
    )


def check_method(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise LatePromptError for an unknown method, or for options that it does not have."""
    _options_by_part(parse_method(name), name, options or {})


def read_only_name(name: str) -> str:
    """Return the read-only form of a method: its late prompt reads the text and is not seen by it.

    A name that is read-only already is returned as it is written in tables and run folders: the late prompt first, and
    the tuner without `late-`, since it lies on the prompt's own path in any case.

    Raises:
        LatePromptError: an unknown method, or one that has no read-only form.

    Example:
        >>> read_only_name("npg"), read_only_name("npg+late-lora"), read_only_name("read-npg+late-lora")
        ('read-npg', 'read-npg+lora', 'read-npg+lora')
    """
    prompt, *tuners = [part.method.name for part in parse_method(name)]
    own = prompt if METHODS[prompt].read_only else f"{READ_ONLY}{prompt}"
    if own not in METHODS:
        known = ", ".join(method.name.removeprefix(READ_ONLY) for method in METHODS.values() if method.read_only)
        raise LatePromptError(
            f"method {name!r} has no read-only form; choose one of {known}, or a pair such as npg+lora"
        )
    found = "+".join((own, *tuners))
    parse_method(found)
    return found


def is_late(name: str) -> bool:
    """Return whether a method trains only what lies above the prompt layer, so that trunk states can be cached."""
    return all(part.late for part in parse_method(name))


def is_linear(name: str) -> bool:
    """Return whether a method is a linear model of scikit-learn's, which trains no adapter."""
    return parse_method(name)[0].method.kind == "linear"


def check_model_given(name: str, model: str) -> None:
    """Raise LatePromptError where a method needs a pretrained model and none is named."""
    if not model and parse_method(name)[0].method.reads_model:
        raise LatePromptError(f"--model is needed: method {name!r} reads a pretrained model; give a folder or hub id")


def title_of(name: str) -> str:
    """Return a method's name for tables."""
    parts = parse_method(name)
    late = "" if parts[0].method.read_only else "late "
    return " + ".join(
        f"{late}{part.method.title}" if part.late and part.method.kind == "tuner" else part.method.title
        for part in parts
    )


def _options_by_part(parts: Sequence[Part], name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = sorted({key for part in parts for key in part.method.options})
    for key in options:
        if key not in known:
            raise LatePromptError(
                f"method {name!r} has no option {key!r}{did_you_mean(key, known)}; "
                + (f"choose from {', '.join(known)}" if known else "it has none: leave out --set")
            )
        default = next(part.method.options[key] for part in parts if key in part.method.options)
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default))
        if wanted is not None and not is_of(options[key], type(default)):
            raise LatePromptError(
                f"method {name!r} has option {key} {options[key]!r}; give {wanted}, as in {key}={default}"
            )
    return [{key: options.get(key, default) for key, default in part.method.options.items()} for part in parts]


def adapter_config(settings: ModelSettings, extra: Mapping[str, Any]) -> LatePromptConfig:
    """Build the adapter's configuration for the method in `settings`.

    Args:
        settings: the model's settings.
        extra: further fields of `LatePromptConfig`, such as `head_labels`.

    Raises:
        LatePromptError: an unknown method or option, or methods that cannot be combined.
    """
    parts = parse_method(settings.method)
    fields: dict[str, Any] = {
        "generator": NO_PROMPT,
        "prompt_layer": settings.prompt_layer,
        "bottleneck_dim": settings.bottleneck_dim,
        "prompt_dropout": settings.prompt_dropout,
        "trunk_dropout": settings.trunk_dropout,
    }
    for part, options in zip(parts, _options_by_part(parts, settings.method, settings.options), strict=True):
        fragment = part.method.fragment(options, settings)
        if part.method.kind == "tuner":
            fields |= {"tuner": fragment, "tuner_layers": "tail" if part.late else "all"}
        else:
            fields |= fragment
    if settings.method == "head" and extra.get("head_labels") is None:
        raise LatePromptError(f"method 'head' trains a head and nothing else; use it with {option('readout', 'head')}")
    return LatePromptConfig(**{**fields, **extra})


def parameter_count(settings: ModelSettings, backbone: nn.Module, prompt_layer: int, labels: int | None = None) -> int:
    """Compute how many parameters a method would train, without building the adapter.

    Args:
        settings: the method, its options, the bottleneck and the number of prompt tokens.
        backbone: a Hugging Face model or its backbone, without any adapter in it.
        prompt_layer: p, the number of layers below the prompt.
        labels: outputs of a trained linear head; None: no head.
    """
    shape = Shape.of(backbone, prompt_layer)
    parts = parse_method(settings.method)
    reads = 2 if parts[0].method.read_only else 1
    total = 0 if labels is None else labels * (reads * shape.output_width + 1)
    for part, options in zip(parts, _options_by_part(parts, settings.method, settings.options), strict=True):
        total += part.method.count(shape, options, settings, part.late)
    return total


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` strings into options; values are read as YAML.

    Raises:
        LatePromptError: a string without `=`, or a value that is no YAML.

    Example:
        >>> parse_options(["r=16", "target-modules=[query, key]"])
        {'r': 16, 'target_modules': ['query', 'key']}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise LatePromptError(f"--set {pair!r} is no option; give key=value, e.g. --set r=16")
        try:
            options[key.strip().replace("-", "_")] = parse_yaml(value, f"--set {pair!r}")
        except LatePromptError:
            raise LatePromptError(f"--set {pair!r} has a value that cannot be read; quote it") from None
    return options


__all__ = [
    "METHODS",
    "NAMES",
    "Method",
    "Shape",
    "adapter_config",
    "check_method",
    "check_model_given",
    "is_late",
    "is_linear",
    "parameter_count",
    "parse_method",
    "parse_options",
    "read_only_name",
    "title_of",
]
