"""The page: head, contents, sections in order. It needs nothing but itself, and lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from lateprompt.experiments.report.aggregate import MainTable, main_tables
from lateprompt.experiments.report.details import errors_section, failures_section, provenance_section
from lateprompt.experiments.report.results import Results
from lateprompt.experiments.report.sections import (
    convergence_section,
    rank_section,
    scores_section,
    shots_section,
    speed_section,
)
from lateprompt.experiments.report.svg import escape

Section = Callable[[Results, Sequence[MainTable], Mapping[str, int]], str]
SECTIONS: Sequence[tuple[str, str, Section]] = (
    ("scores", "Scores", scores_section),
    ("speed", "Score against speed", speed_section),
    ("shots", "Learning curves", shots_section),
    ("ranks", "Ranks", rank_section),
    ("convergence", "Convergence", convergence_section),
    ("errors", "Errors", errors_section),
    ("failures", "Failed runs", lambda results, tables, numbers: failures_section(results)),
    ("provenance", "Settings and provenance", lambda results, tables, numbers: provenance_section(results)),
)
"""Anchor, heading and function of each section; one that has nothing to show returns an empty string."""


def render(results: Results) -> str:
    """The whole page as HTML."""
    tables = main_tables(results)
    numbers = {method: number for number, method in enumerate(results.methods)}
    made = [(anchor, title, section(results, tables, numbers)) for anchor, title, section in SECTIONS]
    shown = [(anchor, title, body) for anchor, title, body in made if body]
    contents = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title, _ in shown)
    sections = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{title}</h2>{body}</section>'
        for anchor, title, body in shown
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">{_head()}<body><header><div><h1>Comparison of tuning methods</h1>'
        f"<p>{escape(_summary(results, tables))}</p></div>"
        '<button type="button" id="theme" aria-label="switch between light and dark">Dark</button></header>'
        f'<nav aria-label="contents"><ol>{contents}</ol></nav><main>{sections}</main>'
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


def _head() -> str:
    digest = base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()
    # Only our own script runs, whatever the data hold, and nothing is loaded from anywhere.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>Comparison of tuning methods</title><style>{_asset('page.css')}</style></head>"
    )


def _asset(name: str) -> str:
    return files("lateprompt.experiments.report").joinpath(name).read_text(encoding="utf-8")


def _summary(results: Results, tables: Sequence[MainTable]) -> str:
    def some(number: int, what: str) -> str:
        return f"{number:,} {what}{'s' * (number != 1)}"

    runs = results.runs
    parts = [
        some(len(results.methods), "method"),
        some(len({run.task for run in runs}), "task"),
        some(len({run.seed for run in runs}), "seed"),
        some(len({run.model for run in runs}), "model"),
        some(len(results.done), "finished run"),
    ]
    failed = f", {len(results.failed)} failed" if results.failed else ""
    return " · ".join(parts) + failed
