"""Which entries of a run folder are ours: named in its manifest and unchanged since, or known from earlier versions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import STAGING, TEMPORARY_END, write_json

MANIFEST = "manifest.json"
LOCK = ".lateprompt.lock"
CHECKPOINT = "checkpoint"
NEW_CHECKPOINT = "checkpoint-new"
"""Where a run that overwrites an interrupted one keeps its checkpoint: until it is through, the other one stays."""
CHECKPOINTS = (CHECKPOINT, NEW_CHECKPOINT)
STATE = "state.json"
STARTED = "started.json"
"""In a folder of checkpoints: a run of ours began here."""
KNOWN = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "task.yaml",
    "README.md",
    "history.jsonl",
    "metrics.json",
    "run.json",
)
"""What a run leaves, in the order in which it takes its place: a folder with a `run.json` has what `load` reads."""
_FORMAT = "lateprompt run folder"
_NAMES = "|".join(re.escape(name) for name in (*KNOWN, MANIFEST))
_SAFETENSORS = r"\.tmp\w{6}"
"""What a kill in the middle of safetensors' own writing leaves."""
_TEMPORARY = re.compile(rf"\.({_NAMES}){TEMPORARY_END}")
"""What a kill in the middle of a write leaves."""
_WAITING = re.compile(rf"{_NAMES}|{_TEMPORARY.pattern}|{_SAFETENSORS}")
_STATE_FILES = rf"{re.escape(STARTED)}|{re.escape(STATE)}|tensors-\d+\.safetensors"
_IN_CHECKPOINT = re.compile(rf"{_STATE_FILES}|\.({_STATE_FILES}){TEMPORARY_END}|{_SAFETENSORS}")

Hashes = dict[str, str]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """List the files of a folder that is about to become a run, with their sizes and contents' hashes."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": _FORMAT, "version": 1, "files": files})


def manifest_of(folder: Path) -> Hashes | None:
    """The hashes of the files that a run wrote, by name; None where there is no manifest of ours."""
    if not is_plain(folder / MANIFEST):  # reading a pipe would never end
        return None
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            return None
        return {name: str(facts["sha256"]) for name, facts in data["files"].items() if name == Path(name).name}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def is_plain(path: Path) -> bool:
    """Whether it is a file, and no link to one."""
    return path.is_file() and not path.is_symlink()


def is_run_file(path: Path) -> bool:
    """Whether it is the `run.json` of a run of ours."""
    return is_plain(path) and isinstance(_json_object(path).get("model_settings"), dict)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a folder of checkpoints that a run of ours began."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if all(path.name.startswith(f".{STARTED}.") for path in folder.iterdir()):  # killed as it began
        return True
    state = {"settings", "tensors", "progress"}
    return is_plain(folder / STARTED) or (is_plain(folder / STATE) and state <= set(_json_object(folder / STATE)))


def is_legacy(folder: Path) -> bool:
    """Whether a version without manifests was at work in a folder, and left a run or the checkpoint of one."""
    if (folder / MANIFEST).exists() and manifest_of(folder) is not None:
        return False
    old = folder / CHECKPOINT
    return is_run_file(folder / "run.json") or (is_checkpoint(old) and not (old / STARTED).exists())


def foreign_entries(folder: Path) -> Iterator[tuple[str, str]]:
    """The entries of a run folder that are not ours to remove: name and reason; those of its sub-folders too."""
    ours, legacy = manifest_of(folder), is_legacy(folder)
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            yield name, "which no run wrote"
        elif path.is_dir():
            yield from _foreign_inside(path)
        elif name == LOCK or _TEMPORARY.fullmatch(name):
            continue
        elif ours is not None and (name == MANIFEST or name in ours):
            if name != MANIFEST and sha256_of(path) != ours[name]:
                yield name, "which was changed after the run wrote it"
        elif not (legacy and name in KNOWN):
            yield name, "which no run wrote"


def _foreign_inside(folder: Path) -> Iterator[tuple[str, str]]:
    if folder.name == STAGING:
        bad = [p for p in folder.iterdir() if not (is_plain(p) and _WAITING.fullmatch(p.name))]
    elif folder.name in CHECKPOINTS and is_checkpoint(folder):
        bad = [p for p in folder.iterdir() if not (is_plain(p) and _IN_CHECKPOINT.fullmatch(p.name))]
    else:
        yield folder.name, "a folder which no run made"
        return
    yield from ((f"{folder.name}/{path.name}", "which no run wrote") for path in sorted(bad))


def refuse(folder: Path, name: str, why: str) -> LatePromptError:
    """The error for an entry that is not ours."""
    return LatePromptError(f"folder {str(folder)!r} has {name!r}, {why}; move it away, or give another folder")


def remove_checkpoint(folder: Path) -> None:
    """Remove the files of a run's checkpoint, and the folder if nothing else is in it."""
    if not is_checkpoint(folder):
        return
    # The tensors first: what says whose the folder is goes last.
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == STARTED, path.name == STATE)):
        if is_plain(path) and _IN_CHECKPOINT.fullmatch(path.name):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def clear_staging(folder: Path) -> None:
    """Remove files that waited to become a run, and their folder if nothing else is in it."""
    staging = folder / STAGING
    if not staging.is_dir() or staging.is_symlink():
        return
    for path in sorted(staging.iterdir(), key=lambda path: path.name != MANIFEST):
        if is_plain(path) and _WAITING.fullmatch(path.name):
            path.unlink()
    if not any(staging.iterdir()):
        staging.rmdir()
