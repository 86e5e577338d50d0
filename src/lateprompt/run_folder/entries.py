"""Which files of a run folder belong to a run: those in its manifest, unchanged, or those of earlier versions."""

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
"""The checkpoint of a run that overwrites an interrupted one, whose checkpoint stays until the new run is complete."""
CHECKPOINTS = (CHECKPOINT, NEW_CHECKPOINT)
STATE = "state.json"
STARTED = "started.json"
"""In a folder of checkpoints: marks it as one that a run began."""
JOURNAL = "search-journal.jsonl"
"""In a folder of checkpoints: what a search has tried so far."""
KNOWN = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "task.yaml",
    "README.md",
    "history.jsonl",
    "metrics.json",
    "run.json",
)
"""The files of a run in the order in which they are moved into place: a folder with a `run.json` can be loaded."""
LINEAR = ("vocabulary.json", "linear_model.safetensors")
"""The further files of linear models' runs; earlier versions, which wrote no manifest, had none."""
SEARCH_FILE = "search.jsonl"
"""What a search has tried; not in `KNOWN`, since no version without a manifest wrote it."""
FILES = (*LINEAR, *KNOWN, SEARCH_FILE)
"""All files of runs in the order in which they are moved into place."""
_FORMAT = "lateprompt run folder"
_NAMES = "|".join(re.escape(name) for name in (*FILES, MANIFEST))
_SAFETENSORS = r"\.tmp\w{6}"
"""Names of files left by a process killed while safetensors was writing."""
_TEMPORARY = re.compile(rf"\.({_NAMES}){TEMPORARY_END}")
"""Names of files left by a process killed while it was writing."""
_WAITING = re.compile(rf"{_NAMES}|{_TEMPORARY.pattern}|{_SAFETENSORS}")
_STATE_FILES = rf"{re.escape(STARTED)}|{re.escape(STATE)}|{re.escape(JOURNAL)}|tensors-\d+\.safetensors"
_IN_CHECKPOINT = re.compile(rf"{_STATE_FILES}|\.({_STATE_FILES}){TEMPORARY_END}|{_SAFETENSORS}")

Hashes = dict[str, str]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write the manifest of a new run: its files with their sizes in bytes and hashes."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": _FORMAT, "version": 1, "files": files})


def manifest_of(folder: Path) -> Hashes | None:
    """Return the hashes of a run's files by name; None if there is no valid manifest."""
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
    """Return whether a path is a file and not a symbolic link."""
    return path.is_file() and not path.is_symlink()


def is_run_file(path: Path) -> bool:
    """Return whether a file is the `run.json` of a run."""
    return is_plain(path) and isinstance(_json_object(path).get("model_settings"), dict)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds the checkpoints of a run."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if all(path.name.startswith(f".{STARTED}.") for path in folder.iterdir()):  # killed as it began
        return True
    state = {"settings", "tensors", "progress"}
    return is_plain(folder / STARTED) or (is_plain(folder / STATE) and state <= set(_json_object(folder / STATE)))


def is_legacy(folder: Path) -> bool:
    """Return whether a folder has a run, or the checkpoint of one, by an earlier version that wrote no manifest."""
    if (folder / MANIFEST).exists() and manifest_of(folder) is not None:
        return False
    old = folder / CHECKPOINT
    return is_run_file(folder / "run.json") or (is_checkpoint(old) and not (old / STARTED).exists())


def foreign_entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry, in sub-folders too, that does not belong to a run, and the reason."""
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


def has_state(folder: Path) -> bool:
    """Return whether a folder of checkpoints has something to go on from: a training's state, or a search's journal."""
    return any((folder / name).is_file() for name in (STATE, JOURNAL))


def refuse(folder: Path, name: str, why: str) -> LatePromptError:
    """Return the error for an entry that does not belong to a run."""
    return LatePromptError(f"folder {str(folder)!r} has {name!r}, {why}; move it away, or give another folder")


def remove_checkpoint(folder: Path) -> None:
    """Remove the files of a run's checkpoint, and the folder if nothing else is in it."""
    if not is_checkpoint(folder):
        return
    # The tensors first: the files that mark the folder as a checkpoint go last.
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == STARTED, path.name == STATE)):
        if is_plain(path) and _IN_CHECKPOINT.fullmatch(path.name):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def clear_staging(folder: Path) -> None:
    """Remove the files of a run that was not moved into place, and their folder if nothing else is in it."""
    staging = folder / STAGING
    if not staging.is_dir() or staging.is_symlink():
        return
    for path in sorted(staging.iterdir(), key=lambda path: path.name != MANIFEST):
        if is_plain(path) and _WAITING.fullmatch(path.name):
            path.unlink()
    if not any(staging.iterdir()):
        staging.rmdir()
