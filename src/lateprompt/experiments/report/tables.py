"""The main table as cells of text, and written as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lateprompt.experiments.report.aggregate import Cell, MainTable, MethodRow, shots_name

Mark = Literal["", "best", "second"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell as it is shown.

    Args:
        text: the value; a dash where there is none.
        std: standard deviation, or empty.
        mark: whether it is the best or the second of its column.
        seeds: `2/3` where seeds are missing, else empty.
    """

    text: str
    std: str = ""
    mark: Mark = ""
    seeds: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table ready to be shown.

    Args:
        caption: what it shows.
        headers: names of the columns after the method.
        notes: a note under each header (metric, unit), or empty.
        rows: method and its entries.
        is_partial: whether an entry lacks seeds.
    """

    caption: str
    headers: Sequence[str]
    notes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    is_partial: bool


DASH = "–"
Value = Callable[[MethodRow], float | None]


def points(value: float) -> str:
    """A score in percent with one decimal."""
    return f"{100 * value:.1f}"


def count(value: float) -> str:
    """A number of parameters in three digits: `792K`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f}{unit}"
    return f"{value:.0f}"


def rate(value: float) -> str:
    """Tokens per millisecond in about three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def gigabytes(value: float) -> str:
    """Bytes as GB (10^9 bytes)."""
    return f"{value / 1e9:.2f}" if value < 10e9 else f"{value / 1e9:.1f}"


COSTS: Sequence[tuple[str, str, Value, Callable[[float], str], bool]] = (
    ("Tunable", "parameters", lambda row: row.parameters, count, False),
    ("Speed", "tokens/ms", lambda row: row.tokens_per_ms, rate, True),
    ("Memory", "GB", lambda row: row.memory_bytes, gigabytes, False),
)
"""Columns after the scores: header, unit, value, how it is written, and whether more is better."""


def grid(table: MainTable, *, costs: bool = True) -> Grid:
    """The cells of a table with marks, as text.

    Args:
        table: the table.
        costs: also parameters, speed and memory.
    """
    columns: list[list[Entry]] = [
        _score_column([row.cells.get(column.task) for row in table.rows], table) for column in table.columns
    ]
    headers = [column.task for column in table.columns]
    notes = [column.metric + (", dev" if column.split == "dev" else "") for column in table.columns]
    if len(headers) > 1:
        columns.append(_average_column(table))
        headers.append("Average")
        notes.append("of tasks")
    for header, unit, value, write, more in COSTS if costs else ():
        values = [value(row) for row in table.rows]
        texts = [DASH if v is None else write(v) for v in values]
        columns.append(
            [Entry(text, mark=mark) for text, mark in zip(texts, marks(values, texts, more=more), strict=True)]
        )
        headers.append(header)
        notes.append(unit)
    rows = [(row.method, [column[i] for column in columns]) for i, row in enumerate(table.rows)]
    partial = any(table.is_partial(cell) for row in table.rows for cell in row.cells.values())
    return Grid(_caption(table), headers, notes, rows, partial)


def _caption(table: MainTable) -> str:
    seeds = ", ".join(map(str, table.seeds))
    many = len(table.seeds) > 1
    what = f"mean ± standard deviation over {len(table.seeds)} seeds ({seeds})" if many else f"one seed ({seeds})"
    return f"{table.model}, {shots_name(table.shots)}: {what}"


def _score_column(cells: Sequence[Cell | None], table: MainTable) -> list[Entry]:
    texts = [DASH if cell is None else points(cell.mean) for cell in cells]
    found = marks([None if cell is None else cell.mean for cell in cells], texts)
    entries = []
    for cell, text, mark in zip(cells, texts, found, strict=True):
        std = "" if cell is None or cell.std is None else points(cell.std)
        seeds = f"{len(cell.values)}/{len(table.seeds)}" if cell is not None and table.is_partial(cell) else ""
        entries.append(Entry(text, std, mark, seeds))
    return entries


def _average_column(table: MainTable) -> list[Entry]:
    texts = [DASH if row.mean is None else points(row.mean) for row in table.rows]
    found = marks([row.mean for row in table.rows], texts)
    entries = []
    for row, text, mark in zip(table.rows, texts, found, strict=True):
        common = len(row.average.values) if row.average else 0
        std = row.average.std if row.average else None
        seeds = f"{common}/{len(table.seeds)}" if row.mean is not None and common < len(table.seeds) else ""
        entries.append(Entry(text, "" if std is None else points(std), mark, seeds))
    return entries


def marks(values: Sequence[float | None], texts: Sequence[str], *, more: bool = True) -> list[Mark]:
    """Best and second of a column; values that read the same share a mark. None where nothing is compared.

    Args:
        values: one per row.
        texts: the values as written.
        more: whether more is better.
    """
    known = sorted((v for v in values if v is not None), reverse=more)
    written = dict.fromkeys(texts[values.index(v)] for v in known)
    if len(written) < 2:
        return [""] * len(values)
    best, second = list(written)[:2]
    return ["best" if text == best else "second" if text == second else "" for text in texts]


def footnote(table: Grid) -> str:
    """What the marks mean."""
    words = "Scores in percent. Bold: best of its column; underlined: second."
    if table.is_partial:
        words += " †: seeds are missing (how many there are, of how many)."
    return words


_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one table cell."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(sign, sign) for sign in _one_line(text))


def _one_line(text: str) -> str:
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(text.split())


def markdown(tables: Iterable[MainTable]) -> str:
    """The tables in GitHub's Markdown."""
    parts = []
    for table in map(grid, tables):
        head = [f"{escape_markdown(h)} ({escape_markdown(n)})" for h, n in zip(table.headers, table.notes, strict=True)]
        lines = [_pipes(["Method", *head]), _pipes(["---", *["---:"] * len(head)])]
        lines += [_pipes([escape_markdown(method), *map(_markdown_entry, entries)]) for method, entries in table.rows]
        parts.append(f"**{escape_markdown(table.caption)}**\n\n" + "\n".join(lines) + f"\n\n{footnote(table)}\n")
    return "\n".join(parts)


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_entry(entry: Entry) -> str:
    text = entry.text
    if entry.mark:
        text = f"**{text}**" if entry.mark == "best" else f"<ins>{text}</ins>"
    return text + (f" ± {entry.std}" if entry.std else "") + (f" † {entry.seeds}" if entry.seeds else "")


