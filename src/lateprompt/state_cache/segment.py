"""Append-only files of rows with a checksummed index; what a crash leaves half-written is dropped at the next start.

A segment is two files: `N.bin`, the rows' bytes one after the other, and `N.idx`, a record of 40 bytes per row, written
after the row itself. A record that is torn, fails its own checksum, or points past the end of the data is missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lateprompt.state_cache.locking import put_plainly

RECORD = np.dtype(
    [("key", "V16"), ("offset", "<i8"), ("length", "<i4"), ("checksum", "<u4"), ("own", "<u4"), ("pad", "<u4")]
)
SEGMENT_BYTES = 1 << 30
"""A segment is closed and the next begun when its data reach 1 GiB: pruning removes whole segments."""
_NAME = re.compile(r"segment-\d{20}(-[0-9a-f]{8})?\.(bin|idx)")


def new_segment_path(folder: Path) -> Path:
    """The data file of a new segment: a name that no process, today or after a prune, has used or will use.

    Whoever still reads a pruned segment cannot mistake another for it. Names sort by age.
    """
    return folder / f"segment-{time.time_ns():020d}-{secrets.token_hex(4)}.bin"


def segment_files(folder: Path) -> list[Path]:
    """The files of all segments in a store's folder, by name; nothing else that lies there, nothing if it is gone.

    A segment with a part that is no file (a pipe, whose reading would never end) is nobody's.
    """
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_file() for entry in entries if _NAME.fullmatch(entry.name)}
    except (FileNotFoundError, PermissionError):
        return []
    odd = {name[:-4] for name, is_file in found.items() if not is_file and (folder / name).exists()}
    return sorted(folder / name for name in found if name[:-4] not in odd)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none: another process may remove it at any time."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def may_write(path: Path) -> bool:
    """Whether the user that this process acts for may read and write a file."""
    return os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)


class Segment:
    """One pair of files, and how far this process has read their index.

    Args:
        path: the data file, `….bin`.
        row_bytes: bytes of one token in a row.
    """

    def __init__(self, path: Path, row_bytes: int) -> None:
        self.path = path
        self.index_path = path.with_suffix(".idx")
        self.row_bytes = row_bytes
        self._map: np.ndarray | None = None
        self._read_index = 0  # the inode of the index file that was read
        self._read_records = 0  # how many of its records were

    @property
    def data_bytes(self) -> int:
        return size_of(self.path)

    @property
    def count(self) -> int:
        """Whole records in the index."""
        return size_of(self.index_path) // RECORD.itemsize

    @property
    def index_number(self) -> int:
        """The index file's inode, 0 if there is none: another one holds other records."""
        try:
            return self.index_path.stat().st_ino
        except FileNotFoundError:
            return 0

    def records(self, start: int = 0) -> tuple[np.ndarray, int]:
        """The valid records from record number `start` on, and how many were read (a torn one at the end is not).

        A segment that is gone, or that this user may not read, has none.
        """
        try:
            with self.index_path.open("rb") as file:
                file.seek(start * RECORD.itemsize)
                raw = file.read()
        except (FileNotFoundError, PermissionError):
            return np.empty(0, RECORD), 0
        records = np.frombuffer(raw, RECORD, count=len(raw) // RECORD.itemsize)
        ends = records["offset"] + records["length"].astype(np.int64) * self.row_bytes
        good = (ends <= self.data_bytes) & (records["offset"] >= 0) & (records["length"] > 0)
        for i in np.flatnonzero(good):
            good[i] = zlib.crc32(records[i].tobytes()[:32]) == records["own"][i]
        return records[good], len(records)

    def new_records(self) -> tuple[np.ndarray, int]:
        """The valid records that were added since the last call, and how many broken ones were met among them.

        An index that was written anew (a verify drops records) is read again from its start.
        """
        index = self.index_number
        if index != self._read_index:
            self._read_index, self._read_records = index, 0
        records, read = self.records(self._read_records)
        self._read_records += read
        return records, read - len(records)

    def repair(self) -> int:
        """Cut off what an interrupted writer left at the ends of both files; only a writer may. Returns bytes dropped.

        Records that are broken but not at the end stay where they are, and count as missing. Another user's segment
        stays as it is: nobody but its owner appends to it.
        """
        if not self.is_writable:
            return 0
        if not self.index_path.exists():
            dropped = self.data_bytes
            self.path.unlink(missing_ok=True)
            return dropped
        index_bytes = self.index_path.stat().st_size
        whole = index_bytes - index_bytes % RECORD.itemsize
        raw = np.fromfile(self.index_path, RECORD, count=whole // RECORD.itemsize)
        keep = len(raw)
        data_bytes = self.data_bytes
        while keep and not self._is_whole(raw[keep - 1], data_bytes):
            keep -= 1
        end = max((int(r["offset"]) + int(r["length"]) * self.row_bytes for r in raw[:keep]), default=0)
        dropped = index_bytes - keep * RECORD.itemsize + max(0, data_bytes - end)
        if dropped:
            os.truncate(self.index_path, keep * RECORD.itemsize)
            if data_bytes > end:
                os.truncate(self.path, end)
        return dropped

    @property
    def is_writable(self) -> bool:
        """Whether this user may append to it, as far as its files exist."""
        return all(may_write(path) for path in (self.path, self.index_path) if path.exists())

    def _is_whole(self, record: np.void, data_bytes: int) -> bool:
        end = int(record["offset"]) + int(record["length"]) * self.row_bytes
        return end <= data_bytes and zlib.crc32(record.tobytes()[:32]) == record["own"]

    @property
    def last_used(self) -> float:
        """When it was last used (seconds since the epoch); 0.0 where nobody can say: it goes first."""
        try:
            return self.index_path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def matches(self, record: np.void) -> bool:
        """Whether a record is whole and its row matches its checksum."""
        offset, length = int(record["offset"]), int(record["length"])
        if offset < 0 or length < 1 or not self._is_whole(record, self.data_bytes):
            return False
        return bool(zlib.crc32(self.read(offset, length).data) == record["checksum"])

    def append(self, keys: Sequence[bytes], lengths: Sequence[int], rows: Sequence[bytes]) -> np.ndarray:
        """Add rows: data first, then their records. Returns the records.

        Raises:
            CannotCache: the disk is full, or may not be written; no half row stays.
        """
        offset = self.data_bytes
        records = np.zeros(len(rows), RECORD)
        at = offset
        for i, (key, length, row) in enumerate(zip(keys, lengths, rows, strict=True)):
            records[i] = (np.void(key), at, length, zlib.crc32(row), 0, 0)
            records["own"][i] = zlib.crc32(records[i].tobytes()[:32])
            at += len(row)
        index_bytes = size_of(self.index_path)
        with put_plainly(self.path.parent):
            try:
                _append(self.path, b"".join(rows))
                _append(self.index_path, records.tobytes())
            except BaseException:  # interrupted by Ctrl-C too
                self._take_back(offset, index_bytes, records)
                raise
        self._read_index = self.index_number
        self._read_records += len(records)
        return records

    def _take_back(self, offset: int, index_bytes: int, records: np.ndarray) -> None:
        """Undo a failed append. What has a whole record stays: a reader may have seen it, and its data are there."""
        whole = max(0, size_of(self.index_path) - index_bytes) // RECORD.itemsize
        end = offset
        if whole:
            last = records[min(whole, len(records)) - 1]
            end = int(last["offset"]) + int(last["length"]) * self.row_bytes
        with contextlib.suppress(OSError):  # the next writer's repair cuts it off
            for path, size in ((self.index_path, index_bytes + whole * RECORD.itemsize), (self.path, end)):
                if size:
                    os.truncate(path, size)
                else:
                    path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        for path in (self.path, self.index_path):
            with put_plainly(path.parent), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                os.fsync(file.fileno())

    def read(self, offset: int, length: int) -> np.ndarray:
        """The bytes of a row, as a view on the mapped file."""
        end = offset + length * self.row_bytes
        if self._map is None or len(self._map) < end:
            self._map = np.asarray(np.memmap(self.path, np.uint8, "r"))  # slices of a plain array are cheaper
        return self._map[offset:end]

    @property
    def mapped_bytes(self) -> int:
        """How much of the data file is mapped: readable here whatever becomes of the file's name."""
        return 0 if self._map is None else len(self._map)

    def hold(self) -> None:
        """Map the whole file: it stays readable here even if another process prunes it."""
        try:
            self.read(self.data_bytes, 0)
        except FileNotFoundError:  # pruned between two steps: what was mapped stays
            if self._map is None:
                raise

    def was_cut(self) -> None:
        """Forget the mapped data and the records beyond the index's end: a repair has cut both files."""
        self._map = None
        self._read_records = min(self._read_records, self.count)

    def touch(self) -> None:
        """Remember that it was used now: the least recently used segment is pruned first."""
        with contextlib.suppress(OSError):  # pruned meanwhile, another user's, or on a read-only disk
            os.utime(self.index_path)

    def remove(self) -> int:
        """Delete both files (the index first: a row without a record is missing, never wrong). Returns bytes freed."""
        freed = 0
        for path in (self.index_path, self.path):
            size = size_of(path)
            path.unlink(missing_ok=True)
            freed += size
        return freed


def _append(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
    finally:
        os.close(handle)
