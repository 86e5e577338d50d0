"""Names that settings had before: taken wherever a setting is given, never written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from lateprompt.utils.errors import LatePromptError

FIELDS = {
    "clip": "max_grad_norm",
    "early_stop": "patience",
    "rival_epochs": "baseline_epochs",
    "rivals": "baselines",
    "steps": "max_steps",
    "warmup": "warmup_ratio",
}
"""A field's earlier name to today's."""
VALUES = {"readout": {"mask": "masked_lm", "label": "causal_lm", "text": "generate"}}
"""Of a field, a value's earlier name to today's."""
_Kind = TypeVar("_Kind", bound=type)


def todays_name(name: str, known: Collection[str]) -> str:
    """A field's name today, where it is one of the `known` fields; a name that is known itself stays."""
    return FIELDS[name] if name not in known and FIELDS.get(name) in known else name


def todays_value(name: str, value: Any) -> Any:
    """What a field's value is called today.

    Example:
        >>> todays_value("readout", "mask")
        'masked_lm'
    """
    return VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value


def todays_names(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Settings by today's names; the values stay.

    Args:
        given: settings by name, today's or earlier.
        known: the names that there are today.

    Raises:
        LatePromptError: a setting under both names.

    Example:
        >>> todays_names({"clip": 0.5, "lr": 1e-3}, ["max_grad_norm", "lr"])
        {'max_grad_norm': 0.5, 'lr': 0.001}
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        today = todays_name(name, known)
        if today != name and today in given:
            raise LatePromptError(f"{name!r} and {today!r} are two names of one setting; give {today!r} alone")
        found[today] = value
    return found


def todays_settings(given: Mapping[str, Any], known: Collection[str] = frozenset(FIELDS.values())) -> dict[str, Any]:
    """`todays_names`, and the values by today's names too: for what a file of an earlier version holds."""
    return {name: todays_value(name, value) for name, value in todays_names(given, known).items()}


def earlier_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were written before the names changed: what was hashed then has the same hash today."""
    names = {today: name for name, today in FIELDS.items()}
    found = {names.get(name, name): value for name, value in settings.items()}
    for name, table in VALUES.items():
        earlier = {today: value for value, today in table.items()}
        if name in found:
            found[name] = earlier.get(found[name], found[name])
    return found


def takes_earlier_names(kind: _Kind) -> _Kind:
    """Decorate a class whose constructor, and whose instances' attributes, go by earlier names too."""
    make: Any = vars(kind)["__init__"]
    known = list(inspect.signature(make).parameters)[1:]

    @functools.wraps(make)
    def init(self: Any, *args: Any, **given: Any) -> None:
        make(self, *args, **todays_names(given, known))

    setattr(kind, "__init__", init)  # noqa: B010
    for name, today in FIELDS.items():
        if today in known:
            setattr(kind, name, _same_as(today))
    return kind


def _same_as(today: str) -> property:
    return property(
        lambda self: getattr(self, today), lambda self, value: setattr(self, today, value), doc=f"`{today}`, as before."
    )
