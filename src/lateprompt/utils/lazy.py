"""Import the names of a package on first use, so that importing the package is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__`, which imports names on first use.

    Args:
        package: the package's `__name__`.
        homes: name to the full name of the module that defines it.

    Example:
        >>> lazy_names("lateprompt.backbone", {"Family": "lateprompt.backbone.families"})("Family").__name__
        'Family'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
