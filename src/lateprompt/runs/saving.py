"""The files of a run folder: the tuned model's own, and what its training measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lateprompt.predictors.kinds import Tuned
from lateprompt.run_folder.folder import METRICS_FILE
from lateprompt.runs.environment import versions
from lateprompt.runs.model_card import CARD_FILE, model_card
from lateprompt.utils.files import write_json, write_lines, write_text

HISTORY_FILE = "history.jsonl"


def write_run(
    place: Path,
    tuned: Tuned,
    *,
    recipe: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write all files of a run straight into a folder.

    Args:
        place: the folder.
        tuned: the trained classifier or writer.
        recipe: the recipe that it was trained by.
        history: one entry per evaluation.
        metrics: what goes to `metrics.json`.
        facts: what `run.json` says beside the model's settings, the recipe and the versions.
    """
    tuned.write_files(place, {"recipe": recipe, **facts, "versions": versions()})
    write_lines(place / HISTORY_FILE, history)
    write_text(place / CARD_FILE, model_card(tuned, metrics, recipe))
    write_json(place / METRICS_FILE, metrics)
