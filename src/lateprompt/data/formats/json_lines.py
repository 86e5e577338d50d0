"""Read JSON lines, and arrays of JSON objects."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lateprompt.data.characters import check_record, written
from lateprompt.data.formats.lines import LONGEST, byte_chunks, byte_lines
from lateprompt.data.formats.tables import Entry, Table, Unreadable
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import not_utf8

DEEPEST = 100
"""Largest depth of nested lists and objects in a row: Python cannot write far deeper ones."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\r\n,]*")


def read_json_lines(path: Path) -> Table:
    """Open a file of JSON lines."""
    return Table(str(path), _line_entries(byte_lines(path)), "line")


def read_json(path: Path) -> Table:
    """Open a .json file: an array of objects, or JSON lines."""
    start = next((chunk.lstrip()[:1] for chunk in byte_chunks(path) if chunk.strip()), b"")
    if start == b"[":
        return Table(str(path), _array_entries(path), "row")
    return read_json_lines(path)


def _line_entries(lines: Iterator[bytes]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        content = line.strip()
        if content:
            yield number, _record(content)


def _record(content: bytes) -> dict[str, Any] | Unreadable:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return Unreadable(not_utf8(error))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Unreadable(_broken(error, text))
    return _checked(value, text)


def _checked(value: Any, text: str) -> dict[str, Any] | Unreadable:
    """Return a JSON record, or what is wrong with it.

    Args:
        value: the value that was read.
        text: the text it was read from.
    """
    if not isinstance(value, dict):
        what = "write one object per line" + ("; an array belongs into a .json file" if text.startswith("[") else "")
        return Unreadable(f"{text[:60]!r} is no JSON object; {what}")
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        return Unreadable(f"nested deeper than {DEEPEST} levels: {text[:60]!r}; leave that column out")
    if _HALF.search(text):
        try:
            check_record(value)
        except LatePromptError as error:
            return Unreadable(str(error), written(value))
    return value


def _broken(error: Exception, text: str) -> str:
    problem = getattr(error, "msg", "nested too deep" if isinstance(error, RecursionError) else "a number too long")
    hint = "; one object per line, or a .json file with an array" if text in ("{", "[") else ""
    return f"broken JSON ({problem}): {text[:60]!r}{hint}"


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        part, depth = waiting.pop()
        deepest = max(deepest, depth)
        children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting += [(child, depth + 1) for child in children]
    return deepest


def _array_entries(path: Path) -> Iterator[Entry]:
    """Yield the elements of an array one by one, with little more than one of them in memory."""
    pieces = _decoded(path)
    buffer, at, number, wanted = next(pieces).lstrip().removeprefix("["), 0, 0, 1
    decode = json.JSONDecoder().raw_decode
    while True:
        match = _SPACE.match(buffer, at)
        at = match.end() if match else at
        if buffer.startswith("]", at):
            _check_end(path, buffer[at + 1 :], pieces)
            return
        try:
            value, end = decode(buffer, at)
        except RecursionError as error:
            raise LatePromptError(f"{path}, row {number + 1}: {_broken(error, buffer[at : at + 60])}") from None
        except ValueError as error:
            more = _more(pieces, wanted) if len(buffer) - at < LONGEST else ""
            if more:
                # Twice as much each time, so that a long element is not decoded again after each piece.
                buffer, at, wanted = buffer[at:] + more, 0, 2 * wanted
                continue
            problem = "the array has no end ']'" if at >= len(buffer) else _broken(error, buffer[at : at + 60])
            raise LatePromptError(f"{path}, row {number + 1}: {problem}") from None
        number, wanted = number + 1, 1
        yield number, _checked(value, buffer[at:end])
        at = end
        if at > 1 << 18:
            buffer, at = buffer[at:], 0


def _more(pieces: Iterator[str], wanted: int) -> str:
    return "".join(itertools.islice(pieces, wanted))


def _check_end(path: Path, rest: str, pieces: Iterator[str]) -> None:
    for piece in itertools.chain((rest,), pieces):
        if piece.strip():
            raise LatePromptError(f"{path}: {piece.strip()[:60]!r} follows the end of the array; keep one array")


def _decoded(path: Path) -> Iterator[str]:
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    for chunk in byte_chunks(path):
        try:
            yield decoder.decode(chunk)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise LatePromptError(f"{path}, line {line}: {not_utf8(error)}") from None
        line += chunk.count(b"\n")
