"""`RowStore`: rows of states on disk, found by address; several readers, one writer."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lateprompt.state_cache import codec
from lateprompt.state_cache.facts import STORE_FILE
from lateprompt.state_cache.keys import row_key
from lateprompt.state_cache.locking import CannotCache, changing, put_plainly
from lateprompt.state_cache.rows import RowTable
from lateprompt.state_cache.segment import SEGMENT_BYTES, Segment, new_segment_path, segment_files, size_of
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import write_json

Ids = Sequence[int] | np.ndarray


class RowStore:
    """Rows of states (length, hidden) in segment files, with a table of where each lies.

    Args:
        folder: this store's own folder.
        width: the hidden size.
        dtype: how states lie on disk.
        facts: what `store.json` says; the first writer writes it.
        create: whether writing makes the folder and its `store.json` if they are not there.
    """

    def __init__(self, folder: Path, width: int, dtype: str, facts: dict[str, Any], *, create: bool) -> None:
        self.folder = folder
        self.width = width
        self.dtype = dtype
        self.row_bytes = codec.token_bytes(dtype, width)
        self._facts = facts
        self._create = create
        self._segments: list[Segment] = []
        self._rows = RowTable()
        self.refresh()

    def __len__(self) -> int:
        return self._rows.addresses

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(map(size_of, segment_files(self.folder)))

    def describe(self) -> dict[str, Any]:
        """The store's name, facts, rows and bytes; `pooling` is None where all positions are kept."""
        facts = {**self._facts, "pooling": self._facts.get("pooling")}
        return {"store": self.folder.name, **facts, "rows": len(self), "bytes": self.nbytes}

    def refresh(self) -> int:
        """See what a writer has added since; returns how many broken records were met."""
        known = {segment.index_path for segment in self._segments}
        self._segments += [
            Segment(path.with_suffix(".bin"), self.row_bytes)
            for path in segment_files(self.folder)
            if path.suffix == ".idx" and path not in known
        ]
        broken = 0
        for number, segment in enumerate(self._segments):
            records, worthless = segment.new_records()
            self._rows.add(number, records)
            broken += worthless
        return broken

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self, token_ids: Sequence[Ids], token_type_ids: Sequence[Ids | None] | None = None) -> np.ndarray:
        """Row numbers of token sequences, -1 for those not stored."""
        return self.rows_of(keys_of(token_ids, token_type_ids))

    def rows_of(self, keys: Sequence[bytes]) -> np.ndarray:
        """Row numbers of addresses, -1 for those not stored."""
        return self._rows.find(keys)

    def missing(self, token_ids: Sequence[Ids], token_type_ids: Sequence[Ids | None] | None = None) -> np.ndarray:
        """Which sequences are not stored whole: absent, or damaged on disk (each row's checksum is looked at once)."""
        return self.missing_keys(keys_of(token_ids, token_type_ids))

    def missing_keys(self, keys: Sequence[bytes]) -> np.ndarray:
        """As `missing`, by address."""
        rows = self.rows_of(keys)
        there = rows >= 0
        there[there] = self._whole(rows[there])
        return np.flatnonzero(~there)

    def has(self, key: bytes) -> bool:
        """Whether the row of an address is there, as far as `missing` or `append` have looked."""
        (row,) = self.rows_of([key])
        return bool(row >= 0 and self._rows.places["verified"][row])

    def get(self, rows: Sequence[int] | np.ndarray, length: int | None = None) -> torch.Tensor:
        """States (batch, length, hidden) of row numbers, right padded with zeros to the longest (or to `length`).

        Raises:
            LatePromptError: a row that is not stored, or whose bytes on disk have changed.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        unknown = numbers[(numbers < 0) | (numbers >= len(self._rows))]
        if len(unknown):
            raise LatePromptError(
                f"row {unknown[0]} is not kept in {str(self.folder)!r} ({len(self)} rows); fill it first"
            )
        lost = numbers[~self._whole(numbers)]
        if len(lost):
            raise LatePromptError(
                f"trunk states {str(self.folder)!r}: row {lost[0]} is gone or does not match its checksum; "
                "run lateprompt states verify, which drops it, and fill again"
            )
        places = self._rows.places[numbers]
        out = codec.empty(len(numbers), length or int(places["length"].max(initial=0)), self.width, self.dtype)
        bits, lies = codec.bits_of(out), (places[name].tolist() for name in ("segment", "offset", "length"))
        for row, segment, offset, tokens in zip(bits, *lies, strict=True):
            codec.decode(self._segments[segment].read(offset, tokens), row[:tokens], self.dtype)
        return out

    def hold(self, rows: Sequence[int] | np.ndarray) -> set[Path]:
        """Keep the segments of these rows readable here, whoever prunes them meanwhile; their data files.

        Under the lock (`writing`), or for rows that `missing` has just found whole. They count as used now.
        """
        numbers = np.unique(self._rows.places["segment"][np.asarray(rows, dtype=np.int64)])
        held = [self._segments[number] for number in numbers]
        for segment in held:
            segment.hold()
            segment.touch()
        return {segment.path for segment in held}

    def _whole(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows are mapped and match their checksums, (rows,) of bool.

        A row is looked at once: what has been checked and is mapped cannot go any more.
        """
        places = self._rows.places[rows]
        mapped = np.array([segment.mapped_bytes for segment in self._segments], dtype=np.int64)
        ends = places["offset"] + places["length"] * self.row_bytes
        whole: np.ndarray = places["verified"] & (ends <= mapped[places["segment"]])
        for i in np.flatnonzero(~whole):
            whole[i] = self._verify(int(rows[i]))
        return whole

    def _verify(self, row: int) -> bool:
        segment, offset, length, checksum, _ = self._rows.places[row].item()
        try:
            raw = self._segments[segment].read(offset, length)
        except (OSError, ValueError):  # pruned, not ours to read, on a broken disk; or cut to nothing
            whole = False
        else:
            whole = len(raw) == length * self.row_bytes and zlib.crc32(raw.data) == checksum
        self._rows.places["verified"][row] = whole
        return whole

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, wait_seconds: float = 600.0) -> Iterator[None]:
        """Be the one writer: waits for another to finish, repairs what a killed one left, and says so.

        Args:
            wait_seconds: how long to wait for a writer that adds nothing; while it adds rows, waiting goes on.

        Raises:
            CannotCache: another process keeps the store to itself, or it cannot be written.
        """
        with changing(self.folder, wait_seconds, create=self._create, progress=lambda: self.nbytes):
            try:
                if self._create and not (self.folder / STORE_FILE).exists():
                    with put_plainly(self.folder):
                        write_json(self.folder / STORE_FILE, self._facts)
                self._repair()
                yield
            except FileNotFoundError as error:
                if error.filename is None or Path(error.filename).parent != self.folder:
                    raise
                raise CannotCache(
                    f"trunk states {str(self.folder)!r} were removed while they were filled; fill them again, use "
                    "another folder, or --states off"
                ) from None

    def _repair(self) -> None:
        paths = {path.with_suffix(".bin") for path in segment_files(self.folder)}
        dropped = sum(Segment(path, self.row_bytes).repair() for path in sorted(paths))
        if dropped:
            warnings.warn(
                f"trunk states {str(self.folder)!r}: dropped {dropped} bytes that an interrupted fill left behind",
                stacklevel=4,
            )
            # Row numbers given out stay what they were: a dropped row fails its checksum, no other takes its place.
            self._rows.places["verified"] = False
            for segment in self._segments:
                segment.was_cut()
        self.refresh()

    def append(self, keys: Sequence[bytes], states: Sequence[torch.Tensor]) -> None:
        """Add rows of states (length, hidden); only inside `writing`."""
        if not keys:
            return
        last = self._segments[-1] if self._segments else None
        if last is None or not last.index_path.exists() or last.data_bytes >= SEGMENT_BYTES or not last.is_writable:
            last = Segment(new_segment_path(self.folder), self.row_bytes)
            self._segments.append(last)
        rows = [codec.encode(state, self.dtype) for state in states]
        records = last.append(keys, [len(state) for state in states], rows)
        self._rows.add(len(self._segments) - 1, records, verified=True)

    def sync(self) -> None:
        """Make the last segment durable."""
        if self._segments:
            self._segments[-1].sync()


def keys_of(token_ids: Sequence[Ids], token_type_ids: Sequence[Ids | None] | None = None) -> list[bytes]:
    """The addresses of token sequences (with their token types)."""
    types = token_type_ids or [None] * len(token_ids)
    return [row_key(ids, kinds) for ids, kinds in zip(token_ids, types, strict=True)]
