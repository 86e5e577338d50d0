"""Progress bars (on a terminal only) and tables without broken words, by rich."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def screen() -> Console:
    """Return a console for standard output, 160 columns wide if that is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of plain text to standard output, without breaking or cutting words.

    If the screen is too narrow for that, each row becomes a paragraph.
    """
    console = screen()
    if not console.is_terminal:  # as wide as the table needs
        whole = (max(cell_len(cell) for cell in column) for column in zip(header, *rows, strict=True))
        console.width = max(console.width, sum(whole) + 3 * len(header) + 1)
    widths = [max(_longest_word(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 > console.width:
        print(_paragraphs(header, rows, console.width))
        return
    table = Table()
    for name, width in zip(header, widths, strict=True):
        table.add_column(name, min_width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _longest_word(cell: str) -> int:
    return max(map(cell_len, cell.split()), default=0)


def _paragraphs(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Write each row as its first cell, and below it the other cells with their names."""
    indent = max(map(len, header[1:]), default=0) + 4
    lines = []
    for row in rows:
        lines.append(row[0])
        for name, cell in zip(header[1:], row[1:], strict=True):
            if cell:
                first = f"  {name}".ljust(indent)
                lines += wrap(
                    cell,
                    max(width, indent + 20),
                    initial_indent=first,
                    subsequent_indent=" " * indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return "\n".join(lines)


class _Rate(ProgressColumn):
    """Shows the current speed in steps a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self.unit}")


class Bar:
    """A progress bar with a note at its end; use it in a `with` statement.

    Args:
        title: the text before the bar.
        total: number of steps; None: unknown, only a count is shown.
        quiet: show nothing.
        start: number of steps already done.
        rate: unit of the speed to show; None: no speed.
    """

    def __init__(
        self, title: str, total: int | None, *, quiet: bool = False, start: int = 0, rate: str | None = None
    ) -> None:
        console = Console(stderr=True)
        ends = (
            [MofNCompleteColumn(), TimeRemainingColumn()] if total is not None else [TextColumn("{task.completed:,}")]
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *ends,
            *([] if rate is None else [_Rate(rate)]),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, steps: int = 1) -> None:
        """Count further steps as done."""
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Set the note at the bar's end."""
        self._progress.update(self._task, note=text)
