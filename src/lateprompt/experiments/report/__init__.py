"""The report on a comparison of methods: one self-contained HTML page, its figures, and its main table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lateprompt.experiments.report.aggregate import as_json, main_tables
from lateprompt.experiments.report.results import NAMES, Results, read_results
from lateprompt.experiments.report.tables import latex, markdown
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import check_output, given_path, write_atomically

__all__ = ["latex", "main_tables", "markdown", "read_results", "render", "write_report"]

KINDS = ("pdf", "png")
"""What `--figures` writes of each figure."""


def render(results: Results) -> str:
    """The whole page as HTML.

    Raises:
        LatePromptError: matplotlib is missing.
    """
    page: str = _drawing().render(results)
    return page


def _drawing() -> Any:
    """The module that makes the page, loaded when a page or figures are wanted: tables need no matplotlib."""
    try:
        from lateprompt.experiments.report import page
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise LatePromptError(
            "the report's figures need matplotlib, which is missing: pip install 'lateprompt[experiments]'"
        ) from None
    return page


def write_report(
    results: str | Path,
    *,
    page: str | Path | None = None,
    markdown_file: str | Path | None = None,
    latex_file: str | Path | None = None,
    figures: str | Path | None = None,
    or_default: bool = True,
) -> tuple[dict[str, Any], list[Path]]:
    """Read the results of a comparison and write what is asked for; each file is whole or not there.

    Args:
        results: folder of the results, or their table.
        page: file for the HTML page.
        markdown_file: file for the main table in Markdown.
        latex_file: file for the main table in LaTeX.
        figures: folder for each figure as PDF and PNG; files there that no report made are not replaced.
        or_default: write the page to `report.html` among the results if nothing is asked for.

    Returns:
        The main table for machines, and the files that were written.

    Raises:
        LatePromptError: results that cannot be read, a file to write that is a folder or the table itself, a file in
            the place of a figure that no report made, or matplotlib is missing for what is asked.
    """
    read = read_results(results)
    tables = main_tables(read)
    if or_default and page is markdown_file is latex_file is figures is None:
        page = read.path.parent / "report.html"
    asked: list[tuple[str | Path | None, Callable[[], str]]] = [
        (page, lambda: _drawing().page_of(read, sections)),
        (markdown_file, lambda: markdown(tables)),
        (latex_file, lambda: latex(tables)),
    ]
    wanted = [(given_path(file), make) for file, make in asked if file is not None]
    _check(read, [file for file, _ in wanted])
    sections = _drawing().sections_of(read) if page is not None or figures is not None else []
    # All are made before the first is written.
    contents = [(file, make().encode()) for file, make in wanted]
    if figures is not None:
        contents += _figures(read, sections, given_path(figures))
    for file, content in contents:
        write_atomically(file, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
    return as_json(tables, len(read.failed)), [file for file, _ in contents]


def _check(read: Results, files: Sequence[Path]) -> None:
    """Refuse files that are read, that are asked for twice, or that cannot be written; makes nothing."""
    names = [read.path.resolve()]
    folder = read.path.parent
    for file in files:
        if file.is_dir():
            raise LatePromptError(f"output {str(file)!r} is a folder; give a file")
        if file.resolve() in names:
            what = "the table of results itself" if file.resolve() == names[0] else "asked for twice"
            raise LatePromptError(f"output {str(file)!r} is {what}; give another file")
        if (folder / "runs").resolve() in file.resolve().parents:
            raise LatePromptError(f"output {str(file)!r} is among the files of the runs; give another place")
        check_output(file, inputs=[folder, *(folder / name for name in NAMES)])
        names.append(file.resolve())


def _figures(read: Results, sections: Sequence[Any], folder: Path) -> list[tuple[Path, bytes]]:
    """The figures' files with their content; refuses a file that no report made."""
    from lateprompt.experiments.report.blocks import charts
    from lateprompt.experiments.report.figures import MAKER

    if folder.exists() and not folder.is_dir():
        raise LatePromptError(f"figures {str(folder)!r} is a file; give a folder")
    drawn = {}
    for chart in (chart for section in sections for chart in charts(section.blocks)):
        name = re.sub(r"[^\w.+-]+", "-", chart.name).strip("-.")[:120]
        while name in drawn:
            name += "-"
        drawn[name] = chart
    files = [(folder / f"{name}.{kind}", chart, kind) for name, chart in drawn.items() for kind in KINDS]
    _check(read, [file for file, _, _ in files])
    for file, _, _ in files:
        if file.exists() and MAKER.encode() not in file.read_bytes():
            raise LatePromptError(
                f"figures {str(folder)!r} has {file.name!r}, which no report made and this one would replace; move it "
                "away, or give another --figures"
            )
    return [(file, chart.file(kind)) for file, chart, kind in files]
