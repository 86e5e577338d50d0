"""Write files atomically (under a temporary name, synced, then renamed), and read them with one-line errors."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from safetensors import SafetensorError, safe_open

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import check_file

if TYPE_CHECKING:
    import torch

STAGING = ".lateprompt-new"
"""Sub-folder of a run folder in which a new run's files are written, before they are moved into place together."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""
TEMPORARY_END = r"\.(?:[0-9a-f]{8}\.tmp|\w{8})"
"""A pattern for the end of temporary names: `write_atomically` writes `.NAME` (40 characters of it at most) and this.
Earlier versions wrote no `.tmp`."""


class FullDiskError(LatePromptError):
    """The disk is full. The file that was to be replaced is unchanged."""


_READ = (".json", ".safetensors", ".yaml", ".bin", ".model", ".txt", ".jinja")
"""Suffixes of the files that are read from a folder with a model or a run."""


def given_path(value: str | os.PathLike[str], what: str = "output") -> Path:
    """Turn a user's text into a path; raise LatePromptError for a blank one (`Path('')` is `.`), or one with ~."""
    text = os.fspath(value)
    if not text.strip() or "\0" in text:
        raise LatePromptError(f"{what} {text!r} is no name; give a path, or . for the working directory")
    if text == "~" or text.startswith(
        "~/"
    ):  # a folder named ~ is a mistake, and removing it may remove the home folder
        raise LatePromptError(f"{what} {text!r} begins with ~, which only a shell replaces; write the whole path")
    return Path(text)


def check_output(
    path: str | os.PathLike[str], *, inputs: Iterable[str | os.PathLike[str]] = (), what: str = "output"
) -> Path:
    """Raise an error for an output file that cannot or must not be written, before any work is done; create nothing.

    Args:
        path: the file to write. An existing file may be replaced; a FIFO, /dev/stdout and the like are written to.
        inputs: what the command reads: files, folders with a run or a model, hub ids. The output must not be one of
            their files.
        what: what messages call the path.

    Returns:
        The path.

    Raises:
        LatePromptError: a blank name, a folder, an input, or a place that cannot be created or written to.

    Example:
        >>> check_output("predictions.jsonl", inputs=["rows.jsonl"]).name
        'predictions.jsonl'
    """
    target = given_path(path, what)
    try:
        facts = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        facts = None
    except OSError as error:
        raise LatePromptError(
            f"{what} {str(target)!r} cannot be written: {error.strerror}; give another file"
        ) from None
    if os.fspath(path).endswith(os.sep) or (facts is not None and stat.S_ISDIR(facts.st_mode)):
        raise LatePromptError(f"{what} {os.fspath(path)!r} is a folder; give a file")
    if facts is not None and not os.access(target, os.W_OK):
        raise LatePromptError(
            f"{what} {str(target)!r} is write-protected; give another file, or change its permissions"
        )
    if facts is None or stat.S_ISREG(facts.st_mode):
        if own_descriptor(target) is None:
            check_place(Path(os.path.realpath(target)).parent, target, what)
        _check_no_input(target, inputs, what)
    return target


def check_place(folder: Path, target: Path, what: str) -> None:
    """Raise LatePromptError unless files can be created in a folder, or the folder in its nearest existing parent."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError as error:
        raise LatePromptError(f"{what} {str(target)!r} cannot be written: {error.strerror}; give another one") from None
    if not folder.is_dir():
        raise LatePromptError(f"{what} {str(target)!r} cannot be written: {str(folder)!r} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LatePromptError(
            f"{what} {str(target)!r} cannot be written: folder {str(folder)!r} is write-protected; give another place, "
            "or change its permissions"
        )


def _check_no_input(target: Path, inputs: Iterable[str | os.PathLike[str]], what: str) -> None:
    """Raise LatePromptError if writing `target` would replace a file that is read."""
    for given in inputs:
        source = Path(given)
        with contextlib.suppress(OSError):
            if source.is_dir():
                read = source / target.name
                of = f"a file of {str(source)!r}, which is read"
                found = (target.suffix in _READ or target.name == "history.jsonl") and read.is_file()
            else:
                read, of, found = source, "the same file as an input", source.exists()
            if found and target.exists() and target.samefile(read):
                raise LatePromptError(f"{what} {str(target)!r} is {of}; give another file")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it to `path`.

    A symbolic link stays, and the file that it points to is replaced; permissions stay as they were. A FIFO, a
    terminal, /dev/stdout and the like are written to.

    Args:
        path: the file.
        write: called with the temporary file's path.

    Raises:
        LatePromptError: `path` is a folder, or the disk is full.
    """
    path = Path(path)
    shown = path.parent.parent / path.name if path.parent.name == STAGING else path
    with naming(shown):
        facts = _facts(path)
        if facts is not None and stat.S_ISDIR(facts.st_mode):
            raise LatePromptError(f"output {str(shown)!r} is a folder; give a file")
        descriptor = own_descriptor(path)
        if descriptor is not None or (facts is not None and not stat.S_ISREG(facts.st_mode)):
            _write_straight(path, descriptor, write)
        else:
            _write_beside(Path(os.path.realpath(path)), facts, write)


