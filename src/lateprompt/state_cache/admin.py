"""Look after the stores in a folder: list, verify, prune. A store that is broken keeps none of the others from it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.state_cache.codec import DTYPES
from lateprompt.state_cache.facts import STORE_FILE
from lateprompt.state_cache.locking import LOCK_FILE, Busy, CannotCache, changing, put_plainly
from lateprompt.state_cache.segment import RECORD, Segment, segment_files, size_of
from lateprompt.state_cache.store import TrunkStates
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import TEMPORARY_END, write_atomically
from lateprompt.utils.names import POOLINGS

PRUNE_WAIT_SECONDS = 1.0
"""How long a prune waits for a store that another process changes."""
VERIFY_WAIT_SECONDS = 10.0
"""The same of a verify, which goes on waiting while the other adds rows."""
_STORE_NAME = re.compile(rf".+-p\d+-({'|'.join(DTYPES)})(-({'|'.join(POOLINGS)}))?-[0-9a-f]{{16}}")
# What an interrupted atomic write of ours left; names of segments are too long to be there as a whole.
_LEFTOVER = re.compile(rf"\.(store\.json|segment-\d{{20}}(-[0-9a-f]{{8}})?\.idx?){TEMPORARY_END}")


def stores_in(folder: str | Path) -> list[Path]:
    """The stores of a folder, broken ones too; LatePromptError if it is none."""
    folder = Path(folder)
    try:
        if not folder.is_dir():
            raise LatePromptError(f"folder {str(folder)!r} with trunk states does not exist")
        if _is_store(folder):
            return [folder]
        return [path for path in sorted(folder.iterdir()) if _is_store(path)]
    except OSError as error:
        raise LatePromptError(
            f"folder {str(folder)!r} with trunk states cannot be read ({error.strerror}); mend its permissions"
        ) from None


def _is_store(path: Path) -> bool:
    """Whether a folder holds what we made; one that may not be read goes by its name."""
    try:
        return STORE_FILE in os.listdir(path) or bool(segment_files(path))
    except PermissionError:
        return _STORE_NAME.fullmatch(path.name) is not None
    except OSError:  # no folder, or removed since
        return False


def _whole_stores(folder: str | Path) -> tuple[list[TrunkStates], list[tuple[Path, str]]]:
    """The stores that can be read, and what is wrong with the others."""
    whole: list[TrunkStates] = []
    problems: list[tuple[Path, str]] = []
    for path in stores_in(folder):
        try:
            whole.append(TrunkStates.attach(path))
        except (LatePromptError, OSError) as error:
            if _is_store(path):  # not pruned since
                problems.append((path, str(error)))
    return whole, problems


def list_stores(folder: str | Path) -> list[dict[str, Any]]:
    """Each store's name, facts (model type, prompt layer, …), rows and bytes; of a broken one, `problem` says why."""
    whole, problems = _whole_stores(folder)
    rows: list[dict[str, Any]] = [{**store.describe(), "problem": None} for store in whole]
    names = ("format", "model_type", "prompt_layer", "hidden_size", "dtype", "fingerprint", "pooling", "rows")
    unknown = dict.fromkeys(names)
    for path, problem in problems:
        size = sum(map(size_of, segment_files(path)))
        rows.append({"store": path.name, **unknown, "bytes": size, "problem": problem})
    return sorted(rows, key=lambda row: str(row["store"]))


@dataclass
class Verdict:
    """What `verify_store` found: rows that are whole, and rows dropped (damaged ones, computed anew when needed).

    Args:
        store: its name.
        rows: rows that are whole; None where they could not be looked at.
        dropped: rows dropped from the index.
        problem: why it could not be verified, or not be mended.
    """

    store: str
    rows: int | None
    dropped: int
    problem: str | None = None


def verify_stores(folder: str | Path) -> list[Verdict]:
    """`verify_store` for each store of a folder; one that is broken, or being filled, gets its reason."""
    verdicts = []
    for path in stores_in(folder):
        try:
            verdicts.append(verify_store(path))
        except (LatePromptError, OSError) as error:
            if _is_store(path):
                verdicts.append(Verdict(path.name, None, 0, str(error)))
    return verdicts


