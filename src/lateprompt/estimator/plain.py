"""Python values as JSON and back: what JSON has no word for is an object with one key that says what it is."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from lateprompt.utils.errors import LatePromptError


def to_plain(value: Any) -> Any:
    """A value for JSON, from which `from_plain` makes an equal one.

    Numpy's numbers become plain ones. Tuples, dates and mappings whose keys are no texts are marked; what is none of
    these stays as it is.
    """
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64):
        return value.item()
    if isinstance(value, tuple):
        return {"__tuple__": [to_plain(part) for part in value]}
    if isinstance(value, list):
        return [to_plain(part) for part in value]
    if isinstance(value, Decimal):
        return {"__decimal__": str(value)}
    if isinstance(value, datetime.datetime):
        return {"__datetime__": value.isoformat()}
    if isinstance(value, datetime.date):
        return {"__date__": value.isoformat()}
    if isinstance(value, Mapping) or (hasattr(value, "items") and hasattr(value, "keys")):  # a series too
        pairs = [(to_plain(key), to_plain(part)) for key, part in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in pairs):
            return dict(pairs)
        return {"__items__": [list(pair) for pair in pairs]}
    return value


def from_plain(value: Any) -> Any:
    """What `to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        kind, content = next(iter(value.items()))
        if kind == "__tuple__":
            return tuple(from_plain(part) for part in content)
        if kind == "__decimal__":
            return Decimal(content)
        if kind == "__datetime__":
            return datetime.datetime.fromisoformat(content)
        if kind == "__date__":
            return datetime.date.fromisoformat(content)
        if kind == "__items__":
            return {from_plain(key): from_plain(part) for key, part in content}
    return {key: from_plain(part) for key, part in value.items()}


def classes_to_plain(classes: np.ndarray) -> dict[str, Any]:
    """An array of labels for JSON; dates as text, with the unit that they are read again with."""
    kind = classes.dtype.kind
    values = [str(value) for value in classes] if kind == "M" else [to_plain(value) for value in classes.tolist()]
    dtype = "T" if kind == "T" else classes.dtype.str  # numpy's strings of any length
    return {"kind": kind, "dtype": dtype, "values": values}


def classes_from_plain(saved: Any, source: str) -> np.ndarray | None:
    """The array of labels, of the dtype it had; None where none were saved.

    Raises:
        LatePromptError: what is no such array.
    """
    if not saved:
        return None
    try:
        values, dtype = from_plain(saved["values"]), np.dtype(saved.get("dtype"))
        classes = np.empty(len(values), dtype=dtype) if dtype.kind == "O" else np.array(values, dtype=dtype)
        if dtype.kind == "O":
            classes[:] = values
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise LatePromptError(
            f"{source}: its classes {str(saved)[:60]!r} are broken ({error}); save it again"
        ) from None
    if classes.ndim != 1 or len(classes) < 2:
        raise LatePromptError(f"{source}: its classes {str(saved)[:60]!r} are broken; save it again")
    return classes
