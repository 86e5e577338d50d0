"""`train_run`: one training run, from data files to a run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from lateprompt.runs.training_folder import TrainingFolder
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings as DataSettings
from lateprompt.training.distributed import processes
from lateprompt.training.metrics import check_metrics
from lateprompt.training.settings import ModelSettings, RecipeSettings

# What is imported under its own name, and `Trained`, is for those who import it from `lateprompt.run`, this module's
# name in earlier releases.
Trained = Pipeline


def check_run(model: ModelSettings, data: DataSettings, recipe: RecipeSettings, states: StatesSettings) -> None:
    """Raise LatePromptError for settings that cannot be, before anything is read."""
    model.check()
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
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
) -> tuple[Tuned, dict[str, Any]]:
    """Train a classifier or writer and leave its run folder at `output` (None: nowhere).

    Everything that can be wrong with settings and data is found before the folder is touched. The files of the new run
    take their places together, when all of them are there: until then an old one stays as it was.

    Returns:
        The model with its best weights, and what went to `metrics.json`.

    Raises:
        LatePromptError: settings or data that cannot be, or a folder that may not be written to.
    """
    states = states or StatesSettings()
    check_run(model, data, recipe, states)
    if output is None:
        pipeline = train_model(model, data, recipe, states, quiet=quiet)
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
            pipeline = train_model(model, data, recipe, states, prepare=guard.begin, quiet=quiet)
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
    prepare: Callable[[], Path | None] = lambda: None,
    quiet: bool = True,
) -> Pipeline:
    """Train a classifier, or a writer where rows have targets: a pipeline of which `evaluate` and `save` are left.

    Args:
        model, data, recipe, states: the settings.
        prepare: called once everything that can be wrong with them was found; gives the folder of checkpoints.
        quiet: no progress bar.

    Raises:
        LatePromptError: settings or data that cannot be.
    """
    rows = load_rows(data, recipe.seed, model.readout)
    check_metrics(rows.task.metrics)
    source = {**asdict(data), "fingerprints": rows.fingerprints()}
    pipeline = Pipeline(model, rows, recipe, states, data=source, quiet=quiet)
    pipeline.build()
    pipeline.encode()
    pipeline.data |= check_sets(rows)
    pipeline.checkpoint = prepare()
    pipeline.cache_states()
    pipeline.free_weights()
    pipeline.fit()
    pipeline.cross_validate()
    return pipeline
