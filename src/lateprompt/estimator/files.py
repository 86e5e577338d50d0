"""What saving, loading and pickling an estimator writes and reads: a run folder, with the estimator's own facts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.data import label_name
from lateprompt.estimator.parameters import settings_of
from lateprompt.estimator.plain import classes_from_plain, classes_to_plain, from_plain, to_plain
from lateprompt.predictors.kinds import Classifier, load_classifier
from lateprompt.predictors.multi_label import MultiLabelClassifier
from lateprompt.predictors.saved_run import RUN_FILE, broken_run, read_run, section_of, settings_in
from lateprompt.run_folder.folder import METRICS_FILE, RunFolder, reading
from lateprompt.runs.saving import HISTORY_FILE, write_run
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.aliases import todays_settings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import as_json, read_json
from lateprompt.utils.inputs import check_file

_CLASSES = "classes"
_COLUMNS = "feature_names"
_INDICATOR = "indicator"
"""Whether several labels a row were given as a matrix."""
_FILES = "_files"
_DEVICE = "_device"


def save_estimator(
    fitted: Mapping[str, Any], parameters: Mapping[str, Any], folder: str | Path, *, overwrite: bool
) -> None:
    """Write the run folder of a fitted estimator.

    Args:
        fitted: its attributes that `fit` has set, by name.
        parameters: its parameters, by name.
        folder: the run folder.
        overwrite: whether it may replace a run.

    Raises:
        LatePromptError: a folder that is not empty, unless `overwrite`; then one that has what no run wrote; or
            parameters that JSON cannot hold.
    """
    run = RunFolder(folder)
    run.check(overwrite=overwrite)
    columns = fitted.get("feature_names_in_")
    facts = {
        "estimator": {name: to_plain(value) for name, value in parameters.items()},
        _CLASSES: classes_to_plain(fitted["classes_"]),
        _COLUMNS: None if columns is None else list(columns),
        **({_INDICATOR: fitted["indicator_"]} if "indicator_" in fitted else {}),
    }
    try:
        json.dumps(facts, default=as_json)
    except (TypeError, ValueError) as error:
        raise LatePromptError(f"this estimator cannot be saved: {error}; give plain values") from None

    def write(place: Path) -> None:
        tuned, recipe = fitted["classifier_"], fitted["recipe_"]
        write_run(place, tuned, recipe=recipe, history=fitted["history_"], metrics=fitted["metrics_"], facts=facts)

    with run.locked():
        run.settle(locked=True)
        run.check(overwrite=overwrite)
        run.replace(write)


def load_estimator(
    folder: str | Path,
    defaults: Mapping[str, Any],
    *,
    model: str | None,
    device: str | None,
    check_model: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and the fitted attributes of the estimator in a run folder, both by name.

    Args:
        folder: the run folder.
        defaults: the estimator's parameters, with what they are where the folder does not name them.
        model, device, check_model: as in `TunedModel.load`.

    Raises:
        LatePromptError: no run folder, or one that is broken.
    """
    with reading(folder):
        return _load(Path(folder), defaults, model, device, check_model)


def _load(
    folder: Path, defaults: Mapping[str, Any], model: str | None, device: str | None, check_model: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    classifier = load_classifier(folder, model=model, device=device, check_model=check_model)
    run, metrics = read_run(folder), folder / METRICS_FILE
    recipe = asdict(settings_in(run, "recipe", RecipeSettings, folder))
    parameters = {
        **defaults,
        **_saved_parameters(run, classifier, recipe, folder, defaults),
        "model": classifier.settings.model,
        "device": device,
    }
    try:
        for part in settings_of(parameters):
            part.check()
    except (LatePromptError, TypeError, ValueError) as error:
        raise broken_run(folder, "estimator", error) from None
    fitted = {
        "classes_": _saved_classes(run, classifier, folder),
        "recipe_": recipe,
        "n_features_in_": 2 if classifier.task.is_pair else 1,
        "metrics_": read_json(metrics, "metrics") if metrics.is_file() else {},
        "history_": _read_history(folder / HISTORY_FILE),
        "classifier_": classifier,
    }
    if isinstance(classifier, MultiLabelClassifier):
        fitted["indicator_"] = run.get(_INDICATOR) is True
    if run.get(_COLUMNS):
        fitted["feature_names_in_"] = np.array(run[_COLUMNS], dtype=object)
    return parameters, fitted


def _saved_parameters(
    run: Mapping[str, Any], classifier: Classifier, recipe: dict[str, Any], folder: Path, known: Collection[str]
) -> dict[str, Any]:
    saved = {name: from_plain(value) for name, value in section_of(run, "estimator", folder).items()}
    if not saved:  # a run of the command line
        saved = {**asdict(classifier.settings), **recipe, "random_state": recipe.get("seed", 42)}
        saved["generator"] = classifier.settings.method
    saved.setdefault("method", saved.get("generator", "npg"))  # which was its only name once
    return {name: value for name, value in todays_settings(saved, known).items() if name in known}


def _saved_classes(run: Mapping[str, Any], classifier: Classifier, folder: Path) -> np.ndarray:
    """The labels that `fit` has seen, or, after a run of the command line, the task's."""
    source = f"run file {str(folder / RUN_FILE)!r}"
    classes = classes_from_plain(run.get(_CLASSES), source)
    if classes is None:
        return np.array(sorted(classifier.task.labels))
    known = frozenset(classifier.task.labels)
    unknown = [label for label in classes if label_name(label) not in known]
    if unknown:
        raise LatePromptError(f"{source}: class {unknown[0]!r} is no label of its task; save it again")
    return classes


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


def pickled_state(state: dict[str, Any]) -> dict[str, Any]:
    """For pickle, joblib and copies: `state` with a fitted model as its run folder's files, the base model by name."""
    classifier = state.pop("classifier_", None)
    if classifier is not None:
        with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
            classifier.write_files(Path(name))
            state[_FILES] = {path.name: path.read_bytes() for path in Path(name).iterdir() if path.is_file()}
        state[_DEVICE] = classifier.settings.device  # the parameter may have another value by now
    return state


def unpickled_state(state: dict[str, Any], parameters: Iterable[str]) -> dict[str, Any]:
    """The estimator's attributes from what `pickled_state` gave, or an older version's; `parameters` are all names."""
    files, device = state.get(_FILES), state.get(_DEVICE, state.get("device"))
    known: dict[str, Any] = dict.fromkeys(parameters)
    known |= {"method": state.get("generator") or "npg", "recipe": "auto"}  # generator was its only name once
    known |= {"read_only": False, "calibrate": True}  # what an older version's pickle does not have
    given = {name: value for name, value in state.items() if name not in (_FILES, _DEVICE)}
    found = {**known, **todays_settings(given, known)}
    if files is not None:
        with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
            for file, content in files.items():
                (Path(name) / file).write_bytes(content)
            found["classifier_"] = load_classifier(name, device=device)
    return found
