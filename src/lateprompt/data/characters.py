"""Half surrogate pairs, which no UTF-8 file can hold: they are found before anything is trained or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lateprompt.utils.errors import LatePromptError


def is_writable(text: str) -> bool:
    """Return whether a text can be written as UTF-8, which half a surrogate pair cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_characters(text: str, where: str) -> None:
    """Raise LatePromptError if `text` cannot be written as UTF-8; `where` says in the message what it is."""
    if not is_writable(text):
        raise LatePromptError(f"{where} has half a surrogate pair, which is no character; repair the text")


def check_record(record: Mapping[str, Any]) -> None:
    """Apply `check_characters` to all columns of a row, nested values too, since `predict` writes them out again."""
    for column, value in record.items():
        check_characters(column, f"the name of column {written(column)!r}")
        for text in _texts(value):
            check_characters(text, repr(column))


def written(value: Any) -> Any:
    """Return a value with U+FFFD in place of each half surrogate pair, nested values too."""
    if isinstance(value, str):
        return value if is_writable(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {written(key): written(part) for key, part in value.items()}
    return [written(part) for part in value] if isinstance(value, list) else value


def _texts(value: Any) -> list[str]:
    """Return all texts in a JSON value, keys too."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, Mapping):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
    return found
