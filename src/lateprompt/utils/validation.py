"""Check that settings have the types that they are declared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from lateprompt.utils.errors import LatePromptError

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "dict": "a mapping"}
_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict}


def is_of(value: Any, kind: type) -> bool:
    """Return whether a value has a type; numpy's numbers count, whole numbers count as floats, a bool is no number."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def check_types(settings: Any, names: Sequence[str] | None = None) -> None:
    """Raise LatePromptError for a field with another type than declared; numpy's numbers become plain, 2.0 becomes 2.

    Args:
        settings: an instance of a dataclass.
        names: the fields to check; None: all.
    """
    for known in fields(settings):
        if names is not None and known.name not in names:
            continue
        value = getattr(settings, known.name)
        kinds = [part.strip().partition("[")[0] for part in str(known.type).split("|")]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and value.is_integer() and "int" in kinds and "float" not in kinds:
            value = int(value)
        setattr(settings, known.name, value)
        if value is None and "None" in kinds:
            continue
        given = [kind for kind in kinds if kind in _TYPES]
        if given and not any(is_of(value, _TYPES[kind]) for kind in given):
            wanted = " or ".join(_KINDS[kind] for kind in given)
            raise LatePromptError(f"{known.name} {value!r} is no value for it; give {wanted}")