def verify_store(folder: Path) -> Verdict:
    """Check every row against its checksum and drop the damaged ones from the index.

    A store that may only be read is checked all the same; what is damaged there is said, and stays.

    Raises:
        LatePromptError: no store, or another process is filling it.
    """
    store = TrunkStates.attach(folder)
    dropped = 0
    try:
        with store.writing(wait_seconds=VERIFY_WAIT_SECONDS), put_plainly(folder):
            for segment in _segments(store):
                bad = _damaged(segment)
                if len(bad):
                    _drop(segment, bad)
                    dropped += len(bad)
            return Verdict(folder.name, len(TrunkStates.attach(folder)), dropped)
    except Busy:
        raise
    except CannotCache as error:
        left = sum(len(_damaged(segment)) for segment in _segments(store))
        problem = f"{left} damaged rows stay: {error}" if left else None
        return Verdict(folder.name, len(TrunkStates.attach(folder)) - left, dropped, problem)


def _segments(store: TrunkStates) -> list[Segment]:
    paths = {path.with_suffix(".bin") for path in segment_files(store.folder)}
    return [Segment(path, store.row_bytes) for path in sorted(paths)]


def _damaged(segment: Segment) -> np.ndarray:
    """The numbers of an index's records that are broken themselves, or whose rows do not match their checksums."""
    raw = np.fromfile(segment.index_path, RECORD) if segment.index_path.exists() else np.empty(0, RECORD)
    return np.array([i for i, record in enumerate(raw) if not segment.matches(record)], dtype=np.int64)


def _drop(segment: Segment, records: np.ndarray) -> None:
    kept = np.delete(np.fromfile(segment.index_path, RECORD), records).tobytes()

    def write(temporary: Path) -> None:
        temporary.write_bytes(kept)

    write_atomically(segment.index_path, write)


@dataclass
class Pruned:
    """What a prune did.

    Args:
        freed_bytes: bytes freed.
        refused: stores that another process changes, or that may not be changed, by name, and why.
        broken: stores that are broken and stay, by name, and why.
        fits: whether the stores fit into the limit now.
    """

    freed_bytes: int
    refused: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    fits: bool = True


def prune(folder: str | Path, limit_bytes: float, *, keep: Collection[Path] = ()) -> int:
    """Remove the least recently used segments until all stores of a folder fit into `limit_bytes`; bytes freed.

    A process that has filled or opened rows for a training keeps reading them: the disk has their room again when it
    ends. A broken store stays and is warned of.

    Args:
        folder: where stores live.
        limit_bytes: most that may stay.
        keep: data files of segments that stay in any case.

    Raises:
        LatePromptError: a negative limit; or, after all others were pruned, a store that stands above the limit and is
            being filled or may not be changed.
    """
    done = prune_stores(folder, limit_bytes, keep=keep)
    for name, reason in done.broken.items():
        warnings.warn(f"store {name!r} was not pruned: {reason}", stacklevel=2)
    if done.refused and not done.fits:
        raise LatePromptError(next(iter(done.refused.values())))
    return done.freed_bytes


def prune_stores(folder: str | Path, limit_bytes: float, *, keep: Collection[Path] = ()) -> Pruned:
    """As `prune`, with what stood in its way as part of the answer."""
    if not limit_bytes >= 0:
        raise LatePromptError(f"limit {limit_bytes!r} is negative; give a number of bytes from 0")
    stores, broken = _whole_stores(folder)
    done = Pruned(0, broken={path.name: problem for path, problem in broken})
    with ExitStack() as locks:  # all of them at once: what is looked at is what is removed
        ours = []
        for store in stores:
            try:
                locks.enter_context(changing(store.folder, PRUNE_WAIT_SECONDS))
                ours.append(store)
            except LatePromptError as error:
                if _is_store(store.folder):
                    done.refused[store.folder.name] = str(error)
        left = sum(store.nbytes for store in stores)
        for segment in _by_use(ours):
            if left <= limit_bytes:
                break
            if segment.path in keep:
                continue
            try:
                freed = segment.remove()
            except OSError as error:
                where = segment.path.parent
                done.refused[where.name] = f"trunk states {str(where)!r} cannot be removed ({error.strerror})"
                continue
            left -= freed
            done.freed_bytes += freed
        for store in ours:
            _remove_if_empty(store.folder)
    done.fits = left <= limit_bytes
    return done


def _by_use(stores: Sequence[TrunkStates]) -> list[Segment]:
    """All segments, the least recently used first."""
    found = [segment for store in stores for segment in _segments(store)]
    return sorted(found, key=lambda segment: (segment.last_used, segment.path))


def _remove_if_empty(folder: Path) -> None:
    """Remove a store without segments, under its lock; what others put there stays, and the folder with it."""
    if segment_files(folder):
        return
    try:
        leftovers = [folder / name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name)]
        for path in (*leftovers, folder / STORE_FILE, folder / LOCK_FILE):
            path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError:  # a file of somebody else's, or a writer that has begun anew
        return
