"""The rows of a run: read, checked and sampled as its data settings say, and the task that they answer."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lateprompt.data import (
    AnyTask,
    MultiLabelTask,
    Row,
    TextTask,
    default_task,
    few_shot,
    load_task,
    multi_label_task,
    plain_text_task,
    read_rows,
)
from lateprompt.data.columns import with_columns
from lateprompt.data.labels import BETWEEN_LABELS, spelled_words
from lateprompt.data.row_checks import (
    check_choosing_labels,
    shared_rows,
    unknown_labels,
    warn_gaps,
    warn_shared,
    warn_unknown,
    warn_untrained,
)
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.distributed import processes
from lateprompt.utils.errors import LatePromptError

TRAIN, DEV = "train", "dev"
"""The names of the rows to train on, and of those that choose the best weights."""
VALIDATION, TEST = "validation", "test"
"""The splits of further dev sets and of test sets."""
DEV_ROWS = 1000
"""Dev rows of a few-shot run without a dev file (the paper's)."""
MOST_CLASSES = 20
"""Different targets that may be classes."""


def resolve_task(data: DataSettings, rows: Sequence[Row], readout: str = "auto") -> AnyTask:
    """The named task, or a plain one: with the labels of the training rows, or for their targets."""
    if data.task is not None:
        if data.template is not None or data.label_words is not None:
            raise LatePromptError(
                f"task {data.task!r} has its own template and label words; leave out --template and --label-words"
            )
        return with_columns(load_task(data.task), data.columns)
    return with_columns(_plain_task(data, rows, readout), data.columns)


def _plain_task(data: DataSettings, rows: Sequence[Row], readout: str) -> AnyTask:
    pair = any(row.text_pair is not None for row in rows)
    if any(row.target is not None for row in rows):
        if data.label_words is not None:
            raise LatePromptError(
                f"label_words {data.label_words!r}: the rows have targets, not labels; leave them out"
            )
        _warn_of_classes(rows)
        return plain_text_task(pair=pair, template=data.template)
    if any(row.labels is not None for row in rows):
        return _plain_multi_label_task(data, rows, pair)
    labels = sorted({row.label for row in rows if row.label is not None})
    words = None if data.label_words is None else spelled_words(data.label_words)
    if words is None:
        warn_gaps(rows, data.train)
        _warn_of_lists(labels, data)
    if words is not None and sorted(words) != labels:
        raise LatePromptError(
            f"label_words name the labels {sorted(words)}, the training rows have {labels}; name exactly these"
        )
    kinds = {"masked_lm": "template", "causal_lm": "decoder_template"}
    template = {}
    if data.template is not None:
        kind = (
            "template"
            if "{mask}" in data.template
            else "decoder_template"
            if "{label}" in data.template
            else "head_template"
        )
        template = {kinds.get(readout, kind): data.template}
    return default_task(
        labels,
        pair=pair,
        label_words=None if words is None else [words[label] for label in labels],
        **template,
    )


def _plain_multi_label_task(data: DataSettings, rows: Sequence[Row], pair: bool) -> AnyTask:
    if data.label_words is not None:
        raise LatePromptError(
            f"label_words {data.label_words!r}: the rows have several labels each, which a trained head reads; leave "
            "them out"
        )
    labels = sorted({label for row in rows for label in row.labels or ()})
    if len(labels) < 2:
        raise LatePromptError(
            f"{data.train}: its rows have {len(labels)} label{'' if len(labels) == 1 else 's'} in all "
            f"({', '.join(labels) or 'none'}); a multi-label task needs two: give a column with yes and no for one"
        )
    warn_gaps(rows, data.train)
    if data.labels_per_row == "auto" and all(len(row.labels or ()) == 1 for row in rows):
        warnings.warn(
            f"all {len(rows)} rows have exactly one label, but are taken for lists of labels, of which a text may have "
            "any number; if they are classes, give --labels-per-row one with --label-column",
            stacklevel=2,
        )
    return multi_label_task(labels, pair=pair, head_template=data.template)


def _warn_of_lists(labels: Sequence[str], data: DataSettings) -> None:
    """Warn where classes look like lists of labels."""
    listed = [label for label in labels if BETWEEN_LABELS in label]
    if listed and data.labels_per_row == "auto":
        warnings.warn(
            f"labels such as {listed[0][:40]!r} are taken for one class each; if {BETWEEN_LABELS} stands between "
            "labels, give --labels-per-row several",
            stacklevel=2,
        )


def _warn_of_classes(rows: Sequence[Row]) -> None:
    """Warn where texts to be written look like classes: many rows, few different and short targets."""
    targets = {row.target for row in rows if row.target is not None}
    if len(targets) <= MOST_CLASSES and len(rows) >= 5 * len(targets) and all(len(t.split()) <= 2 for t in targets):
        warnings.warn(
            f"the {len(rows)} rows have {len(targets)} different targets ({', '.join(sorted(targets)[:3])}, …), which "
            "are taken for texts to be written; if they are classes, give --label-column target",
            stacklevel=2,
        )


@dataclass
class Rows:
    """The rows of a run.

    Args:
        task: what is asked.
        train: what is trained on.
        dev: what chooses the best weights; empty without.
        more_dev: further dev sets by path.
        test: test sets by path.
    """

    task: AnyTask
    train: list[Row]
    dev: list[Row] = field(default_factory=list)
    more_dev: dict[str, list[Row]] = field(default_factory=dict)
    test: dict[str, list[Row]] = field(default_factory=dict)

    def sets(self) -> dict[str, list[Row]]:
        """All rows by the name of their set: train, dev, and those of `name_of`."""
        return {
            TRAIN: self.train,
            DEV: self.dev,
            **{self.name_of(path, VALIDATION): rows for path, rows in self.more_dev.items()},
            **{self.name_of(path, TEST): rows for path, rows in self.test.items()},
        }

    def name_of(self, path: str, split: str) -> str:
        """The name of a further dev set or a test set: its path, with the split where the path names two sets."""
        is_taken = path in (TRAIN, DEV) or (path in self.more_dev and path in self.test)
        return f"{path} ({split})" if is_taken else path

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Which rows they are, set by set."""
        return {name: fingerprint(rows) for name, rows in self.sets().items()}


def load_rows(data: DataSettings, seed: int, readout: str = "auto") -> Rows:
    """Read, check and sample what the settings name.

    Labels of dev and test rows may be ones that the task does not have: such rows count as wrong.

    Raises:
        LatePromptError: bad data; dev rows without any label of the task.
    """
    named = with_columns(load_task(data.task), data.columns) if data.task is not None else None
    train = read_rows(data.train, task=named, split="train", columns=data.columns)
    task = resolve_task(data, train, readout)
    known = named or (task if isinstance(task, TextTask | MultiLabelTask) else None)
    # By split too: one data set of the hub may be both.
    more_dev, test = (
        {path: read_rows(path, task=known, split=split, columns=data.columns, any_label=True) for path in paths}
        for paths, split in ((data.dev, VALIDATION), (data.test, TEST))
    )
    dev = more_dev.pop(data.dev[0]) if data.dev else []
    if dev:
        check_choosing_labels(dev, task, data.dev[0])
    if data.shots is not None:
        train, rest = few_shot(train, data.shots, seed, dev_size=data.dev_rows or DEV_ROWS)
        if processes().is_main:
            warn_untrained(train, task, data.train)
        dev = dev or rest
    elif data.dev_rows is not None:
        if data.dev_rows >= len(train):
            raise LatePromptError(
                f"dev_rows {data.dev_rows!r} leave none of the {len(train)} rows in {data.train!r} to train on"
            )
        train, dev = few_shot(train, len(train) - data.dev_rows, seed, dev_size=data.dev_rows)
    return Rows(task, train, dev, more_dev, test)


def check_sets(rows: Rows) -> dict[str, Any]:
    """Warn of rows that sets share, and of labels that the task does not have; what a run folder says about both."""
    sets = rows.sets()
    shared = shared_rows(sets)
    unknown = {name: unknown_labels(part, rows.task) for name, part in sets.items()}
    if processes().is_main:
        warn_shared(shared)
        for name, labels in unknown.items():
            warn_unknown(labels, len(sets[name]), name)
    return {"shared_rows": shared, "unknown_labels": {name: labels for name, labels in unknown.items() if labels}}


def fingerprint(rows: Sequence[Row]) -> dict[str, Any]:
    """What rows were used: their number and a SHA-256 of texts and answers in order."""
    digest = hashlib.sha256()
    for row in rows:
        answer: Any = row.label if row.target is None else row.target
        answer = answer if row.labels is None else sorted(row.labels)
        digest.update(json.dumps([row.text, row.text_pair, answer], ensure_ascii=False).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()}
