"""The one validator of settings: a field's annotation says what it takes, pydantic checks it, we say it in one line.

A dataclass declares its limits where its fields are, and `check_types` holds its values against them:

    epochs: Count | None = None
    lr: Annotated[float, Gt(0)] | None = None
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32"

Pydantic is imported when something is checked: help texts are shown without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Ge, GroupedMetadata, Le, Lt, Predicate

from lateprompt.utils.aliases import todays_value
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import unknown

_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a mapping",
}


@dataclass(frozen=True)
class OneOf(GroupedMetadata):
    """In a field's annotation: the names that it takes.

    Example:
        >>> names = OneOf(("fp32", "bf16"))
    """

    names: tuple[str, ...]

    def __iter__(self) -> Iterator[object]:
        yield Predicate(self.names.__contains__)


Count = Annotated[int, Ge(1)]
"""How many of something that there must be."""
Rate = Annotated[float, Ge(0), Lt(1)]
"""A share, or a dropout rate."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""What every generator of random numbers takes."""


def is_of(value: Any, kind: type) -> bool:
    """Return whether a value has a type; numpy's numbers count, whole numbers count as floats, a bool is no number."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def check_types(settings: Any, names: Sequence[str] | None = None) -> None:
    """Raise LatePromptError for a field whose value is not what its annotation says; numpy's numbers become plain ones.

    Args:
        settings: an instance of a dataclass.
        names: the fields to check; None: all.
    """
    for name in [field.name for field in fields(settings)] if names is None else names:
        setattr(settings, name, checked(type(settings), name, getattr(settings, name)))


def checked(kind: type, name: str, value: Any, *, written: bool = False) -> Any:
    """A value for a dataclass's field, as its annotation wants it: numpy's numbers and 2.0 become plain ones.

    Args:
        kind: the dataclass.
        name: the field.
        value: the value.
        written: it comes from YAML or from words, where `1e-3` and `"4"` are texts, and `off` is false.

    Raises:
        LatePromptError: a value that the annotation does not take.

    Example:
        >>> from lateprompt.training.settings import RecipeSettings
        >>> checked(RecipeSettings, "epochs", 0)
        Traceback (most recent call last):
        lateprompt.utils.errors.LatePromptError: epochs 0 is no value for it; give a whole number from 1
    """
    from pydantic import ValidationError

    hint, adapter = _field(kind, name)
    value = _plain(todays_value(name, value), hint, written)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        is_list = any(kind is list for kind, _ in _parts(hint))
        if is_list and isinstance(value, list):  # of several, the first that is none
            value, is_list = error.errors()[0]["input"], False
        choices = [_names(marks) for kind, marks in _parts(hint) if kind not in (list, type(None))]
        if not is_list and len(choices) == 1 and choices[0]:
            raise LatePromptError(unknown(name, value, choices[0])) from None
        wanted = f"{'a list of ' if is_list else ''}{_in_words(hint)}"
        raise LatePromptError(f"{name} {value!r} is no value for it; give {wanted}") from None


@cache
def _field(kind: type, name: str) -> tuple[Any, Any]:
    """A field's annotation, and pydantic's validator of it."""
    from pydantic import TypeAdapter

    hint = get_type_hints(kind, include_extras=True)[name]
    return hint, TypeAdapter(hint)


def _parts(hint: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The plain types of an annotation, those within a list too, each with the marks that limit it."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        for part in get_args(hint):
            yield from _parts(part)
    elif origin is Annotated:
        for plain, marks in _parts(get_args(hint)[0]):
            yield plain, (*marks, *hint.__metadata__)
    elif origin is list:
        yield list, ()
        yield from _parts(get_args(hint)[0])
    else:
        yield origin or hint, ()


def _names(marks: Sequence[Any]) -> tuple[str, ...]:
    """The names that a text is limited to; none where it is free."""
    return next((mark.names for mark in marks if isinstance(mark, OneOf)), ())


def _plain(value: Any, hint: Any, written: bool) -> Any:
    """A value as Python has it, without numpy's types and paths; of what is written, what was meant."""
    kinds = [kind for kind, _ in _parts(hint)]
    takes_text = any(kind is str and not _names(marks) for kind, marks in _parts(hint))
    if isinstance(value, list | tuple) and list in kinds:
        return [_plain(part, hint, written) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        value = int(value)
    if written and str in kinds and not {int, float, bool} & set(kinds) and isinstance(value, bool | int | float):
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    if written and not takes_text and isinstance(value, str):
        for kind in {int, float} & set(kinds):
            with suppress(ValueError):
                return kind(value)
    return value


def _in_words(hint: Any) -> str:
    """What an annotation takes, or each value of a list, as an error's advice names it."""
    words: list[str] = []
    for kind, marks in _parts(hint):
        if _names(marks):
            words += _names(marks)
        elif kind in _KINDS:
            words.append(_KINDS[kind] + "".join(_limits(marks)))
    return " or ".join(words)


def _limits(marks: Sequence[Any]) -> Iterator[str]:
    for mark in marks:
        for name, before in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "to below")):
            if hasattr(mark, name):
                yield f" {before} {getattr(mark, name)}"
