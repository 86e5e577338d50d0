"""How a label is spelled: the same way in files, in tasks, on the command line and in the estimator's `y`."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Final

import numpy as np

from lateprompt.data.characters import check_characters, written
from lateprompt.utils.errors import LatePromptError

BETWEEN_LABELS: Final = "|"
"""Stands between the labels of a cell that holds several."""


def label_name(value: Any) -> str | None:
    """Spell a label, so that values that mean the same label get the same name.

    Surrounding space is removed; `True`, `TRUE` and the boolean become `true`; whole numbers lose their fraction, since
    pandas and others write `1.0` for 1 in a column with missing values. Other texts stay as they are: `01`, `+1` and
    `Yes` are different labels from `1` and `yes`.

    Args:
        value: a text, boolean, number (numpy's and decimal ones too), date, or None.

    Returns:
        The name; None for a missing label: None, NaN, pandas' NA, an empty or blank text.

    Raises:
        LatePromptError: an infinite number, half a surrogate pair, or a value that is no label (a list, a mapping, …).

    Example:
        >>> from lateprompt.data import label_name
        >>> [label_name(value) for value in ("1.0", 1, 1.0, " TRUE ", True, "good", float("nan"))]
        ['1', '1', '1', 'true', 'true', 'good', None]
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if _is_gap(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    duration = isinstance(value, np.timedelta64)  # a whole number to numpy
    if isinstance(value, Integral) and not duration:
        return _digits(int(value))
    if isinstance(value, Real | Decimal) and not duration:
        return _from_real(value)
    if isinstance(value, datetime.date | np.datetime64):
        return str(value)
    raise LatePromptError(
        f"label {written(str(value)[:60])!r} is {type(value).__name__}, not a name; give a text, a number or a boolean"
    )


def is_list(value: Any) -> bool:
    """Return whether a cell is a list of labels as JSON, Parquet and arrays have it, rather than one label."""
    return isinstance(value, list | tuple | set | frozenset) or (isinstance(value, np.ndarray) and value.ndim == 1)


def listed_labels(cell: Any) -> list[Any]:
    """Return the labels of a cell that holds several, as they stand there.

    Args:
        cell: a list, a text of labels with `|` between them, one label, or nothing.

    Example:
        >>> from lateprompt.data.labels import listed_labels
        >>> [listed_labels(cell) for cell in (["film", "short"], "film|short", "", None, 3)]
        [['film', 'short'], ['film', 'short'], [''], [None], [3]]
    """
    if isinstance(cell, str):
        return list(cell.split(BETWEEN_LABELS))
    if hasattr(cell, "tolist"):  # an array
        cell = cell.tolist()
    return list(cell) if is_list(cell) else [cell]


def spelled_words(words: Mapping[Any, str]) -> dict[str, str]:
    """Return label words by the names of their labels, spelled as `label_name` does.

    Args:
        words: label to word.

    Raises:
        LatePromptError: a key that is no label, or two that are the same label.
    """
    found: dict[str, str] = {}
    for label, word in words.items():
        name = label_name(label)
        if name is None or name in found:
            problem = "is no label" if name is None else f"is label {name!r} once more"
            raise LatePromptError(f"label_words: {label!r} {problem}; give one word per label")
        found[name] = word
    return found


def _from_text(text: str) -> str | None:
    name = str.strip(text)
    if not name:
        return None
    check_characters(name, "the label")
    if name.lower() in ("true", "false"):
        return name.lower()
    # Other spellings of numbers stay: 01 and 1e5 may be codes.
    whole = re.fullmatch(r"(-?[0-9]+)\.0+", name)
    if whole:
        name = whole[1]
    return "0" if name == "-0" else name


def _from_real(value: Any) -> str:
    if not math.isfinite(value):
        raise LatePromptError(f"label {value} is no name; give a text, a whole number or a boolean")
    return _digits(int(value)) if value == int(value) else str(value)


def _digits(value: int) -> str:
    if abs(value) >= 10**400:  # Python refuses to write far longer ones
        raise LatePromptError("a label is a whole number of more than 400 digits; give it as a text")
    return str(value)


def _is_gap(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas', without importing pandas
        return True
    return isinstance(value, Real | Decimal | np.datetime64) and bool(value != value)
