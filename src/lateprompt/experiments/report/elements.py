"""Parts of the page as HTML: tables, figures, notes, foldable groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lateprompt.experiments.report.svg import escape
from lateprompt.experiments.report.tables import Entry, Grid, footnote

WIDE, NARROW = 720.0, 370.0
"""Widths of the two drawings of a chart, for screens and for phones: text keeps its size on both."""


def note(text: str) -> str:
    """A remark under a heading, a table or a chart."""
    return f'<p class="note">{escape(text)}</p>'


def notes(texts: Iterable[str]) -> str:
    """Several remarks."""
    return "".join(map(note, texts))


def scrolling(caption: str, table: str) -> str:
    """A table that scrolls sideways in its own box where it is too wide, reachable by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{table}</div>'


def data_table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of plain text; its first column names the rows.

    Args:
        caption: what it shows.
        headers: names of the columns.
        rows: cells as text, which is escaped here.
        kind: CSS classes.
    """
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row" dir="auto">{escape(first)}</th>'
        + "".join(f'<td dir="auto">{escape(cell)}</td>' for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    table = (
        f'<table class="{kind}"><caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
    return scrolling(caption, table)


def main_table(grid: Grid) -> str:
    """Methods by tasks with marks, and what the marks mean."""
    head = "".join(
        f'<th scope="col">{escape(header)}<small>{escape(note)}</small></th>'
        for header, note in zip(grid.headers, grid.notes, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(method)}</th>{"".join(map(_entry, entries))}</tr>'
        for method, entries in grid.rows
    )
    table = (
        f'<table class="main"><caption><span>{escape(grid.caption)}</span></caption>'
        f'<thead><tr><th scope="col">Method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
    return scrolling(grid.caption, table) + note(footnote(grid))


def _entry(entry: Entry) -> str:
    text = escape(entry.text)
    if entry.mark:
        text = f'<strong title="best of its column">{text}</strong>' if entry.mark == "best" else f"<u>{text}</u>"
    if entry.std:
        text += f'<span class="std"> ±{escape(entry.std)}</span>'
    if entry.seeds:
        text += f'<sup title="{escape(entry.seeds)} seeds">†{escape(entry.seeds)}</sup>'
    return f"<td>{text}</td>"


def figure(caption: str, draw: Callable[[float], str]) -> str:
    """A chart drawn twice, for wide and for narrow screens; one of them is shown.

    Args:
        caption: what it shows.
        draw: from a width to an SVG.
    """
    return (
        f'<figure class="large"><div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def panels(items: Iterable[tuple[str, str]]) -> str:
    """Small charts side by side, each under its title.

    Args:
        items: pairs of a title and an SVG.
    """
    figures = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in items)
    return f'<div class="panels">{figures}</div>'


def folds(items: Sequence[tuple[str, str]]) -> str:
    """Groups that can be folded, the first one open; a single group stands without a fold.

    Args:
        items: pairs of a title and HTML.
    """
    if len(items) == 1:
        return items[0][1]
    return "".join(
        f"<details{' open' if place == 0 else ''}><summary>{escape(title)}</summary>{body}</details>"
        for place, (title, body) in enumerate(items)
    )