def latex(tables: Iterable[MainTable]) -> str:
    """The tables in LaTeX; they need the package booktabs."""
    return "% \\usepackage{booktabs}\n" + "\n".join(_latex_table(grid(table)) for table in tables)


def _latex_table(table: Grid) -> str:
    def line(cells: Iterable[str]) -> str:
        return "    " + " & ".join(cells) + r" \\"

    rows = [line([escape_latex(method), *map(_latex_entry, entries)]) for method, entries in table.rows]
    caption = f"{escape_latex(table.caption)}. {footnote(table)}".replace("±", r"$\pm$").replace("†", r"$\dagger$")
    return "\n".join(
        [
            r"\begin{table*}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{caption}}}",
            f"  \\begin{{tabular}}{{l{'r' * len(table.headers)}}}",
            r"    \toprule",
            line(["Method", *map(escape_latex, table.headers)]),
            line(["", *(f"{{\\scriptsize {escape_latex(note)}}}" for note in table.notes)]),
            r"    \midrule",
            *rows,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _latex_entry(entry: Entry) -> str:
    text = "--" if entry.text == DASH else entry.text
    if entry.mark:
        text = f"\\{'textbf' if entry.mark == 'best' else 'underline'}{{{text}}}"
    std = f"$_{{\\pm {entry.std}}}$" if entry.std else ""
    return text + std + (f"$^{{\\dagger {entry.seeds}}}$" if entry.seeds else "")
