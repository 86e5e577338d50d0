"""The page: head, contents, sections in order. It needs nothing but itself, and lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from lateprompt.experiments.report.aggregate import MainTable, main_tables
from lateprompt.experiments.report.blocks import Block, Section
from lateprompt.experiments.report.details import cut, errors_section, failures_section, provenance_section
from lateprompt.experiments.report.figures import clean
from lateprompt.experiments.report.results import Results
from lateprompt.experiments.report.sections import (
    convergence_section,
    ranks_section,
    scores_section,
    shots_section,
    some,
    speed_section,
)

SECTIONS: Sequence[tuple[str, str, Callable[[Results, Sequence[MainTable]], list[Block]]]] = (
    ("scores", "Scores", scores_section),
    ("speed", "Score against speed", speed_section),
    ("shots", "Learning curves", shots_section),
    ("ranks", "Ranks", ranks_section),
    ("convergence", "Convergence", convergence_section),
    ("errors", "Errors", errors_section),
    ("failures", "Failed runs", failures_section),
    ("provenance", "Settings and provenance", provenance_section),
)
"""Anchor, heading and function of each section; one that has nothing to show returns no blocks."""
WIDE, NARROW = 720.0, 370.0
"""Widths of the two drawings of a figure, for screens and for phones: text keeps its size on both."""
MOST_LABELS = 12
"""Labels up to which a confusion matrix is drawn; above, the most frequent confusions are listed."""


def sections_of(results: Results) -> list[Section]:
    """The sections that have something to show."""
    tables = main_tables(results)
    made = [Section(anchor, title, blocks(results, tables)) for anchor, title, blocks in SECTIONS]
    return [section for section in made if section.blocks]


def render(results: Results) -> str:
    """The whole page as HTML."""
    return page_of(results, sections_of(results))


def page_of(results: Results, sections: Sequence[Section]) -> str:
    """The page of sections that are made."""
    return whole_page("Comparison of tuning methods", _summary(results), sections)


def whole_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """A page with a heading, a line below it, and sections: self-contained HTML that nothing else gets into."""
    script = _asset("page.js")
    environment = Environment(
        loader=PackageLoader("lateprompt.experiments.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters |= {"cut": cut, "kind": lambda block: type(block).__name__}
    environment.globals |= {"WIDE": WIDE, "NARROW": NARROW, "MOST_LABELS": MOST_LABELS}
    return environment.get_template("page.html.jinja").render(
        style=_asset("page.css"),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=title,
        summary=summary,
        sections=sections,
    )


def _asset(name: str) -> str:
    return files("lateprompt.experiments.report").joinpath(name).read_text(encoding="utf-8")


def _summary(results: Results) -> str:
    runs = results.runs
    parts = [some(runs[what].nunique(), what) for what in ("method", "task", "seed", "model")]
    parts.append(some(len(results.done), "finished run"))
    failed = f", {len(results.failed)} failed" if len(results.failed) else ""
    return " · ".join(parts) + failed
