"""Where lines go: a file of text, the screen, or a Parquet file; each can stop at its last whole row."""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from lateprompt.predictors.outputs.columns import Columns, Line, Survey, json_bytes, plain_text, refuse_new_columns
from lateprompt.predictors.outputs.formats import DELIMITERS, Format


class Sink(Protocol):
    """Something that takes lines."""

    @property
    def rows(self) -> int:
        """Rows that are in it for good."""

    def write(self, lines: Sequence[Line]) -> None:
        """Write lines; OSError where that fails, after which only `abort` may be called."""

    def finish(self) -> None:
        """All is written: make it durable and close."""

    def abort(self) -> None:
        """Cut off what is not a whole row, and close."""


class _Written(NamedTuple):
    """What is in a file: rows, bytes, and the rows that are being written. One value: an interrupt cannot part it."""

    rows: int = 0
    size: int = 0
    pending: Sequence[bytes] = ()


class LineSink:
    """Rows of text in a file or pipe, one `write` of the system for each window.

    Args:
        handle: the open file.
        form, columns, survey: what is written.
        whole: whether all of the file is ours, from its beginning to its end.
    """

    def __init__(
        self, handle: int, form: Format, columns: Columns, survey: Survey | None, *, whole: bool = True
    ) -> None:
        self._handle = handle
        self._compressed = form.compressed
        self._regular = whole
        self._encoder = _Separated(form, columns, survey) if form.table else _JsonLines()
        self._written = _Written()

    @property
    def rows(self) -> int:
        return self._written.rows

    def write(self, lines: Sequence[Line]) -> None:
        if not lines:
            return
        pieces = self._encoder.encode(lines, self.rows)
        block = b"".join(pieces)
        if self._compressed:  # a member of its own: what stands before it is whole whatever happens to it
            block = gzip.compress(block, 6)
        rows, size, _ = self._written
        self._written = _Written(rows, size, () if self._compressed else pieces)
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(self._handle, rest) :]
        self._written = _Written(rows + len(pieces), size + len(block))

    def finish(self) -> None:
        if self._regular:
            os.fsync(self._handle)
        os.close(self._handle)

    def abort(self) -> None:
        try:
            if self._regular:
                rows, size, pending = self._written
                there = os.lseek(self._handle, 0, os.SEEK_CUR)
                for piece in pending:
                    if size + len(piece) > there:
                        break
                    rows, size = rows + 1, size + len(piece)
                self._written = _Written(rows, size)
                os.ftruncate(self._handle, size)
                os.fsync(self._handle)
        finally:
            os.close(self._handle)


class ScreenSink:
    """JSON lines on standard output."""

    def __init__(self) -> None:
        self.rows = 0
        self._encoder = _JsonLines()

    def write(self, lines: Sequence[Line]) -> None:
        block = b"".join(self._encoder.encode(lines, self.rows))
        try:
            handle = sys.stdout.fileno()
        except (AttributeError, OSError):  # a notebook's, or one that a test holds: io.UnsupportedOperation
            sys.stdout.write(block.decode())
        else:  # past Python's buffer, which would try again at the end what has failed
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(handle, rest) :]
        self.rows += len(lines)

    def finish(self) -> None:
        return

    def abort(self) -> None:
        return


class _JsonLines:
    def encode(self, lines: Sequence[Line], rows: int) -> list[bytes]:
        return [json_bytes(line) + b"\n" for line in lines]


class _Separated:
    """A header, then rows with these columns."""

    def __init__(self, form: Format, columns: Columns, survey: Survey | None) -> None:
        self._delimiter = DELIMITERS[form.kind]
        self._suffix = form.suffix
        self._columns = columns
        self._names: dict[str, None] | None = None
        if survey is not None:
            self._names = dict.fromkeys(columns.header(survey))
        self._started = False
        # With \r\n a lone \r is quoted too; without, it would be read as the end of a row.
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, delimiter=self._delimiter, lineterminator="\r\n")

    def encode(self, lines: Sequence[Line], rows: int) -> list[bytes]:
        if self._names is None:
            self._names = names_of(lines, self._columns)
        pieces = []
        for number, line in enumerate(lines, rows + 1):
            refuse_new_columns(line, self._names, self._suffix, number)
            pieces.append(self._row([_cell(line.get(name)) for name in self._names]))
        if not self._started:
            pieces[0] = self._row(list(self._names)) + pieces[0]
            self._started = True
        return pieces

    def _row(self, values: Sequence[str | None]) -> bytes:
        self._text.seek(0)
        self._text.truncate()
        self._writer.writerow(values)
        return self._text.getvalue().removesuffix("\r\n").encode() + b"\n"


def _cell(value: Any) -> str | None:
    """A value as text; a NUL, which would make a file of text one of bytes, is U+FFFD."""
    text = plain_text(value)
    return text if text is None else text.replace("\0", "\ufffd")


def names_of(lines: Sequence[Line], columns: Columns) -> dict[str, None]:
    """The columns of some lines in the order of their occurrence, ours behind them."""
    found: dict[str, None] = {}
    for line in lines:
        found.update(dict.fromkeys(line))
    own = set(columns.own)
    return dict.fromkeys([*(name for name in found if name not in own), *columns.own])
