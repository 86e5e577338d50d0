"""Text files as a stream of lines, whatever their compression, encoding and line ends."""

from __future__ import annotations

import codecs
import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lateprompt.errors import LatePromptError

CHUNK = 1 << 20
LONGEST = 1 << 26
"""Most bytes of a line: what is longer is no row, and would fill the memory."""
_LFS = b"version https://git-lfs.github.com/spec/"
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


def is_file(path: Path) -> bool:
    """Whether there is a regular file: reading a FIFO or a device could wait for ever."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long is no file, nor is one with a NUL
        return False


def check_file(path: Path, what: str = "") -> None:
    """Raise LatePromptError unless `path` is a regular file and not just a pointer to one.

    Args:
        path: the file.
        what: what it is to be, for the message: "task file", "plan".
    """
    name = f"{what} {str(path)!r}".lstrip()
    if path.is_dir():
        raise LatePromptError(f"{name} is a folder; give a file")
    if not is_file(path):
        kind = _kind(path)
        if kind is None:
            raise LatePromptError(f"{name} does not exist; give a file")
        raise LatePromptError(f"{name} is {kind}, not a file; write its content to a file and give that")
    with path.open("rb") as file:
        _refuse_pointer(name, file.read(len(_LFS)))


def read_text(path: Path, what: str = "", *, limit: int = LONGEST) -> str:
    """The whole text of a small file.

    Raises:
        LatePromptError: no regular file, one that is larger than `limit` bytes, or not UTF-8.
    """
    check_file(path, what)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    name = f"{what} {str(path)!r}".lstrip()
    if len(content) > limit:
        raise LatePromptError(f"{name} is larger than {limit:,} bytes; give a smaller file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LatePromptError(f"{name}, line {line}: {not_utf8(error)}") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are no UTF-8, and how to mend it."""
    byte = error.object[error.start]
    return (
        f"not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, e.g. with: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE"
    )


def byte_lines(path: Path, *, any_end: bool = True) -> Iterator[bytes]:
    """The lines of a file, UTF-8 without a byte order mark, with their ends; UTF-16 with a mark is read too.

    Args:
        path: a regular file; one whose name ends in .gz is unpacked.
        any_end: whether lines end at "\\r" too, or at "\\n" alone (unless there is no "\\n").

    Raises:
        LatePromptError: another kind of file, a line beyond all measure, or a broken archive.
    """
    rest, number = b"", 0
    for chunk in byte_chunks(path):
        if number == 0 and b"\n" not in chunk:
            any_end = any_end or b"\r" in chunk
        lines = (rest + chunk).splitlines(True) if any_end else _at_newlines(rest + chunk)
        # The last one may go on; a "\r" may be half of "\r\n".
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
    """A file's text as UTF-8 without a byte order mark, a piece at a time; errors as `byte_lines` has."""
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
    _refuse_pointer(str(path), start)
    for signature, kind in _OTHER_FILES.items():
        if start.startswith(signature):
            raise LatePromptError(f"{path} is {kind}")
    if b"\0" in start[:1000].partition(b"\n")[0]:
        raise LatePromptError(
            f"{path}, line 1: NUL bytes, so it is no text, or UTF-16 without its mark; save the file as UTF-8"
        )


def _refuse_pointer(name: str, start: bytes) -> None:
    if start.startswith(_LFS):
        raise LatePromptError(f"{name} is a Git LFS pointer, not the data; fetch the data with: git lfs pull")


def _kind(path: Path) -> str | None:
    """What a path is that is no file, in words; None where nothing is."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")
