"""What saving, loading and pickling an estimator writes and reads: a run folder, with the estimator's own facts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lateprompt.data import label_name
from lateprompt.estimator.plain import classes_from_plain, classes_to_plain, from_plain, to_plain
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.saved_run import RUN_FILE, broken_run, read_run, section_of, settings_in
from lateprompt.run_folder.folder import METRICS_FILE, RunFolder, reading
from lateprompt.runs.model_card import CARD_FILE, model_card
from lateprompt.runs.pipeline import HISTORY_FILE, versions
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.aliases import todays_settings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import as_json, read_json, write_json, write_lines, write_text
from lateprompt.utils.inputs import check_file

if TYPE_CHECKING:
    from lateprompt.estimator.classifier import LatePromptClassifier

_CLASSES = "classes"
_COLUMNS = "feature_names"
_FILES = "_files"
_DEVICE = "_device"


def save_estimator(estimator: LatePromptClassifier, folder: str | Path, *, overwrite: bool) -> None:
    """Write the run folder of a fitted estimator.

    Raises:
        LatePromptError: a folder that is not empty, unless `overwrite`; then one that has what no run wrote; or
            parameters that JSON cannot hold.
    """
    run = RunFolder(folder)
    run.check(overwrite=overwrite)
    columns = getattr(estimator, "feature_names_in_", None)
    facts = {
        "estimator": {name: to_plain(value) for name, value in estimator.get_params(deep=False).items()},
        _CLASSES: classes_to_plain(estimator.classes_),
        _COLUMNS: None if columns is None else list(columns),
        "recipe": estimator.recipe_,
        "versions": versions(),
    }
    try:
        json.dumps(facts, default=as_json)
    except (TypeError, ValueError) as error:
        raise LatePromptError(f"this estimator cannot be saved: {error}; give plain values") from None

    def write(place: Path) -> None:
        estimator.classifier_.write_files(place, facts)
        write_lines(place / HISTORY_FILE, estimator.history_)
        write_text(place / CARD_FILE, model_card(estimator.classifier_, estimator.metrics_, estimator.recipe_))
        write_json(place / METRICS_FILE, estimator.metrics_)

    with run.locked():
        run.settle(locked=True)
        run.check(overwrite=overwrite)
        run.replace(write)


def load_estimator(
    kind: type[LatePromptClassifier],
    folder: str | Path,
    *,
    model: str | None,
    device: str | None,
    check_model: bool = True,
) -> LatePromptClassifier:
    """The estimator of a run folder.

    Raises:
        LatePromptError: no run folder, or one that is broken.
    """
    with reading(folder):
        return _load(kind, Path(folder), model, device, check_model)


def _load(
    kind: type[LatePromptClassifier], folder: Path, model: str | None, device: str | None, check_model: bool
) -> LatePromptClassifier:
    classifier = TextClassifier.load(folder, model=model, device=device, check_model=check_model)
    run, source = read_run(folder), f"run file {str(folder / RUN_FILE)!r}"
    recipe = asdict(settings_in(run, "recipe", RecipeSettings, folder))
    saved = {name: from_plain(value) for name, value in section_of(run, "estimator", folder).items()}
    if not saved:  # a run of the command line
        saved = {**asdict(classifier.settings), **recipe, "random_state": recipe.get("seed", 42)}
        saved["generator"] = classifier.settings.method
    saved.setdefault("method", saved.get("generator", "npg"))  # which was its only name once
    known = kind._get_param_names()
    estimator = kind(**{name: value for name, value in todays_settings(saved, known).items() if name in known})
    estimator.model, estimator.device = classifier.settings.model, device
    try:
        for part in estimator._settings():
            part.check()
    except (LatePromptError, TypeError, ValueError) as error:
        raise broken_run(folder, "estimator", error) from None
    classes = classes_from_plain(run.get(_CLASSES), source)
    estimator.classes_ = np.array(sorted(classifier.task.labels)) if classes is None else classes
    unknown = [label for label in estimator.classes_ if label_name(label) not in classifier.task.labels]
    if unknown:
        raise LatePromptError(f"{source}: class {unknown[0]!r} is no label of its task; save it again")
    estimator.recipe_ = recipe
    estimator.n_features_in_ = 2 if classifier.task.is_pair else 1
    if run.get(_COLUMNS):
        estimator.feature_names_in_ = np.array(run[_COLUMNS], dtype=object)
    metrics = folder / METRICS_FILE
    estimator.metrics_ = read_json(metrics, "metrics") if metrics.is_file() else {}
    estimator.history_ = _read_history(folder / HISTORY_FILE)
    estimator.classifier_ = classifier
    return estimator


def _read_history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    check_file(path, "history")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise LatePromptError(f"history {str(path)!r} is broken: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise LatePromptError(f"history {str(path)!r} is broken: each of its lines must be a JSON object")
    return rows


def pickled_state(estimator: LatePromptClassifier, state: dict[str, Any]) -> dict[str, Any]:
    """For pickle, joblib and copies: `state` with a fitted model as its run folder's files, the base model by name."""
    classifier = state.pop("classifier_", None)
    if classifier is not None:
        with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
            classifier.write_files(Path(name))
            state[_FILES] = {path.name: path.read_bytes() for path in Path(name).iterdir() if path.is_file()}
        state[_DEVICE] = classifier.settings.device  # the parameter may have another value by now
    return state


def unpickled_state(estimator: LatePromptClassifier, state: dict[str, Any]) -> dict[str, Any]:
    """The estimator's attributes from what `pickled_state` gave, or an older version's."""
    files, device = state.get(_FILES), state.get(_DEVICE, state.get("device"))
    known: dict[str, Any] = dict.fromkeys(estimator._get_param_names())
    known |= {"method": state.get("generator") or "npg", "recipe": "auto"}  # generator was its only name once
    given = {name: value for name, value in state.items() if name not in (_FILES, _DEVICE)}
    found = {**known, **todays_settings(given, known)}
    if files is not None:
        with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
            for file, content in files.items():
                (Path(name) / file).write_bytes(content)
            found["classifier_"] = TextClassifier.load(name, device=device)
    return found
