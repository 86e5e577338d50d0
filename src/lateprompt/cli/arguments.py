"""From the words on the command line to the settings of a run."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import Namespace


def settings_of(kind: Any, args: Namespace) -> Any:
    """The settings (a dataclass) whose fields are among the parsed arguments."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def add_columns(parser: Any, note: str) -> None:
    """Add the options that choose columns by name; `note` says when they count."""
    what = {"text": "texts", "text_pair": "second texts", "label": "labels", "target": "texts to be written"}
    for field, holds in what.items():
        parser.add_argument(f"--{field}_column", type=str | None, help=f"column with the {holds}; {note}")


def columns_of(args: Namespace) -> dict[str, str | None]:
    """Our field to the column chosen for it, as `read_rows` takes it."""
    return {field: args[f"{field}_column"] for field in ("text", "text_pair", "label", "target")}


def dashes_to_underscores(argument: str) -> str:
    """`--prompt-layer=3` to `--prompt_layer=3`; values stay as they are."""
    if not re.match(r"--[a-z]", argument):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
