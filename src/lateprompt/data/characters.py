"""Characters that no file can hold: found before anything is trained or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lateprompt.utils.errors import LatePromptError


def is_writable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_characters(text: str, where: str) -> None:
    """Raise LatePromptError for a text that no file can hold."""
    if not is_writable(text):
        raise LatePromptError(f"{where} has half a surrogate pair, which is no character; repair the text")


def check_record(record: Mapping[str, Any]) -> None:
    """`check_characters` for all columns of a row, whatever is nested in them: predict writes them out again."""
    for column, value in record.items():
        check_characters(column, f"the name of column {written(column)!r}")
        for text in _texts(value):
            check_characters(text, repr(column))


def written(value: Any) -> Any:
    """A value with U+FFFD in the place of what no file can hold."""
    if isinstance(value, str):
        return value if is_writable(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {written(key): written(part) for key, part in value.items()}
    return [written(part) for part in value] if isinstance(value, list) else value


def _texts(value: Any) -> list[str]:
    """All texts in a value of JSON."""
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
