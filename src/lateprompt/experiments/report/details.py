"""The sections of the page about single rows and runs: errors, failed runs, provenance."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import lateprompt
from lateprompt.experiments.report.aggregate import MainTable, groups, shots_key, shots_name
from lateprompt.experiments.report.elements import data_table, folds, note, scrolling
from lateprompt.experiments.report.errors import Errors, errors
from lateprompt.experiments.report.results import Results, Run
from lateprompt.experiments.report.svg import escape
from lateprompt.experiments.report.tables import DASH

MOST_LABELS = 12
"""Labels up to which a confusion matrix is drawn; above, the most frequent confusions are listed."""
LONGEST = 400
"""Characters of a text that are shown."""


def errors_section(results: Results, tables: Sequence[MainTable], numbers: Mapping[str, int]) -> str:
    """Section 6: confusion matrix and most confident errors of each task's best method."""
    items = []
    for (model, shots), runs in groups(results.done).items():
        parts, missing = [], []
        for task in dict.fromkeys(run.task for run in runs):
            found = errors(task, [run for run in runs if run.task == task])
            if found is None:
                missing.append(task)
            else:
                parts.append(_task_errors(found))
        if missing:
            parts.append(note(f"The best method's runs left no predictions.jsonl for {', '.join(missing)}."))
        items.append((f"{model}, {shots_name(shots)}", "".join(parts)))
    return folds(items) if items else note("No run is done.")


def _task_errors(found: Errors) -> str:
    seeds = f"{found.seeds} seed{'s' * (found.seeds != 1)}"
    said = f"best by dev: {found.method}; {found.wrong:,} of {found.total:,} predictions are wrong ({seeds})"
    matrix = _matrix(found) if len(found.labels) <= MOST_LABELS else _confusions(found)
    return (
        f'<section class="task"><h3>{escape(found.task)} <small>{escape(said)}</small></h3>'
        f'<div class="errors"><div>{matrix}</div><div>{_worst(found)}</div></div></section>'
    )


def _matrix(found: Errors) -> str:
    caption = f"{found.task}: confusion matrix"
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in found.labels)
    body = ""
    for label in found.labels:
        row = [found.counts.get((label, prediction), 0) for prediction in found.labels]
        total = sum(row)
        cells = ""
        for prediction, count in zip(found.labels, row, strict=True):
            share = count / total if total else 0.0
            kind = ' class="right"' if prediction == label else ""
            cells += f'<td{kind} style="--share:{100 * share:.0f}%">{count:,}<small>{100 * share:.0f}%</small></td>'
        body += f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'
    table = (
        f'<table class="matrix"><caption><span>{escape(caption)}<small>rows: label; columns: prediction; % of the row'
        f"</small></span></caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    return scrolling(caption, table)


def _confusions(found: Errors) -> str:
    wrong = [(count, pair) for pair, count in found.counts.items() if pair[0] != pair[1]]
    rows = [(*pair, f"{count:,}") for count, pair in sorted(wrong, key=lambda item: (-item[0], item[1]))[:MOST_LABELS]]
    caption = f"{found.task}: most frequent confusions of {len(found.labels)} labels"
    return data_table(caption, ("Label", "Predicted", "Rows"), rows)


def _worst(found: Errors) -> str:
    if not found.worst:
        return note("No wrong prediction.")
    items = ""
    for wrong in found.worst:
        row = wrong.row
        sure = DASH if row.probability is None else f"{row.probability:.2f}"
        texts = "".join(f'<q dir="auto">{escape(_cut(text))}</q>' for text in (row.text, row.text_pair) if text)
        seeds = f' <span class="seeds">{wrong.seeds} of {found.seeds} seeds</span>' if found.seeds > 1 else ""
        items += (
            f'<li><b title="probability of the prediction">{sure}</b><div>{texts}<small><span dir="auto">'
            f'{escape(row.prediction)}</span>, should be <span dir="auto">{escape(row.label)}</span>{seeds}</small>'
            "</div></li>"
        )
    return f'<h4>Most confident errors</h4><ol class="worst">{items}</ol>'


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + "…"


def failures_section(results: Results) -> str:
    """Section 7: runs that failed, with their errors."""
    rows = [
        (run.method, run.task, str(run.shots), str(run.seed), run.model, _cut(run.error) or "no message")
        for run in results.failed
    ]
    if not rows:
        return note(f"None: all {len(results.runs)} runs are done.")
    headers = ("Method", "Task", "Shots", "Seed", "Model", "Error")
    return data_table(f"{len(rows)} of {len(results.runs)} runs failed", headers, rows, kind="failures")


def provenance_section(results: Results) -> str:
    """Section 8: where the figures come from, and the settings of each method."""
    runs = results.runs
    digest = hashlib.sha256(results.path.read_bytes()).hexdigest()
    facts = [
        ("Runs", f"{len(results.done)} done, {len(results.failed)} failed"),
        ("Models", ", ".join(dict.fromkeys(run.model for run in runs))),
        ("Tasks", ", ".join(dict.fromkeys(run.task for run in runs))),
        ("Training rows", ", ".join(str(shots) for shots in sorted({run.shots for run in runs}, key=shots_key))),
        ("Seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        ("Steps", _range([run.steps for run in results.done])),
        ("Training time", _time([run.train_seconds for run in results.done])),
        ("Time to fill trunk states", _time([run.trunk_fill_seconds for run in results.done])),
        ("Table of results", f"{results.path.name}, SHA-256 {digest[:16]}…"),
        ("Made with", f"lateprompt {_version()}"),
    ]
    body = data_table("Where the figures come from", ("", ""), facts, kind="facts")
    common, own = _settings(runs)
    if common:
        body += data_table("Settings that all runs share", ("Setting", "Value"), common, kind="facts")
    if own:
        caption = "Settings per method (number of runs, where they differ)"
        body += data_table(caption, ("Method", "Setting", "Value"), own, kind="facts")
    return body


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(lateprompt.__name__)
    except PackageNotFoundError:  # run from its sources
        return "from source"


def _range(values: Sequence[float | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return DASH if not known else f"{known[0]:,.0f}" + (f" to {known[-1]:,.0f}" if len(known) > 1 else "")


def _time(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    total = sum(known)
    if not known:
        return DASH
    return f"{total / 3600:.1f} h in all" if total >= 3600 else f"{total / 60:.1f} min in all"


def _settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Settings that have one value in all runs, and the others by method."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    common, own = [], []
    for name in names:
        values = {_value(run.settings[name]) for run in runs if name in run.settings}
        if len(values) == 1 and all(name in run.settings for run in runs):
            common.append((name, values.pop()))
    shared = {name for name, _ in common}
    for method in dict.fromkeys(run.method for run in runs):
        of_method = [run for run in runs if run.method == method]
        for name in names:
            counts = Counter(_value(run.settings[name]) for run in of_method if name in run.settings)
            if name not in shared and counts:
                own.append((method, name, _counted(counts, len(of_method))))
    return common, own


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _counted(counts: Counter[str], runs: int) -> str:
    if list(counts.values()) == [runs]:
        return next(iter(counts))
    shown = [f"{value} ({count})" for value, count in counts.most_common(6)]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")
