"""Files that are whole or not there: written under a temporary name, synced, renamed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lateprompt.errors import LatePromptError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp made it private
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))  # type: ignore[arg-type]


def as_json(value: Any) -> Any:
    """For `json.dumps(default=)`: what tables hold and JSON has no word for."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Decimal | UUID | timedelta | os.PathLike | torch.device):
        return str(value)
    raise TypeError(f"{type(value).__name__} {str(value)[:60]!r} cannot be written as JSON")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=as_json) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """JSON lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=as_json) + "\n" for row in rows))


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(whole, temporary, metadata))


_LFS = b"version https://git-lfs"


def check_regular(path: Path, what: str) -> None:
    """Raise LatePromptError unless `path` is an ordinary file with its own content: reading a pipe would never end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise LatePromptError(f"{what} {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        raise LatePromptError(f"{what} {str(path)!r} cannot be read: {error}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise LatePromptError(f"{what} {str(path)!r} is {kind}; give an ordinary file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise LatePromptError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from None
    if start == _LFS:
        raise LatePromptError(
            f"{what} {str(path)!r} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or "
            "download the file"
        )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that holds an object; LatePromptError naming `what` and the file if it is missing or broken."""
    check_regular(path, what)
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
    """The names in a safetensors file, by its header alone; LatePromptError if it is missing, truncated or broken."""
    check_regular(path, what)
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise LatePromptError(f"{what} {str(path)!r} is truncated or no safetensors file: {error}") from None


def read_tensors(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A safetensors file and its metadata; LatePromptError naming `what` if it is missing or broken."""
    check_regular(path, what)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LatePromptError(f"{what} {str(path)!r} is truncated or no safetensors file: {error}") from None


def prepare_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse an output folder that is not empty, unless it may be overwritten or resumed; creates nothing.

    Raises:
        LatePromptError: the folder has files, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise LatePromptError(f"output {str(folder)!r} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite or resume):
        raise LatePromptError(
            f"output folder {str(folder)!r} is not empty; use --overwrite, --resume, or another folder"
        )


def clear_folder(folder: Path) -> None:
    """Remove everything in `folder`."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
