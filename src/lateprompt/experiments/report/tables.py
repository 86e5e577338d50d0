"""The main table as cells of text, and written as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lateprompt.experiments.report.aggregate import MainTable, shots_name

Mark = Literal["", "best", "second"]
DASH = "–"


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
        headers: names of the columns after the method, each with a note (metric, unit).
        rows: method and its entries.
        footnote: what the marks mean.
    """

    caption: str
    headers: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    footnote: str


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


COSTS: Sequence[tuple[str, str, str, Callable[[float], str], bool]] = (
    ("Tunable", "parameters", "parameters", count, False),
    ("Speed", "tokens/ms", "tokens_per_ms", rate, True),
    ("Memory", "GB", "memory_bytes", gigabytes, False),
)
"""Columns after the scores: header, unit, name of the cost, how it is written, and whether more is better."""


def grid(table: MainTable, *, costs: bool = True) -> Grid:
    """The cells of a table with marks, as text.

    Args:
        table: the table.
        costs: also parameters, speed and memory.
    """
    seeds = len(table.seeds)
    headers, columns = [], []
    for column in table.columns:
        headers.append((column.task, column.metric + (", dev" if column.split == "dev" else "")))
        columns.append(_scores(table.cells.xs(column.task, level="task"), seeds))
    if len(headers) > 1:
        headers.append(("Average", "of tasks"))
        columns.append(_scores(table.averages, seeds))
    for header, unit, name, write, more in COSTS if costs else ():
        texts = [DASH if pd.isna(value) else write(value) for value in table.costs[name]]
        headers.append((header, unit))
        marked = zip(texts, marks(table.costs[name], texts, more=more), strict=True)
        columns.append([Entry(text, mark=mark) for text, mark in marked])
    footnote = "Scores in percent. Bold: best of its column; underlined: second."
    if table.cells["n"].between(1, seeds - 1).any():
        footnote += " †: seeds are missing (how many there are, of how many)."
    rows = list(zip(table.scores.index, zip(*columns, strict=True), strict=True))
    return Grid(_caption(table), headers, rows, footnote)


def _caption(table: MainTable) -> str:
    seeds = ", ".join(map(str, table.seeds))
    many = len(table.seeds) > 1
    what = f"mean ± standard deviation over {len(table.seeds)} seeds ({seeds})" if many else f"one seed ({seeds})"
    return f"{table.model}, {shots_name(table.shots)}: {what}"


def _scores(column: pd.DataFrame, seeds: int) -> list[Entry]:
    """The entries of `mean`, `std` and `n`, the number of seeds, of which `seeds` could be."""
    texts = [DASH if pd.isna(mean) else points(mean) for mean in column["mean"]]
    return [
        Entry(
            text,
            "" if text == DASH or pd.isna(std) else points(std),
            mark,
            f"{n}/{seeds}" if text != DASH and n < seeds else "",
        )
        for text, mark, std, n in zip(texts, marks(column["mean"], texts), column["std"], column["n"], strict=True)
    ]


def marks(values: Iterable[float], texts: Sequence[str], *, more: bool = True) -> list[Mark]:
    """Best and second of a column; values that read the same share a mark. None where nothing is compared.

    Args:
        values: one per row; NaN where there is none.
        texts: the values as written.
        more: whether more is better.
    """
    ordered = pd.Series(list(values), index=list(texts), dtype=float).dropna().sort_values(ascending=not more)
    written = list(ordered.index.unique())
    if len(written) < 2:
        return [""] * len(texts)
    best, second = written[:2]
    return ["best" if text == best else "second" if text == second else "" for text in texts]


_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one table cell."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        DASH: "--",
    }
)


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return _one_line(text).translate(_LATEX)


def _one_line(text: str) -> str:
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(text.split())


def markdown(tables: Iterable[MainTable]) -> str:
    """The tables in GitHub's Markdown."""
    return "\n".join(_markdown_table(grid(table)) for table in tables)


def _markdown_table(table: Grid) -> str:
    def line(*cells: str) -> str:
        return f"| {' | '.join(cells)} |\n"

    head = [f"{escape_markdown(header)} ({escape_markdown(note)})" for header, note in table.headers]
    rows = [line(escape_markdown(method), *map(_markdown_entry, entries)) for method, entries in table.rows]
    return (
        f"**{escape_markdown(table.caption)}**\n\n"
        + line("Method", *head)
        + line("---", *["---:"] * len(head))
        + "".join(rows)
        + f"\n{table.footnote}\n"
    )


def _markdown_entry(entry: Entry) -> str:
    text = {"best": f"**{entry.text}**", "second": f"<ins>{entry.text}</ins>", "": entry.text}[entry.mark]
    return text + (f" ± {entry.std}" if entry.std else "") + (f" † {entry.seeds}" if entry.seeds else "")


def latex(tables: Iterable[MainTable]) -> str:
    """The tables in LaTeX; they need the package booktabs."""
    return "% \\usepackage{booktabs}\n" + "\n".join(_latex_table(grid(table)) for table in tables)


def _latex_table(table: Grid) -> str:
    def line(*cells: str) -> str:
        return f"    {' & '.join(cells)} \\\\\n"

    headers = [escape_latex(header) for header, _ in table.headers]
    notes = [f"{{\\scriptsize {escape_latex(note)}}}" for _, note in table.headers]
    rows = [line(escape_latex(method), *map(_latex_entry, entries)) for method, entries in table.rows]
    return rf"""\begin{{table*}}
  \centering\small\setlength{{\tabcolsep}}{{4pt}}
  \caption{{{escape_latex(f"{table.caption}. {table.footnote}")}}}
  \begin{{tabular}}{{l{"r" * len(headers)}}}
    \toprule
{line("Method", *headers)}{line("", *notes)}    \midrule
{"".join(rows)}    \bottomrule
  \end{{tabular}}
\end{{table*}}
"""


def _latex_entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[entry.mark]
    std = rf"$_{{\pm {entry.std}}}$" if entry.std else ""
    return text + std + (rf"$^{{\dagger {entry.seeds}}}$" if entry.seeds else "")
