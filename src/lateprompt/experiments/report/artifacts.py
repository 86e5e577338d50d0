"""What a run leaves beside its row in the table of results: its history and its predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lateprompt.data.formats import read_table
from lateprompt.experiments.report.results import Record, name_of, number_of, score_of, text_of
from lateprompt.utils.errors import LatePromptError


def read_history(folder: Path | None, metric: str) -> pd.DataFrame | None:
    """The evaluations of a run as `step`, `seconds` and `dev`, by step; None where it left no history.

    Raises:
        LatePromptError: a line that does not fit.
    """
    column = f"dev_{metric}"

    def evaluation(line: Record) -> dict[str, Any]:
        line = {"step": None, "seconds": None, column: None} | dict(line)
        return {
            "step": number_of(line, "step"),
            "dev": score_of(line, column),
            "seconds": number_of(line, "seconds"),
        }

    found = _read(folder, "history.jsonl", evaluation)
    if found is None:
        return None
    found = found.astype(float).dropna(subset=["step", "dev"])  # other lines hold the training loss alone
    return None if found.empty else found.sort_values("step", kind="stable").drop_duplicates("step", keep="last")


def read_predictions(folder: Path | None) -> pd.DataFrame | None:
    """A run's predictions on its test rows as `text`, `text_pair`, `label`, `prediction` and its `probability`.

    Returns:
        None where it left none; an empty `text_pair` where there is none, NaN for a missing probability.

    Raises:
        LatePromptError: a line that does not fit.
    """

    def prediction(line: Record) -> dict[str, Any]:
        line = dict.fromkeys(("text", "text_pair", "label", "prediction", "probability")) | dict(line)
        return {
            **{name: name_of(line, name) for name in ("label", "prediction")},
            **{name: text_of(line, name) for name in ("text", "text_pair")},
            "probability": number_of(line, "probability"),
        }

    found = _read(folder, "predictions.jsonl", prediction)
    return None if found is None else found.astype({"probability": float})


def _read(folder: Path | None, name: str, read: Callable[[Record], dict[str, Any]]) -> pd.DataFrame | None:
    if folder is None or not (folder / name).is_file():
        return None
    file = folder / name
    table = read_table(file, None)
    # Results of other tools may hold half characters: shown with U+FFFD in their place.
    entries = ((number, getattr(entry, "source", None) or entry) for number, entry in table.entries)
    lines = []
    for number, line in replace(table, entries=entries).records:
        try:
            lines.append(read(line))
        except LatePromptError as error:
            raise LatePromptError(f"{file}, line {number}: {error}") from None
    return pd.DataFrame(lines, dtype=object) if lines else None
