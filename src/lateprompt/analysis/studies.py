"""The studies of `lateprompt analyze`: from settings to results, run by run, each kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.analysis.folder import AnalysisFolder
from lateprompt.analysis.influence import gradient_facts, influence_facts
from lateprompt.analysis.information import States, frozen_states, prompted_states, usable_information
from lateprompt.analysis.settings import StudySettings
from lateprompt.analysis.training import fill_all, layers_of, num_layers, prepared, rows_of
from lateprompt.methods import parse_method
from lateprompt.predictors.kinds import adapter_kind_of
from lateprompt.runs.data import DEV, TRAIN, Rows, fingerprint
from lateprompt.runs.pipeline import Pipeline
from lateprompt.training.metrics import primary_metric
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError

LAYERS, INFLUENCE, INFORMATION = "layers", "influence", "information"
FROZEN, PROMPTED = "frozen", "prompted"


def study_layers(settings: StudySettings, output: str | Path) -> AnalysisFolder:
    """Train each method at each prompt layer from each seed; scores and training times by layer.

    Results that are in the folder already are not made again, so that an interrupted study goes on.

    Args:
        settings: what is analysed; the folder may get further methods, layers and seeds later.
        output: the folder.

    Raises:
        LatePromptError: settings or data that cannot be, or a folder of something else.
    """
    return _train_all(settings, output, LAYERS, lambda pipeline, seed: _fit(pipeline), labelled=False)


def study_influence(settings: StudySettings, output: str | Path) -> AnalysisFolder:
    """Measure by prompt layer the gradient that reaches the prompt, and how far the trained prompt moves the output.

    Gradients and influence are those of the dev rows. Arguments and errors are those of `study_layers`.
    """
    for method in settings.methods:
        if parse_method(method)[0].method.kind != "prompt":
            raise LatePromptError(f"method {method!r} has no prompt whose influence could be measured; choose npg")

    def measure(pipeline: Pipeline, seed: int) -> dict[str, Any]:
        readout, rows = pipeline.adapted.readout, pipeline.batches[DEV]
        size = pipeline.recipe.eval_batch_size
        before = gradient_facts(readout, rows, batch_size=size)
        found = _fit(pipeline)
        return {
            **found,
            "distance": pipeline.adapted.layer.num_layers - int(pipeline.tuned.settings.prompt_layer),
            "gradient": {"initial": before, "trained": gradient_facts(readout, rows, batch_size=size)},
            **influence_facts(readout, rows, seed=seed, batch_size=size),
        }

    return _train_all(settings, output, INFLUENCE, measure, labelled=True)


def _train_all(
    settings: StudySettings,
    output: str | Path,
    kind: str,
    measure: Callable[[Pipeline, int], dict[str, Any]],
    *,
    labelled: bool,
) -> AnalysisFolder:
    """Measure a run for each method, layer and seed that the folder does not have."""
    settings.check()
    layers = layers_of(settings)
    folder = AnalysisFolder(output, kind, settings.asked(), settings.inputs())
    todo = [
        (seed, layer, method)
        for seed in settings.seeds
        for layer in layers
        for method in settings.methods
        if not folder.has(method=method, layer=layer, seed=seed)
    ]
    with Bar("runs", len(todo), quiet=settings.quiet) as bar:
        for seed, rows, runs in _by_seed(settings, folder, todo, labelled=labelled):
            filled = fill_all(settings, rows, sorted({layer for layer, _ in runs}), seed)
            for layer, method in runs:
                pipeline = prepared(settings, rows, method, layer, seed)
                depth = pipeline.adapted.layer.num_layers
                facts = {"method": method, "layer": layer, "seed": seed, "num_layers": depth}
                filled += pipeline.fill_seconds
                own = {**facts, **measure(pipeline, seed), "fill_seconds": filled, **_rows_facts(rows)}
                folder.add([own])
                filled = 0.0  # the states are those of all layers: the first run of a seed has paid for them
                bar.advance()
    return folder


def _by_seed(
    settings: StudySettings, folder: AnalysisFolder, todo: list[tuple[int, int, str]], *, labelled: bool
) -> Iterator[tuple[int, Rows, list[tuple[int, str]]]]:
    """The rows of each seed with something to do, and what it is."""
    for seed in dict.fromkeys(seed for seed, _, _ in todo):
        rows = rows_of(settings, seed, labelled=labelled)
        _check_same_rows(folder, rows, seed)
        yield seed, rows, [(layer, method) for own, layer, method in todo if own == seed]


def _check_same_rows(folder: AnalysisFolder, rows: Rows, seed: int) -> None:
    for found in folder.find(seed=seed):
        if found.get("rows_sha256") != _rows_facts(rows)["rows_sha256"]:
            raise LatePromptError(
                f"output {str(folder.path)!r} has results of seed {seed} on other rows: the files have changed since; "
                "give another folder"
            )


def _rows_facts(rows: Rows) -> dict[str, Any]:
    parts = {name: fingerprint(part)["sha256"][:16] for name, part in (("train", rows.train), ("dev", rows.dev))}
    return {
        "task": rows.task.name,
        "train_rows": len(rows.train),
        "dev_rows": len(rows.dev),
        "rows_sha256": parts,
    }


def _fit(pipeline: Pipeline) -> dict[str, Any]:
    """Train it; its scores and costs."""
    pipeline.fit()
    found = pipeline.evaluate()
    metric = primary_metric(pipeline.tuned.task.metrics)
    tests = [values[metric] for values in found["test"].values() if metric in values]
    return {
        "metric": metric,
        "dev": found[metric],
        "test": float(np.mean(tests)) if tests else None,
        "train_seconds": found["train_seconds"],
        "steps": found["steps"],
        "trainable_parameters": found["trainable_parameters"],
    }


# -- information -----------------------------------------------------------------------------------------------------


def study_information(settings: StudySettings, output: str | Path, *, frozen_only: bool = False) -> AnalysisFolder:
    """Measure what the states of each layer say about the label: frozen ones, and those under trained prompts.

    The probes are fitted on the training rows and measured on the dev rows.

    Args:
        settings: what is analysed; prompts are trained at its layers by its methods, where no layers are named in the
            middle of the model.
        output: the folder.
        frozen_only: train no prompts.

    Raises:
        LatePromptError: settings or data that cannot be, or a folder of something else.
    """
    settings.check()
    layers = layers_of(settings) if settings.layers else [max(1, num_layers(settings.model.model) // 2)]
    folder = AnalysisFolder(output, INFORMATION, settings.asked(), settings.inputs())
    todo: list[tuple[int, int, str]] = []
    for seed in settings.seeds:
        if not folder.has(states=FROZEN, seed=seed):
            todo.append((seed, 0, FROZEN))
        for layer in () if frozen_only else layers:
            for method in settings.methods:
                _check_has_prompt(method)
                if not folder.has(states=PROMPTED, seed=seed, prompt_layer=layer, method=method):
                    todo.append((seed, layer, method))
    with Bar("runs", len(todo), quiet=settings.quiet) as bar:
        for seed, rows, runs in _by_seed(settings, folder, todo, labelled=True):
            for layer, method in runs:
                if method == FROZEN:
                    found = _frozen(settings, rows, layers[0], seed)
                else:
                    found = _prompted(settings, rows, method, layer, seed)
                folder.add([{**own, "seed": seed, **_rows_facts(rows)} for own in found])
                bar.advance()
    return folder


def _check_has_prompt(method: str) -> None:
    if parse_method(method)[0].method.kind != "prompt":
        raise LatePromptError(f"method {method!r} has no prompt; choose npg, or give --frozen-only")


def _frozen(settings: StudySettings, rows: Rows, layer: int, seed: int) -> list[dict[str, Any]]:
    """Information in the states of layers 0 to L of the frozen model."""
    tuned = adapter_kind_of(rows.task).build(settings.of(settings.methods[0], layer), rows.task, seed=seed)
    parts = [tuned.batches(part, any_label=name == DEV) for name, part in ((TRAIN, rows.train), (DEV, rows.dev))]
    size = settings.recipe.eval_batch_size
    train, heldout = (frozen_states(tuned.readout, part, batch_size=size) for part in parts)
    facts = {"states": FROZEN, "method": None, "prompt_layer": None, "num_layers": tuned.layer.num_layers}
    return _measured(facts, train, heldout, parts[0].labels, parts[1].labels, seed)


def _prompted(settings: StudySettings, rows: Rows, method: str, layer: int, seed: int) -> list[dict[str, Any]]:
    """Information in the states above a trained prompt."""
    pipeline = prepared(settings, rows, method, layer, seed)
    scored = _fit(pipeline)
    readout, size = pipeline.adapted.readout, pipeline.recipe.eval_batch_size
    # A short training has not reached all rows, and only those that it does have states by now.
    wanted = [(part, np.arange(len(part))) for part in (pipeline.batches[TRAIN], pipeline.batches[DEV])]
    parts, _ = pipeline.tuned.cached(wanted, settings.states, quiet=settings.quiet)
    train, heldout = (prompted_states(readout, part, batch_size=size) for part in parts)
    facts = {
        "states": PROMPTED,
        "method": method,
        "prompt_layer": layer,
        "num_layers": pipeline.adapted.layer.num_layers,
        "tuned_score": scored["dev"],
    }
    return _measured(facts, train, heldout, parts[0].labels, parts[1].labels, seed)


def _measured(
    facts: dict[str, Any], train: States, heldout: States, labels: np.ndarray, heldout_labels: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    known = heldout_labels >= 0
    rows = []
    for pooling, by_layer in train.items():
        for layer, features in by_layer.items():
            found = usable_information(
                features, labels, heldout[pooling][layer][known], heldout_labels[known], seed=seed
            )
            low, high = found.interval
            rows.append({**facts, "pooling": pooling, "layer": layer, **asdict(found), "interval": [low, high]})
    return rows
