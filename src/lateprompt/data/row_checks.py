"""Checks of a run's data sets: rows that several sets share, labels that the task does not have, missing labels."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from lateprompt.data import AnyTask, MultiLabelTask, Row, Task
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import some_of

GAPS = ("NA", "N/A", "NaN", "nan", "NaT", "<NA>", "NULL", "null", "None", "\\N")
"""What R, pandas, Python and SQL write as text for a missing value."""


def shared_rows(sets: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Count the rows of each set whose texts are also in an earlier set.

    Args:
        sets: rows by the name of their set: train, dev, and files of further ones.

    Returns:
        For each pair of sets that share any: `rows` (how many of the later set's), `of` (its name), `in` (the earlier
        set's name), `total` (all of the later set's).
    """
    texts = {name: [(row.text.strip(), (row.text_pair or "").strip()) for row in rows] for name, rows in sets.items()}
    found = []
    for first, second in combinations(texts, 2):
        known = set(texts[first])
        count = sum(text in known for text in texts[second])
        if count:
            found.append({"rows": count, "of": second, "in": first, "total": len(texts[second])})
    return found


def unknown_labels(rows: Sequence[Row], task: AnyTask) -> dict[str, int]:
    """Count the rows with labels that the task does not have, by label, most frequent first."""
    if not isinstance(task, Task):
        return {}
    found = Counter(row.label for row in rows if row.label is not None)
    found.update(label for row in rows for label in row.labels or ())
    known = set(task.labels)
    return {label: count for label, count in found.most_common() if label not in known}


def check_choosing_labels(rows: Sequence[Row], task: AnyTask, source: str) -> None:
    """Raise LatePromptError if the rows that choose the best weights have no label that the task has."""
    unknown = unknown_labels(rows, task)
    if isinstance(task, MultiLabelTask):
        known = set(task.labels)
        if rows and not any(label in known for row in rows for label in row.labels or ()):
            raise LatePromptError(
                f"{source}: none of its {len(rows)} rows has a label of the task{_found(unknown)}, so they cannot "
                f"choose the best weights; the labels are {some_of(task.labels)}"
            )
        return
    if isinstance(task, Task) and rows and sum(unknown.values()) == len(rows):
        raise LatePromptError(
            f"{source}: none of its {len(rows)} rows has a label of the task ({_some(unknown)}), so they cannot choose "
            f"the best weights; the labels are {some_of(task.labels)}"
        )


def warn_shared(shared: Sequence[Mapping[str, Any]]) -> None:
    """Warn of sets that share rows, on which scores are too good."""
    for pair in shared:
        warn(
            f"{pair['rows']:,} of {pair['total']:,} rows in {pair['of']!r} are in {pair['in']!r} too; what is measured "
            "on them says little about new texts"
        )


def warn_unknown(unknown: Mapping[str, int], total: int, source: str) -> None:
    """Warn of labels that the task does not have."""
    if unknown:
        warn(
            f"{sum(unknown.values()):,} of {total:,} rows in {source!r} have labels that the task does not have "
            f"({_some(unknown)}); they count as wrong"
        )


def warn_untrained(rows: Sequence[Row], task: AnyTask, source: str) -> None:
    """Warn of labels of the task that no row of a sample has."""
    if not isinstance(task, Task):
        return
    seen = {row.label for row in rows} | {label for row in rows for label in row.labels or ()}
    lacking = [label for label in task.labels if label not in seen]
    if lacking:
        warn(
            f"{len(lacking):,} of {len(task.labels):,} labels have no row among the {len(rows):,} drawn from "
            f"{source!r} ({some_of(lacking, most=5)}), and will hardly be predicted; draw more rows"
        )


def warn_gaps(rows: Sequence[Row], source: str) -> None:
    """Warn of labels such as `NA` or `NULL`, which may stand for a missing label but are taken for a class."""
    found = Counter(label for row in rows for label in (row.label, *(row.labels or ())) if label in GAPS)
    if found:
        warn(
            f"{sum(found.values()):,} of {len(rows):,} rows in {source!r} have a label that may stand for none "
            f"({_some(found)}), and is taken for a class; leave out these rows if it is none"
        )


def warn(message: str) -> None:
    """Write one line of warning to standard error."""
    print(f"lateprompt: warning: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _found(unknown: Mapping[str, int]) -> str:
    return f" ({_some(unknown)})" if unknown else ""


def _some(unknown: Mapping[str, int]) -> str:
    shown = [f"{label[:40]!r} {count:,}" for label, count in list(unknown.items())[:5]]
    return ", ".join([*shown, *(["…"] if len(unknown) > 5 else [])])
