"""Look after the stores in a folder: list, verify, prune."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lateprompt.errors import LatePromptError
from lateprompt.files import write_atomically
from lateprompt.states.segments import RECORD, Segment
from lateprompt.states.store import LOCK_FILE, STORE_FILE, TrunkStates, describe


def stores_in(folder: str | Path) -> list[Path]:
    """The stores of a folder; LatePromptError if it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise LatePromptError(f"folder {str(folder)!r} with trunk states does not exist")
    if (folder / STORE_FILE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{STORE_FILE}"))


def list_stores(folder: str | Path) -> list[dict[str, Any]]:
    """Each store's name, model type, prompt layer, dtype, rows and bytes."""
    return [{"store": path.name, **describe(path)} for path in stores_in(folder)]


@dataclass
class Verdict:
    """What `verify_store` found: rows that are whole, and rows dropped (damaged ones, computed anew when needed)."""

    store: str
    rows: int
    dropped: int


def verify_store(folder: Path) -> Verdict:
    """Check every row against its checksum and drop the damaged ones from the index."""
    store = TrunkStates.attach(folder)
    with store.writing():
        bad = {row for row in range(len(store._offset)) if not store._verify(row)}
        dropped = len(bad)
        numbers = iter(range(len(store._offset)))
        for segment in store._segments:
            records, read = segment.records()
            keep = [record for record in records if next(numbers) not in bad]
            dropped += read - len(records)
            if len(keep) < read:
                raw = b"".join(record.tobytes() for record in keep)
                assert len(raw) == len(keep) * RECORD.itemsize
                write_atomically(segment.index_path, lambda temporary, raw=raw: temporary.write_bytes(raw))  # type: ignore[misc]
    whole = TrunkStates.attach(folder)
    return Verdict(folder.name, len(whole), dropped)


def prune(folder: str | Path, limit_bytes: int, *, keep: Collection[Path] = ()) -> int:
    """Remove the least recently used segments until all stores of a folder fit into `limit_bytes`; bytes freed.

    Args:
        folder: where stores live.
        limit_bytes: most that may stay.
        keep: data files of segments that stay in any case.

    Raises:
        LatePromptError: a negative limit, or a store that is being filled.
    """
    if limit_bytes < 0:
        raise LatePromptError(f"limit {limit_bytes!r} is negative; give a number of bytes from 0")
    segments: list[tuple[float, Segment, TrunkStates]] = []
    total = 0
    for path in stores_in(folder):
        store = TrunkStates.attach(path)
        total += store.nbytes
        segments += [(segment.index_path.stat().st_mtime, segment, store) for segment in store._segments]
    freed = 0
    for _, segment, store in sorted(segments, key=lambda item: item[0]):
        if segment.path in keep:
            continue
        if total - freed <= limit_bytes:
            break
        with store.writing(wait_seconds=1.0):
            freed += segment.remove()
    for path in stores_in(folder):
        if not list(path.glob("segment-*")):  # nothing left: the folder goes too
            (path / STORE_FILE).unlink(missing_ok=True)
            (path / LOCK_FILE).unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()
    return freed
