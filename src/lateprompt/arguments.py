"""From parsed arguments to the settings of a run."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from jsonargparse import Namespace


def settings_of(kind: Any, args: Namespace) -> Any:
    """The settings (a dataclass) whose fields are among the parsed arguments."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
