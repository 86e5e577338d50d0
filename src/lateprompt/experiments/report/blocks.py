"""What a section of the page consists of. `templates/blocks.html.jinja` has a macro of the same name for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lateprompt.experiments.report.errors import Errors
from lateprompt.experiments.report.figures import Chart
from lateprompt.experiments.report.tables import Grid


@dataclass(frozen=True, slots=True)
class Note:
    """A remark under a heading, a table or a chart."""

    text: str


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table of plain text.

    Args:
        caption: what it shows.
        headers: names of the columns.
        rows: the cells; the first of a row names it.
        style: CSS classes.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    style: str = "facts"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart drawn twice, for wide and for narrow screens; one of them is shown."""

    caption: str
    chart: Chart


@dataclass(frozen=True, slots=True)
class Panels:
    """Small charts side by side, each under its title."""

    charts: Sequence[tuple[str, Chart]]
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that can be folded under a title."""

    title: str
    blocks: Sequence[Block]
    is_open: bool = False


Block = Note | DataTable | Grid | Figure | Panels | Errors | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page: its anchor, its heading and what it shows."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def folds(items: Sequence[tuple[str, list[Block]]]) -> list[Block]:
    """Groups that can be folded, the first one open; a single group stands without a fold."""
    if len(items) == 1:
        return items[0][1]
    return [Fold(title, blocks, is_open=place == 0) for place, (title, blocks) in enumerate(items)]


def charts(blocks: Iterable[Block]) -> Iterator[Chart]:
    """The charts of some blocks, in the order of the page."""
    for block in blocks:
        if isinstance(block, Figure):
            yield block.chart
        elif isinstance(block, Panels):
            yield from (chart for _, chart in block.charts)
        elif isinstance(block, Fold):
            yield from charts(block.blocks)
