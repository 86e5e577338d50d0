"""The sections about single rows and runs: errors, failed runs, provenance."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd

import lateprompt
from lateprompt.experiments.report.aggregate import MainTable, groups, shots_key, shots_name
from lateprompt.experiments.report.blocks import Block, DataTable, Note, folds
from lateprompt.experiments.report.errors import errors
from lateprompt.experiments.report.results import Results
from lateprompt.experiments.report.tables import DASH

LONGEST = 400
"""Characters of a text that are shown."""


def cut(text: str) -> str:
    """A text without what goes beyond `LONGEST`."""
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + "…"


def errors_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Confusion matrix and most confident errors of each task's best method."""
    items: list[tuple[str, list[Block]]] = []
    for model, shots, runs in groups(results.done):
        found = {str(task): errors(str(task), part) for task, part in runs.groupby("task", sort=False)}
        blocks: list[Block] = [task_errors for task_errors in found.values() if task_errors is not None]
        missing = [task for task, task_errors in found.items() if task_errors is None]
        if missing:
            blocks.append(Note(f"The best method's runs left no predictions.jsonl for {', '.join(missing)}."))
        items.append((f"{model}, {shots_name(shots)}", blocks))
    return folds(items) if items else [Note("No run is done.")]


def failures_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Runs that failed, with their errors."""
    failed, runs = results.failed, len(results.runs)
    if failed.empty:
        return [Note(f"None: all {runs} runs are done.")]
    rows = [
        (run.method, run.task, str(run.shots), str(run.seed), run.model, cut(run.error) or "no message")
        for run in failed.itertuples()
    ]
    headers = ("Method", "Task", "Shots", "Seed", "Model", "Error")
    return [DataTable(f"{len(failed)} of {runs} runs failed", headers, rows, "failures")]


def provenance_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Where the figures come from, and the settings of each method."""
    runs, done = results.runs, results.done
    digest = hashlib.sha256(results.path.read_bytes()).hexdigest()
    facts = [
        ("Runs", f"{len(done)} done, {len(results.failed)} failed"),
        ("Models", ", ".join(runs["model"].unique())),
        ("Tasks", ", ".join(runs["task"].unique())),
        ("Training rows", ", ".join(map(str, sorted(runs["shots"].unique(), key=shots_key)))),
        ("Seeds", ", ".join(map(str, sorted(runs["seed"].unique())))),
        ("Steps", _range(done["steps"].dropna())),
        ("Training time", _time(done["train_seconds"])),
        ("Time to fill trunk states", _time(done["trunk_fill_seconds"])),
        ("Table of results", f"{results.path.name}, SHA-256 {digest[:16]}…"),
        ("Made with", f"lateprompt {_version()}"),
    ]
    blocks: list[Block] = [DataTable("Where the figures come from", ("", ""), facts)]
    common, own = _settings(runs)
    if common:
        blocks.append(DataTable("Settings that all runs share", ("Setting", "Value"), common))
    if own:
        caption = "Settings per method (number of runs, where they differ)"
        blocks.append(DataTable(caption, ("Method", "Setting", "Value"), own))
    return blocks


def _version() -> str:
    try:
        return version(lateprompt.__name__)
    except PackageNotFoundError:  # run from its sources
        return "from source"


def _range(values: pd.Series) -> str:
    return " to ".join(f"{value:,.0f}" for value in sorted({values.min(), values.max()})) if len(values) else DASH


def _time(seconds: pd.Series) -> str:
    total = seconds.sum(min_count=1)
    if pd.isna(total):
        return DASH
    return f"{total / 3600:.1f} h in all" if total >= 3600 else f"{total / 60:.1f} min in all"


def _settings(runs: pd.DataFrame) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Settings that have one value in all runs, and the others by method."""
    values = pd.DataFrame([{name: _value(value) for name, value in run.items()} for run in runs["settings"]])
    shared = [name for name in values if values[name].notna().all() and values[name].nunique() == 1]
    common = [(str(name), values[name].iloc[0]) for name in shared]
    own = [
        (str(method), str(name), _counted(of_method[name]))
        for method, of_method in values.drop(columns=shared).groupby(runs["method"].to_numpy(), sort=False)
        for name in of_method.dropna(axis=1, how="all")
    ]
    return common, own


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _counted(values: pd.Series) -> str:
    counts = Counter(values.dropna())
    if list(counts.values()) == [len(values)]:
        return str(values.iloc[0])
    shown = [f"{value} ({count})" for value, count in counts.most_common(6)]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")
