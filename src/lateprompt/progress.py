"""What is shown: rich bars on a terminal (nothing elsewhere), tables that do not wrap in files."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def screen() -> Console:
    """Standard output; wide where it is a file or a pipe, which have no width to respect."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; cells are plain text."""
    table = Table(*header)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    screen().print(table)


class _Rate(ProgressColumn):
    """Steps a second, of late."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self.unit}")


class Bar:
    """One bar with a note at its end.

    Args:
        title: what is going on.
        total: how many steps there are; None: nobody knows, so that only a count is shown.
        quiet: show nothing.
        start: steps already done.
        rate: the unit of the speed to show, if any.
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
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)
