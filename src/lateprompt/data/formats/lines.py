"""Read text files line by line, with or without gzip, in UTF-8 or UTF-16, with any line ends."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import check_file, refuse_pointer

CHUNK = 1 << 20
LONGEST = 1 << 26
"""Longest line in bytes: a longer one is no row, and would fill the memory."""
_OTHER_FILES = {
    b"\x1f\x8b": "compressed with gzip; add .gz to its name",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or name it .xlsx",
    b"PAR1": "a Parquet file; name it .parquet",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"SQLite format": "an SQLite database; export a table as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file; save it as .xlsx or CSV",
    b"%PDF": "a PDF; give a table of rows",
}
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def byte_lines(path: Path, *, any_end: bool = True) -> Iterator[bytes]:
    """Yield the lines of a file as UTF-8 bytes, line ends included; UTF-16 with a byte order mark is converted.

    Args:
        path: a regular file; a name that ends in .gz is unpacked.
        any_end: whether "\\r" ends a line too, or "\\n" alone (unless there is no "\\n").

    Raises:
        LatePromptError: another kind of file, a line longer than `LONGEST`, or a broken archive.
    """
    rest, number = b"", 0
    for chunk in byte_chunks(path):
        if number == 0 and b"\n" not in chunk:
            any_end = any_end or b"\r" in chunk
        lines = (rest + chunk).splitlines(True) if any_end else _at_newlines(rest + chunk)
        # The last line may continue in the next chunk; a "\r" at its end may be half of "\r\n".
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        yield from lines
        number += len(lines)
        if len(rest) > LONGEST:
            raise LatePromptError(
                f"{path}, line {number + 1}: longer than {LONGEST:,} bytes, which is no row; check the line ends"
            )
    if rest:
        yield from rest.splitlines(True) if any_end else (rest,)


def _at_newlines(content: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop().removesuffix(b"\n")
    return [*lines, last] if last else lines


def byte_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's text as UTF-8 without a byte order mark, in pieces; raises what `byte_lines` raises."""
    check_file(path)
    with path.open("rb") as file:
        stream: Any = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
        chunk = _read(stream, path)
        if chunk.startswith(codecs.BOM_UTF32_LE):
            raise LatePromptError(f"{path}: UTF-32; save the file as UTF-8")
        if chunk[:2] in _UTF_16:
            yield from _from_utf16(stream, chunk, path)
            return
        chunk = chunk.removeprefix(codecs.BOM_UTF8)
        _refuse_other_files(path, chunk)
        while chunk:
            yield chunk
            chunk = _read(stream, path)


def _read(stream: IO[bytes], path: Path) -> bytes:
    try:
        return stream.read(CHUNK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LatePromptError(f"{path}: a broken gzip file ({error}); fetch or pack it again") from None


def _from_utf16(stream: IO[bytes], chunk: bytes, path: Path) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-16")()
    line = 1
    while True:
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise LatePromptError(
                f"{path}, about line {line}: broken UTF-16 ({error.reason}); save the file as UTF-8"
            ) from None
        line += text.count("\n")
        if text:
            yield text.encode()
        if not chunk:
            return
        chunk = _read(stream, path)


def _refuse_other_files(path: Path, start: bytes) -> None:
    refuse_pointer(str(path), start)
    for signature, kind in _OTHER_FILES.items():
        if start.startswith(signature):
            raise LatePromptError(f"{path} is {kind}")
    if b"\0" in start[:1000].partition(b"\n")[0]:
        raise LatePromptError(
            f"{path}, line 1: NUL bytes, so it is no text, or UTF-16 without its mark; save the file as UTF-8"
        )
