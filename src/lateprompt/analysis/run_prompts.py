"""The instance dependence of a trained run's prompts: from a run folder to results and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.analysis.folder import AnalysisFolder
from lateprompt.analysis.information import frozen_states
from lateprompt.analysis.instances import nearest_rows, principal_plane, variance_by_class
from lateprompt.analysis.prompts import prompt_of_layer, prompts_of
from lateprompt.data import MultiLabelTask, Row, TextTask, read_rows
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.saved_run import read_run, read_task, section_of, settings_in
from lateprompt.run_folder.folder import reading
from lateprompt.runs.data import fingerprint, load_rows
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.errors import LatePromptError

INSTANCES = "instances"
PROMPTS = "prompts"


@dataclass(frozen=True)
class Plane:
    """Prompts in the plane of their two principal components.

    Args:
        places: (rows, 2).
        shares: (2,), of the variance along each axis.
        labels: each row's label.
    """

    places: np.ndarray
    shares: np.ndarray
    labels: list[str]


@dataclass(frozen=True)
class Example:
    """A text, and the training texts whose prompts are most like its own.

    Args:
        text: the text, with its pair if it has one.
        label: its label.
        neighbours: text, label and similarity of each, the most similar first.
    """

    text: str
    label: str
    neighbours: list[tuple[str, str, float]]


def study_instances(
    run: str | Path,
    output: str | Path,
    *,
    data: str | None = None,
    train: str | None = None,
    examples: int = 3,
    neighbours: int = 3,
    seed: int = 42,
    model: str | None = None,
    device: str | None = None,
) -> tuple[AnalysisFolder, Plane, list[Example]]:
    """Measure how much a run's prompts differ between instances and classes, beside the states they are made from.

    Args:
        run: folder of a trained run.
        output: folder for the results; results that are there are replaced.
        data: file of labelled rows to look at; None: the run's dev rows, or its training rows if it had none.
        train: file of rows to find neighbours in; None: the run's training rows.
        examples: rows whose neighbours are given.
        neighbours: how many of each.
        seed: of the choice of examples.
        model: where the base model is, if not where it was.
        device: where to run.

    Raises:
        LatePromptError: no run of a classifier with a late prompt, rows that cannot be read, or a folder of something
            else.
    """
    for name, number in (("examples", examples), ("neighbours", neighbours)):
        if number < 0:
            raise LatePromptError(f"{name} {number!r} cannot be; give a number from 0")
    inputs = [part for part in (data, train) if part is not None]
    folder = AnalysisFolder(output, INSTANCES, {}, inputs)
    with reading(run):
        saved = read_run(Path(run))
        recipe = section_of(saved, "recipe", Path(run))
        if isinstance(read_task(Path(run)), MultiLabelTask):
            raise LatePromptError(f"run {str(run)!r} gives a text several labels; give a run of one label a text")
        tuned = TextClassifier.load(run, model=model, device=device)
    if isinstance(tuned.task, TextTask):
        raise LatePromptError(f"run {str(run)!r} writes texts; give a run of a classifier")
    prompt_of_layer(tuned.layer)
    train_rows, rows = _rows(saved, Path(run), tuned, data, train)
    size = int(recipe.get("eval_batch_size") or RecipeSettings.eval_batch_size)
    batches, known = tuned.batches(rows), tuned.batches(train_rows)
    labels = batches.labels
    prompts = prompts_of(tuned.readout, batches, batch_size=size)
    others = prompts_of(tuned.readout, known, batch_size=size)
    p = int(tuned.settings.prompt_layer)
    states = {pooling: by[p] for pooling, by in frozen_states(tuned.readout, batches, batch_size=size).items()}
    places, shares = principal_plane(prompts)
    facts = {
        "method": tuned.settings.method,
        "layer": p,
        "num_layers": tuned.layer.num_layers,
        "num_prompt_tokens": prompts.shape[1],
        "task": tuned.task.name,
        "rows": len(rows),
        "train_rows": len(train_rows),
        "rows_sha256": fingerprint(rows)["sha256"][:16],
    }
    sources = {PROMPTS: prompts, **{f"trunk states, {pooling}": own for pooling, own in states.items()}}
    found = [{**facts, "vectors": name, **asdict(variance_by_class(own, labels))} for name, own in sources.items()]
    found[0]["plane_shares"] = shares.tolist()
    folder.results = []
    folder.add(found)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:examples]
    nearest, similar = nearest_rows(prompts[chosen], others, neighbours)
    shown = [
        Example(
            _text(rows[row]),
            str(rows[row].label),
            [
                (_text(train_rows[other]), str(train_rows[other].label), float(value))
                for other, value in zip(found_rows, values, strict=True)
            ],
        )
        for row, found_rows, values in zip(chosen.tolist(), nearest.tolist(), similar, strict=True)
    ]
    return folder, Plane(places, shares, [tuned.task.labels[label] for label in labels.tolist()]), shown


def _rows(
    saved: dict[str, Any], run: Path, tuned: TextClassifier, data: str | None, train: str | None
) -> tuple[list[Row], Sequence[Row]]:
    """The rows to find neighbours in, and those to look at; only labels that the task has."""
    given = {
        name: None if path is None else read_rows(path, task=tuned.task, any_label=True)
        for name, path in (("data", data), ("train", train))
    }
    rows, train_rows = given["data"], given["train"]
    if rows is None or train_rows is None:
        own = section_of(saved, "data", run)
        named = {field.name: own[field.name] for field in fields(DataSettings) if field.name in own}
        settings: DataSettings = settings_in({"data": named}, "data", DataSettings, run)
        recipe = section_of(saved, "recipe", run)
        try:
            theirs = load_rows(settings, int(recipe.get("seed", 42)), tuned.settings.readout)
        except LatePromptError as error:
            raise LatePromptError(f"the rows of run {str(run)!r}: {error}; or give --data and --train") from None
        train_rows = theirs.train if train_rows is None else train_rows
        rows = (theirs.dev or theirs.train) if rows is None else rows
    known = set(tuned.task.labels)
    rows, train_rows = ([row for row in part if row.label in known] for part in (rows, train_rows))
    if len(rows) < 2 or not train_rows:
        raise LatePromptError(
            f"{len(rows)} rows have a label of the task, {len(train_rows)} to compare with; give more"
        )
    return train_rows, rows


def _text(row: Row) -> str:
    return row.text if row.text_pair is None else f"{row.text} / {row.text_pair}"
