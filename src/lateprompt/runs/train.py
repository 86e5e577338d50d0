"""`train_run`: one training run, from data files to a run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.data import MultiLabelTask, TextTask
from lateprompt.methods import check_method, check_model_given
from lateprompt.predictors.kinds import Tuned
from lateprompt.predictors.kinds import kind_of as kind_of
from lateprompt.predictors.kinds import load_run as load_run
from lateprompt.run_folder.folder import RunFolder
from lateprompt.runs.data import DEV_ROWS as DEV_ROWS
from lateprompt.runs.data import Rows as Rows
from lateprompt.runs.data import check_sets as check_sets
from lateprompt.runs.data import fingerprint as fingerprint
from lateprompt.runs.data import load_rows as load_rows
from lateprompt.runs.data import resolve_task as resolve_task
from lateprompt.runs.environment import peak_memory_bytes as peak_memory_bytes
from lateprompt.runs.environment import reset_peak_memory as reset_peak_memory
from lateprompt.runs.environment import versions as versions
from lateprompt.runs.finished import finished_run
from lateprompt.runs.pipeline import Pipeline
from lateprompt.runs.saving import HISTORY_FILE as HISTORY_FILE
from lateprompt.runs.searching import find_settings
from lateprompt.runs.training_folder import TrainingFolder
from lateprompt.search.settings import SearchSettings, asks_search
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.class_weights import row_weights
from lateprompt.training.data_settings import DataSettings as DataSettings
from lateprompt.training.distributed import processes
from lateprompt.training.metrics import check_metrics
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

# What is imported under its own name, and `Trained`, is for those who import it from `lateprompt.run`, this module's
# name in earlier releases.
Trained = Pipeline


def check_run(model: ModelSettings, data: DataSettings, recipe: RecipeSettings, states: StatesSettings) -> None:
    """Raise LatePromptError for settings that cannot be, before anything is read."""
    model.check()
    if not asks_search(model):
        check_method(model.method, model.options)
        check_model_given(model.method, model.model)
    data.check()
    recipe.check()
    states.check(model.trunk_dropout)


def train_run(
    model: ModelSettings,
    data: DataSettings,
    recipe: RecipeSettings,
    output: str | Path | None,
    *,
    states: StatesSettings | None = None,
    search: SearchSettings | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
) -> tuple[Tuned, dict[str, Any]]:
    """Train a classifier or writer and leave its run folder at `output` (None: nowhere).

    Everything that can be wrong with settings and data is found before the folder is touched. The files of the new run
    take their places together, when all of them are there: until then an old one stays as it was.

    With `method` or `prompt_layer` auto, `search` says how long they are searched (docs/auto.md).

    Returns:
        The model with its best weights, and what went to `metrics.json`.

    Raises:
        LatePromptError: settings or data that cannot be, or a folder that may not be written to.
    """
    states, search = states or StatesSettings(), search or SearchSettings()
    check_run(model, data, recipe, states)
    search.check(model)
    if output is None:
        pipeline = train_model(model, data, recipe, states, search=search, quiet=quiet)
        return pipeline.tuned, pipeline.evaluate()
    folder = RunFolder(output)
    if resume:
        folder.settle()
        if folder.is_finished:  # nothing to go on with
            return finished_run(folder.path, model, data, recipe)
    inputs = [data.train, *data.dev, *data.test, *([data.task] if data.task else [])]
    with ExitStack() as held:
        guard = TrainingFolder(folder, held, inputs, overwrite=overwrite and not resume, resume=resume)
        with guard.training():
            pipeline = train_model(model, data, recipe, states, search=search, prepare=guard.begin, quiet=quiet)
        with guard.writing():
            measured = pipeline.evaluate()
            if processes().is_main:
                folder.replace(pipeline.write_files)
    return pipeline.tuned, measured


def train_model(
    model: ModelSettings,
    data: DataSettings,
    recipe: RecipeSettings,
    states: StatesSettings,
    *,
    search: SearchSettings | None = None,
    prepare: Callable[[], Path | None] = lambda: None,
    quiet: bool = True,
) -> Pipeline:
    """Train a classifier, or a writer where rows have targets: a pipeline of which `evaluate` and `save` are left.

    Args:
        model, data, recipe, states: the settings.
        search: how long method and prompt layer are searched, where they are auto.
        prepare: called once everything that can be wrong with them was found; gives the folder of checkpoints.
        quiet: no progress bar.

    Raises:
        LatePromptError: settings or data that cannot be.
    """
    rows = load_rows(data, recipe.seed, model.readout)
    check_metrics(rows.task.metrics)
    weights = class_row_weights(rows, recipe)
    source = {**asdict(data), "fingerprints": rows.fingerprints()}
    found = None
    if asks_search(model):
        begin = cache(prepare)  # the search's journal is kept where the winner's checkpoints will be
        settings = search or SearchSettings()
        found = find_settings(model, rows, recipe, states, settings, weights=weights, prepare=begin, quiet=quiet)
        model, recipe, prepare = found.model, found.recipe, begin
    pipeline = Pipeline(model, rows, recipe, states, weights, data=source, quiet=quiet, found=found)
    pipeline.build()
    pipeline.encode()
    pipeline.data |= check_sets(rows)
    pipeline.checkpoint = prepare()
    pipeline.cache_states()
    pipeline.free_weights()
    pipeline.fit()
    pipeline.cross_validate()
    pipeline.calibrate()
    return pipeline


def class_row_weights(rows: Rows, recipe: RecipeSettings) -> np.ndarray | None:
    """The training rows' weights by the recipe's class weights; LatePromptError for ones that cannot be."""
    if recipe.class_weight is None:
        return None
    if isinstance(rows.task, TextTask):
        raise LatePromptError(f"class_weight {recipe.class_weight!r} is for labels, but the rows have targets")
    if isinstance(rows.task, MultiLabelTask):
        raise LatePromptError(
            f"class_weight {recipe.class_weight!r} is for one label a row, but the rows have several; leave it out"
        )
    return row_weights(recipe.class_weight, [row.label or "" for row in rows.train], rows.task.labels)