def _write_beside(target: Path, facts: os.stat_result | None, write: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _new_file(target)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        write(temporary)
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if facts is not None:
            keep_permissions(temporary, facts)
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _new_file(target: Path) -> Path:
    """Create an empty file beside `target`, with a unique name and the usual permissions."""
    while True:
        temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return temporary


def keep_permissions(file: Path, facts: os.stat_result) -> None:
    """Give a file the owner and the permissions in `facts`, as far as allowed."""
    own = file.stat()
    if (own.st_uid, own.st_gid) != (facts.st_uid, facts.st_gid):
        with contextlib.suppress(PermissionError):  # only root may
            os.chown(file, facts.st_uid, facts.st_gid)
    with contextlib.suppress(PermissionError):  # some file systems have none
        file.chmod(stat.S_IMODE(facts.st_mode))


def _write_straight(path: Path, descriptor: int | None, write: Callable[[Path], None]) -> None:
    """Write to a path that is no regular file, all at once after `write` has filled a temporary file."""
    with tempfile.TemporaryDirectory(prefix="lateprompt-") as folder:
        made = Path(folder) / "content"
        write(made)
        if descriptor is not None:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            opened = os.dup(descriptor)
        else:
            opened = os.open(path, os.O_WRONLY)
        with made.open("rb") as source, os.fdopen(opened, "wb") as sink:
            shutil.copyfileobj(source, sink)


def _facts(path: Path) -> os.stat_result | None:
    """Return the facts about a path, links followed; None if nothing is there yet."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def own_descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that a path such as /dev/stdout stands for, or None for other paths."""
    for _ in range(40):  # links in a row
        if path.name.isdecimal() and os.path.realpath(path.parent) in (f"/proc/{os.getpid()}/fd", "/dev/fd"):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of writing name `path` instead of a temporary file, and make a full disk a LatePromptError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error_number(error)
        if number in FULL:
            raise FullDiskError(
                f"{str(path)!r} cannot be written: {os.strerror(number)}; free some space, or choose another place"
            ) from error
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def error_number(error: BaseException) -> int | None:
    """Return the system's number of an error; safetensors and pyarrow have it in their messages alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"(?:os error|errno) (\d+)", str(error), re.IGNORECASE)
    return int(found[1]) if found else None


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))  # type: ignore[arg-type]


def as_json(value: Any) -> Any:
    """Convert dates, numpy values and others for `json.dumps(default=as_json)`."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Decimal | UUID | timedelta | os.PathLike) or _is_device(value):
        return str(value)
    raise TypeError(f"{type(value).__name__} {str(value)[:60]!r} cannot be written as JSON")


def _is_device(value: Any) -> bool:
    torch = sys.modules.get("torch")  # not imported: the value cannot be a device
    return torch is not None and isinstance(value, torch.device)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=as_json) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a file of JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=as_json) + "\n" for row in rows))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically; tensors may be on any device."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(whole, temporary, metadata))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file with an object; raise LatePromptError, naming `what` and the file, if missing or broken."""
    check_file(path, what)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LatePromptError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise LatePromptError(f"{what} {str(path)!r} is broken: {error}") from None
    except RecursionError:
        raise LatePromptError(f"{what} {str(path)!r} is broken: its lists or objects are nested too deeply") from None
    if not isinstance(value, dict):
        raise LatePromptError(f"{what} {str(path)!r} is broken: it holds {_shortened(value)}, not an object")
    return value


def _shortened(value: Any) -> str:
    try:
        return repr(str(value)[:40])
    except RecursionError:
        return f"a {type(value).__name__}"


def tensor_names(path: Path, what: str) -> set[str]:
    """Read the names in a safetensors file's header; raise LatePromptError if it is missing, truncated or broken."""
    check_file(path, what)
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise LatePromptError(f"{what} {str(path)!r} is truncated or no safetensors file: {error}") from None


def read_tensors(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata; raise LatePromptError, naming `what`, if it is missing or broken."""
    check_file(path, what)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LatePromptError(f"{what} {str(path)!r} is truncated or no safetensors file: {error}") from None
