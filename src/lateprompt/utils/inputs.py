"""Check files that users give before they are read: regular files of a sensible size, in UTF-8."""

from __future__ import annotations

import stat
from pathlib import Path

from lateprompt.utils.errors import LatePromptError

_LFS = b"version https://git-lfs"


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; reading a FIFO or a device could wait for ever."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or has a NUL
        return False


def check_file(path: Path, what: str = "") -> None:
    """Raise LatePromptError unless `path` is a regular, readable file, and no Git LFS pointer.

    Args:
        path: the file.
        what: what the message calls it: "task file", "plan".
    """
    name = f"{what} {str(path)!r}".lstrip()
    try:
        kind, start = kind_of(path), b""
        if is_file(path):
            with path.open("rb") as file:
                start = file.read(len(_LFS))
        elif kind is None:
            path.stat()  # raises the reason why it cannot be seen
    except (FileNotFoundError, NotADirectoryError):
        raise LatePromptError(f"{name} does not exist; give a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LatePromptError(f"{name} cannot be read: {reason}; give another file, or mend its permissions") from None
    if kind == "a folder":
        raise LatePromptError(f"{name} is a folder; give a file")
    if kind is not None:
        raise LatePromptError(f"{name} is {kind}, not a file; write its content to a file and give that")
    refuse_pointer(name, start)


def read_text(path: Path, what: str = "", *, limit: int) -> str:
    """Read a small UTF-8 file.

    Args:
        path: the file.
        what: what messages call it: "task file", "plan".
        limit: largest size in bytes.

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
    """Describe bytes that are not UTF-8, and how to convert the file."""
    byte = error.object[error.start]
    return (
        f"not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, e.g. with: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE"
    )


def refuse_pointer(name: str, start: bytes) -> None:
    """Raise LatePromptError if a file starts as a Git LFS pointer does."""
    if start.startswith(_LFS):
        raise LatePromptError(f"{name} is a Git LFS pointer, not the file itself; fetch the file with: git lfs pull")


def kind_of(path: Path) -> str | None:
    """Return in words what a path is (a folder, a pipe, …); None for a regular file, or if nothing is there."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")
