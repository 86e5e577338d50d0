"""A run that has finished: whether it is the one that is asked for, and what it gave."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data import AnyTask
from lateprompt.predictors.kinds import Tuned, load_run
from lateprompt.predictors.saved_run import asked_by, read_run, read_task, section_of
from lateprompt.run_folder.folder import METRICS_FILE
from lateprompt.runs.data import load_rows
from lateprompt.search.settings import asks_search
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.aliases import todays_settings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json


def finished_run(
    folder: Path, model: ModelSettings, data: DataSettings, recipe: RecipeSettings
) -> tuple[Tuned, dict[str, Any]]:
    """Load what a finished run of the same settings, rows and task has left: its model and its metrics.

    Raises:
        LatePromptError: it was another run.
    """
    if asks_search(model):
        model, recipe = _chosen(folder, model, recipe)
    check_same_settings(folder, model, data, recipe)
    rows = load_rows(data, recipe.seed, model.readout)
    check_same_rows(folder, rows.fingerprints())
    check_same_task(folder, rows.task)
    return load_run(folder, device=model.device), read_json(folder / METRICS_FILE, "metrics")


def _chosen(folder: Path, model: ModelSettings, recipe: RecipeSettings) -> tuple[ModelSettings, RecipeSettings]:
    """The settings with what a finished run's search has chosen for them.

    Raises:
        LatePromptError: the run had no search, or one that was asked for something else.
    """
    run = read_run(folder)
    search = section_of(run, "search", folder)
    asked = {"method": model.method, "prompt_layer": model.prompt_layer, "lr": recipe.lr}
    if search.get("asked") != asked:
        raise LatePromptError(
            f"{str(folder)!r} holds a finished run of another search, or of none; resume with the same settings, or "
            "use --overwrite without --resume"
        )
    model = replace(model, method=search["chosen_method"], prompt_layer=search["chosen_prompt_layer"])
    folds = section_of(run, "recipe", folder).get("folds") if recipe.folds is None else recipe.folds
    return model, replace(recipe, lr=search["chosen_lr"], folds=folds)


def check_same_settings(folder: Path, model: ModelSettings, data: Any, recipe: RecipeSettings) -> None:
    """Raise LatePromptError unless a finished run was made by these settings."""
    saved = read_run(folder)
    theirs = {
        key: value
        for part in ("model_settings", "data", "recipe")
        for key, value in section_of(saved, part, folder).items()
    }
    theirs = todays_settings(theirs)
    rows = read_json(folder / METRICS_FILE, "metrics").get("train_rows")
    if "recipe" not in theirs:  # of a version that knew but one
        recipe = replace(recipe, recipe="paper")
    # By its method: one that differs is named itself, and not the defaults that go with it.
    recipe = recipe.resolved(rows if isinstance(rows, int) else 0, str(theirs.get("method", model.method)))
    ours = {**asdict(model), **asdict(data), **asdict(recipe)}
    layers = saved.get("num_layers")
    if isinstance(layers, int) and layers > 1:
        ours["prompt_layer"] = resolve_prompt_layer(model.prompt_layer, layers)
    # What no result depends on, and what either side leaves to the model.
    left_open = {"device", "eval_batch_size"}
    left_open |= {name for name in ("readout", "head_pooling") if ours[name] in (None, "auto")}
    left_open |= {name for name in ("num_prompt_tokens",) if None in (ours[name], theirs.get(name))}
    changed = [
        name
        for name, value in ours.items()
        if name not in left_open and _resolved(value) != _resolved(theirs.get(name, value))
    ]
    if changed:
        raise LatePromptError(
            f"{str(folder)!r} holds a finished run with other settings ({', '.join(changed)}); resume with the same "
            "ones, or use --overwrite without --resume"
        )


def check_same_rows(folder: Path, fingerprints: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise LatePromptError unless a finished run was trained and measured on these rows."""
    theirs = section_of(read_run(folder), "data", folder).get("fingerprints")
    if not isinstance(theirs, dict):
        return  # an early version's
    known = {_place(name): value for name, value in theirs.items() if isinstance(value, dict)}
    changed = [
        f"{name!r} ({known[_place(name)].get('rows')} rows then, {ours['rows']} now)"
        for name, ours in fingerprints.items()
        if known.get(_place(name), ours) != ours
    ]
    if changed:
        raise LatePromptError(
            f"{str(folder)!r} holds a finished run on other rows: {', '.join(changed)} changed since; use --overwrite "
            "without --resume to train again"
        )


def check_same_task(folder: Path, task: AnyTask) -> None:
    """Raise LatePromptError unless a finished run was asked what this task asks: its file may have been edited."""
    theirs, ours = asked_by(read_task(folder)), asked_by(task)
    changed = [name for name, value in ours.items() if theirs.get(name) != value]
    if changed:
        raise LatePromptError(
            f"{str(folder)!r} holds a finished run of another task: {', '.join(changed)} of {task.name!r} changed "
            "since; use --overwrite without --resume to train again"
        )


def _place(name: str) -> str:
    """A set's name with its path as it is on the disk."""
    path, bracket, split = name.partition(" (")
    return f"{_resolved(path)}{bracket}{split}"


def _resolved(value: Any) -> Any:
    """A setting with paths, alone or in a list, as they are on the disk."""
    if isinstance(value, list):
        return [_resolved(part) for part in value]
    # Not Path's: it raises for a template that is longer than any path.
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value
