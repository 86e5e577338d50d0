"""Where the rows of a store lie: a table with one entry per row, and the row numbers by address."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PLACE = np.dtype([("segment", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("checksum", "<u4"), ("verified", "?")])
"""A row's segment, first byte there, length in tokens, checksum, and whether its bytes were found to match it."""


class RowTable:
    """The rows of a store, in the order in which they were found; a row keeps its number.

    An address that is written again gets a new row, and the old one stays without an address.
    """

    def __init__(self) -> None:
        self._table = np.zeros(0, PLACE)  # longer than it is filled, so that adding rows seldom copies it
        self._numbers: dict[bytes, int] = {}
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    @property
    def addresses(self) -> int:
        """How many different addresses there are."""
        return len(self._numbers)

    @property
    def places(self) -> np.ndarray:
        """All rows, (rows,) of type PLACE, as a view: it may be written to."""
        return self._table[: self._filled]

    def add(self, segment: int, records: np.ndarray, *, verified: bool = False) -> None:
        """Add the rows of index records (`segment.RECORD`) of a segment by its number in the store."""
        start, end = self._filled, self._filled + len(records)
        if end > len(self._table):
            longer = np.zeros(max(end, 2 * len(self._table)), PLACE)
            longer[:start] = self._table[:start]
            self._table = longer
        new = self._table[start:end]
        for name in ("offset", "length", "checksum"):
            new[name] = records[name]
        new["segment"], new["verified"] = segment, verified
        self._filled = end  # before the numbers: whoever reads meanwhile must find the rows of all of them
        self._numbers.update(zip(records["key"].tolist(), range(start, end), strict=True))

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Row numbers of addresses, -1 for unknown ones."""
        return np.array([self._numbers.get(key, -1) for key in keys], dtype=np.int64)
