"""What a run leaves beside its row in the table of results: its history and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lateprompt.data.formats import read_table
from lateprompt.experiments.report.results import Run, name_of, number_of, score_of, text_of
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One line of a run's history: the dev metric after `step` steps and `seconds` of training."""

    step: float
    seconds: float | None
    dev: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One test row with the label that was predicted and its probability."""

    text: str
    text_pair: str | None
    label: str
    prediction: str
    probability: float | None


def read_history(run: Run) -> list[Evaluation] | None:
    """The evaluations of a run by step; None where it left no history.

    Raises:
        LatePromptError: a line that does not fit.
    """
    metric = f"dev_{run.metric}"
    evaluations = []
    for where, line in _lines(run, "history.jsonl") or ():
        try:
            step, dev = number_of({"step": None, **line}, "step"), score_of({metric: None, **line}, metric)
            seconds = number_of({"seconds": None, **line}, "seconds")
        except LatePromptError as error:
            raise LatePromptError(f"{where}: {error}") from None
        if step is not None and dev is not None:  # lines without an evaluation hold the training loss alone
            evaluations.append(Evaluation(step, seconds, dev))
    return sorted(evaluations, key=lambda evaluation: evaluation.step) or None


def read_predictions(run: Run) -> list[Prediction] | None:
    """The predictions of a run on its test rows; None where it left none.

    Raises:
        LatePromptError: a line that does not fit.
    """
    predictions = []
    for where, line in _lines(run, "predictions.jsonl") or ():
        try:
            row = {"text": None, "text_pair": None, "probability": None, **line}
            label, prediction = (name_of({name: None, **line}, name) for name in ("label", "prediction"))
            probability = number_of(row, "probability")
        except LatePromptError as error:
            raise LatePromptError(f"{where}: {error}") from None
        predictions.append(
            Prediction(text_of(row, "text"), text_of(row, "text_pair") or None, label, prediction, probability)
        )
    return predictions or None


def _lines(run: Run, name: str) -> list[tuple[str, Mapping[str, Any]]] | None:
    if run.folder is None or not (run.folder / name).is_file():
        return None
    file = run.folder / name
    table = read_table(file, None)
    # Results of other tools may hold half characters: shown with U+FFFD in their place.
    entries = ((number, getattr(entry, "source", None) or entry) for number, entry in table.entries)
    return [(f"{file}, line {number}", record) for number, record in replace(table, entries=entries).records]
