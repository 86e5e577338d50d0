"""Read CSV and TSV, with the separators, headers and empty cells that spreadsheets write."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lateprompt.data.columns import Columns
from lateprompt.data.formats.lines import LONGEST, byte_lines
from lateprompt.data.formats.tables import Entry, Table, Unreadable
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import not_utf8

SEPARATORS = (",", ";", "\t", "|")
LOOK_AHEAD = 100
"""An unnamed column is left out if it is empty in this many first rows."""

Find = Callable[[Collection[str]], Columns]


class DecodedLines:
    """Decode lines for `csv.reader`; what is wrong with one is kept until `trouble` is called.

    Args:
        lines: the lines as bytes.
    """

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._trouble: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        text, trouble = _decoded(line)
        self._trouble = self._trouble or trouble
        return text

    def trouble(self) -> str | None:
        """Return what was wrong with the lines read since the last call, or None."""
        trouble, self._trouble = self._trouble, None
        return trouble


def _decoded(line: bytes) -> tuple[str, str | None]:
    """Return a line as text, and what is wrong with it (None: nothing)."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return line.decode(errors="replace"), not_utf8(error)
    if "\0" in text:  # as after a crash or on a damaged disk
        return text, "NUL bytes, so it is no text; fetch it again, or remove them: tr -d '\\000' < FILE > NEW_FILE"
    return text, None


def read_separated(path: Path, usual: str, find: Find, is_unquoted: Callable[[Sequence[str]], bool]) -> Table:
    """Open a CSV or TSV file. Its separator is found from the header.

    Args:
        path: the file.
        usual: the separator that belongs to its suffix.
        find: finds the columns of the fields in a header.
        is_unquoted: tells from a header whether quotes in a tab-separated file are plain text.

    Raises:
        LatePromptError: a column that occurs twice, or a file that is no text.
    """
    start, skipped = _first_line(path)
    plain = start.rstrip("\r\n").split("\t")
    if usual == "\t" and is_unquoted([name.strip() for name in plain]):
        return _unquoted(path, skipped)
    mark = re.fullmatch(r"sep=(.)", start.strip())  # a line with which Excel names the separator
    separator = mark[1] if mark else _separator(start, usual, find)
    rows = _quoted_rows(DecodedLines(byte_lines(path)), separator, spaced=_is_spaced(start, separator))
    number, cells = 0, list[str]()
    for number, values in rows:
        if isinstance(values, Unreadable):
            raise LatePromptError(f"{path}, line {number}: {values.error}")
        if any(value.strip() for value in values) and not (mark and number == skipped + 1):
            cells = values
            break
    names = [name.strip() for name in cells]
    return named_table(str(path), "line", names, rows, header=number)


def _first_line(path: Path) -> tuple[str, int]:
    """Return the first line that is not blank, and the number of lines before it."""
    lines = byte_lines(path)
    for skipped, line in enumerate(lines):
        if line.strip():
            return line.decode(errors="replace"), skipped
    return "", 0


def _separator(header: str, usual: str, find: Find) -> str:
    """Return the separator with which the header has a column of texts; else the one that gives most columns."""

    def names(separator: str) -> list[str]:
        cells = csv.reader([header], delimiter=separator, skipinitialspace=True)
        try:
            return [name.strip() for name in next(cells, [])]
        except csv.Error:
            return []

    found = {separator: names(separator) for separator in (usual, *SEPARATORS)}
    fitting = [separator for separator, cells in found.items() if find(cells)["text"] in cells]
    return fitting[0] if fitting else max(found, key=lambda separator: len(found[separator]))


def _is_spaced(header: str, separator: str) -> bool:
    """Return whether a space follows each separator, so that a quote after the space opens a quoted text."""
    cells = header.split(separator)[1:]
    return any(cell.startswith(" ") for cell in cells) and all(not cell.strip() or cell[0] == " " for cell in cells)


def _unquoted(path: Path, skipped: int) -> Table:
    lines = enumerate(byte_lines(path, any_end=False), 1)
    header = next(line for number, line in lines if number > skipped).decode(errors="replace")
    names = [name.strip() for name in header.rstrip("\r\n").split("\t")]

    def rows() -> Iterator[tuple[int, list[str] | Unreadable]]:
        for number, line in lines:
            if line.strip():
                text, trouble = _decoded(line)
                yield number, text.rstrip("\r\n").split("\t") if trouble is None else Unreadable(trouble)

    return named_table(str(path), "line", names, rows(), header=skipped + 1)


