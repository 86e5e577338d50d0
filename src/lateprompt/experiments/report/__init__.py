"""The report on a comparison of methods: one self-contained HTML page, and its main table in other formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lateprompt.experiments.report.aggregate import as_json, main_tables
from lateprompt.experiments.report.page import render
from lateprompt.experiments.report.results import NAMES, read_results
from lateprompt.experiments.report.tables import latex, markdown
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import check_output, given_path, write_text

__all__ = ["latex", "main_tables", "markdown", "read_results", "render", "write_report"]


def write_report(
    results: str | Path,
    *,
    page: str | Path | None = None,
    markdown_file: str | Path | None = None,
    latex_file: str | Path | None = None,
    or_default: bool = True,
) -> tuple[dict[str, Any], list[Path]]:
    """Read the results of a comparison and write what is asked for; each file is whole or not there.

    Args:
        results: folder of the results, or their table.
        page: file for the HTML page.
        markdown_file: file for the main table in Markdown.
        latex_file: file for the main table in LaTeX.
        or_default: write the page to `report.html` among the results if no file is asked for.

    Returns:
        The main table for machines, and the files that were written.

    Raises:
        LatePromptError: results that cannot be read, or a file to write that is a folder or the table itself.
    """
    read = read_results(results)
    tables = main_tables(read)
    if or_default and page is markdown_file is latex_file is None:
        page = read.path.parent / "report.html"
    asked: list[tuple[str | Path | None, Callable[[], str]]] = [
        (page, lambda: render(read)),
        (markdown_file, lambda: markdown(tables)),
        (latex_file, lambda: latex(tables)),
    ]
    wanted = [(given_path(file), make) for file, make in asked if file is not None]
    names = [read.path.resolve()]
    folder = read.path.parent
    for file, _ in wanted:
        if file.is_dir():
            raise LatePromptError(f"output {str(file)!r} is a folder; give a file")
        if file.resolve() in names:
            what = "the table of results itself" if file.resolve() == names[0] else "asked for twice"
            raise LatePromptError(f"output {str(file)!r} is {what}; give another file")
        if (folder / "runs").resolve() in file.resolve().parents:
            raise LatePromptError(f"output {str(file)!r} is among the files of the runs; give another place")
        check_output(file, inputs=[folder, *(folder / name for name in NAMES)])
        names.append(file.resolve())
    texts = [(file, make()) for file, make in wanted]  # all are made before the first is written
    for file, text in texts:
        write_text(file, text)
    return as_json(tables, len(read.failed)), [file for file, _ in texts]
