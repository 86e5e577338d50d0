"""Prompts trained at many layers, from trunk states that one pass of the frozen model has left for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lateprompt.analysis.settings import StudySettings
from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data import MultiLabelTask, TextTask
from lateprompt.data.batches import Batches
from lateprompt.methods import parse_method
from lateprompt.predictors.kinds import adapter_kind_of
from lateprompt.predictors.loading import load_config
from lateprompt.runs.data import Rows, load_rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.fill import fill_layers
from lateprompt.state_cache.locking import CannotCache
from lateprompt.training.metrics import check_metrics
from lateprompt.utils.errors import LatePromptError


def num_layers(model: str) -> int:
    """L, the number of layers, as the model's configuration says."""
    return int(load_config(model).num_hidden_layers)  # every family has it, if need be as an alias


def layers_of(settings: StudySettings) -> list[int]:
    """Return the prompt layers of a study as numbers, each once and in order.

    Raises:
        LatePromptError: a layer out of range.
    """
    depth = num_layers(settings.model.model)
    if depth < 2:
        raise LatePromptError(f"model {settings.model.model!r} has {depth} layer, and no place for a late prompt")
    given = settings.layers or range(1, depth)
    return sorted({resolve_prompt_layer(layer, depth) for layer in given})


def rows_of(settings: StudySettings, seed: int, *, labelled: bool) -> Rows:
    """Load the rows of one seed.

    Raises:
        LatePromptError: bad data; a task whose answers are texts or several labels, where labels are needed.
    """
    rows = load_rows(settings.data, seed, settings.model.readout)
    check_metrics(rows.task.metrics)
    if labelled and isinstance(rows.task, TextTask):
        raise LatePromptError(
            f"task {rows.task.name!r} has texts for answers, and this analysis asks for information about labels; only "
            "analyze layers takes it"
        )
    if labelled and isinstance(rows.task, MultiLabelTask):
        raise LatePromptError(
            f"task {rows.task.name!r} has several labels a row, and this analysis asks for information about one; only "
            "analyze layers takes it"
        )
    return rows


def fill_all(settings: StudySettings, rows: Rows, layers: Sequence[int], seed: int) -> float:
    """Keep the trunk states of all layers in one pass of the frozen model; return the seconds it took.

    Nothing is done where states are off or would not fit: each run then does what it can.
    """
    folder = settings.states.folder
    if folder is None:
        return 0.0
    # What a read-only prompt reads holds what the others do.
    method = next((name for name in settings.methods if _reads_only(name)), settings.methods[0])
    model = settings.of(method, min(layers))
    tuned = adapter_kind_of(rows.task).build(model, rows.task, seed=seed)
    if not tuned.readout.reads_cached_states():
        return 0.0
    parts = [tuned.batches(part, any_label=name != "train") for name, part in rows.sets().items() if part]
    batches = Batches([example for part in parts for example in part.examples], parts[0].pad_token_id)
    width = int(tuned.layer.config.hidden_size) * (4 if settings.model.dtype == "float32" else 2)
    if int(batches.lengths.sum()) * width * len(layers) > settings.states.states_limit_gb * 1e9:
        return 0.0
    started = time.perf_counter()
    try:
        fill_layers(
            tuned.model, tuned.readout, batches, layers, folder, settings.states.states_dtype, quiet=settings.quiet
        )
    except CannotCache:  # each run says so itself
        return 0.0
    return time.perf_counter() - started


def prepared(settings: StudySettings, rows: Rows, method: str, layer: int, seed: int) -> Pipeline:
    """Build one run and give its rows their states; all that is left is to fit it."""
    pipeline = Pipeline(
        settings.of(method, layer), rows, replace(settings.recipe, seed=seed), settings.states, quiet=settings.quiet
    )
    pipeline.build()
    pipeline.encode()
    pipeline.cache_states()
    pipeline.free_weights()
    return pipeline


def _reads_only(method: str) -> bool:
    return any(part.method.read_only for part in parse_method(method))
