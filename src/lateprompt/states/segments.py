"""Append-only files of rows with a checksummed index; what a crash leaves half-written is dropped at the next start.

A segment is two files: `N.bin`, the rows' bytes one after the other, and `N.idx`, a record of 40 bytes per row, written
after the row itself. A record that is torn, fails its own checksum, or points past the end of the data is missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lateprompt.errors import LatePromptError

RECORD = np.dtype(
    [("key", "V16"), ("offset", "<i8"), ("length", "<i4"), ("checksum", "<u4"), ("own", "<u4"), ("pad", "<u4")]
)
SEGMENT_BYTES = 1 << 30
"""A segment is closed and the next begun when its data reach 1 GiB: pruning removes whole segments."""


class Segment:
    """One pair of files.

    Args:
        path: the data file, `….bin`.
        row_bytes: bytes of one token in a row.
    """

    def __init__(self, path: Path, row_bytes: int) -> None:
        self.path = path
        self.index_path = path.with_suffix(".idx")
        self.row_bytes = row_bytes
        self._map: np.memmap | None = None

    @property
    def data_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def count(self) -> int:
        """Whole records in the index."""
        return self.index_path.stat().st_size // RECORD.itemsize if self.index_path.exists() else 0

    def records(self, start: int = 0) -> tuple[np.ndarray, int]:
        """The valid records from record number `start` on, and how many were read (a torn one at the end is not)."""
        if not self.index_path.exists():
            return np.empty(0, RECORD), 0
        with self.index_path.open("rb") as file:
            file.seek(start * RECORD.itemsize)
            raw = file.read()
        records = np.frombuffer(raw, RECORD, count=len(raw) // RECORD.itemsize)
        ends = records["offset"] + records["length"].astype(np.int64) * self.row_bytes
        good = (ends <= self.data_bytes) & (records["offset"] >= 0) & (records["length"] > 0)
        for i in np.flatnonzero(good):
            good[i] = zlib.crc32(records[i].tobytes()[:32]) == records["own"][i]
        return records[good], len(records)

    def repair(self) -> int:
        """Cut off what an interrupted writer left at the ends of both files; only a writer may. Returns bytes dropped.

        Records that are broken but not at the end stay where they are, and count as missing.
        """
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

    def _is_whole(self, record: np.void, data_bytes: int) -> bool:
        end = int(record["offset"]) + int(record["length"]) * self.row_bytes
        return end <= data_bytes and zlib.crc32(record.tobytes()[:32]) == record["own"]

    def append(self, keys: Sequence[bytes], lengths: Sequence[int], rows: Sequence[bytes]) -> np.ndarray:
        """Add rows: data first, then their records. Returns the records.

        Raises:
            LatePromptError: the disk is full; nothing of the batch stays.
        """
        offset = self.data_bytes
        records = np.zeros(len(rows), RECORD)
        at = offset
        for i, (key, length, row) in enumerate(zip(keys, lengths, rows, strict=True)):
            records[i] = (np.void(key), at, length, zlib.crc32(row), 0, 0)
            records["own"][i] = zlib.crc32(records[i].tobytes()[:32])
            at += len(row)
        index_bytes = self.index_path.stat().st_size if self.index_path.exists() else 0
        try:
            _append(self.path, b"".join(rows))
            _append(self.index_path, records.tobytes())
        except OSError as error:
            for path, size in ((self.index_path, index_bytes), (self.path, offset)):
                if path.exists():
                    os.truncate(path, size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise LatePromptError(
                    f"no room for trunk states on the disk of {str(self.path.parent)!r}; free some "
                    "(lateprompt states prune), use another folder, or --states off"
                ) from None
            raise
        return records

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        for path in (self.path, self.index_path):
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def read(self, offset: int, length: int) -> np.ndarray:
        """The bytes of a row, as a view on the mapped file."""
        end = offset + length * self.row_bytes
        if self._map is None or len(self._map) < end:
            self._map = np.memmap(self.path, np.uint8, "r")
        return self._map[offset:end]

    def hold(self) -> None:
        """Map the whole file: it stays readable here even if another process prunes it."""
        self.read(self.data_bytes, 0)

    def release(self) -> None:
        """Forget the mapped file: it may have been cut since."""
        self._map = None

    def touch(self) -> None:
        """Remember that it was used now: the least recently used segment is pruned first."""
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            os.utime(self.index_path)

    def remove(self) -> int:
        """Delete both files (the index first: a row without a record is missing, never wrong). Returns bytes freed."""
        freed = self.data_bytes + (self.index_path.stat().st_size if self.index_path.exists() else 0)
        self.index_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        return freed


def _append(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
    finally:
        os.close(handle)