def _quoted_rows(lines: DecodedLines, separator: str, *, spaced: bool) -> Iterator[tuple[int, list[str] | Unreadable]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # 131,072 is less than a long document
    # strict: otherwise a quote that is never closed swallows the rest of the file.
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Lines inside an unclosed quote may be rows: skipping them would lose them silently.
            final = "unexpected end" in str(error) or reader.line_num > number
            yield number, Unreadable(_broken(error, reader.line_num - number), final=final)
            if final:
                return
            lines.trouble()
            continue
        trouble = lines.trouble()
        if trouble:
            yield number, Unreadable(trouble)
        elif values:
            yield number, values


def _broken(error: csv.Error, further: int) -> str:
    if further and "expected after" in str(error):
        return (
            f"broken quoting (a quote opens here, and the next, {further} {'line' if further == 1 else 'lines'} below, "
            "does not close it); close it, or double a quote inside quotes"
        )
    if "unexpected end" in str(error) or "field limit" in str(error):
        return "broken quoting (a quote opens here and is not closed); close it, or double a quote inside quotes"
    return f"broken quoting ({error}); double a quote inside quotes"


def named_table(
    data: str,
    unit: str,
    names: Sequence[str],
    rows: Iterator[tuple[int, Sequence[Any] | Unreadable]],
    *,
    header: int,
    typed_cells: bool = False,
) -> Table:
    """Make a table of rows below a header, without empty unnamed columns and without empty rows at the end.

    Args:
        data: the file, for messages.
        unit: what the numbers count: `line` or `row`.
        names: the header's cells, stripped.
        rows: number and cells of each row below the header.
        header: the header's number.
        typed_cells: whether cells have types, as in a spreadsheet.

    Raises:
        LatePromptError: a name that occurs twice.
    """
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise LatePromptError(
            f"{data}, {unit} {header}: column {twice[0]!r} occurs twice (columns: {', '.join(filter(None, names))}); "
            "rename one"
        )
    rows = _without_empty_end(rows)
    first = [row for _, row in zip(range(LOOK_AHEAD), rows, strict=False)]
    kept = _kept_columns(names, [row for _, row in first if not isinstance(row, Unreadable)])

    def entries() -> Iterator[Entry]:
        for part in (first, rows):
            for number, row in part:
                yield number, row if isinstance(row, Unreadable) else _record(row, names, kept)

    return Table(data, entries(), unit, [*kept.values()], typed_cells=typed_cells)


def _kept_columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[int, str]:
    """Return the indices and names of the columns to keep.

    A column without a name (often an index) is kept if it has values and a named column follows.
    """
    last = max((place for place, name in enumerate(names) if name), default=-1)
    unnamed = [
        place
        for place, name in enumerate(names[:last])
        if not name and any(place < len(row) and not is_blank(row[place]) for row in rows)
    ]
    given = {place: "" if len(unnamed) == 1 else f"column {place + 1}" for place in unnamed}
    return {place: name or given[place] for place, name in enumerate(names) if name or place in given}


def _record(row: Sequence[Any], names: Sequence[str], kept: dict[int, str]) -> dict[str, Any] | Unreadable:
    width = len(row)
    if len(kept) == len(names) == width:
        return dict(zip(kept.values(), row, strict=True))
    record = {name: row[place] for place, name in kept.items() if place < width}
    if any(place not in kept and not is_blank(value) for place, value in enumerate(row)):
        return Unreadable(
            f"{width} fields for {len(kept)} columns ({', '.join(kept.values())}); quote a text that has the "
            "separator in it, or name the column",
            record,
        )
    return record


def is_blank(value: Any) -> bool:
    """Return whether a cell is empty or blank."""
    return value is None or (isinstance(value, str) and not value.strip())


def _without_empty_end(
    rows: Iterator[tuple[int, Sequence[Any] | Unreadable]],
) -> Iterator[tuple[int, Sequence[Any] | Unreadable]]:
    """Yield the rows without empty ones at the end; an empty row among others stays, and is an error for the reader."""
    waiting: list[tuple[int, Sequence[Any] | Unreadable]] = []
    for number, row in rows:
        if not isinstance(row, Unreadable) and all(is_blank(value) for value in row):
            waiting.append((number, row))
            continue
        yield from waiting
        waiting.clear()
        yield number, row
