"""Settings by dev score: every method tries the same number of combinations, on the same tasks and seeds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from lateprompt.experiments.compare.plan import MethodEntry, Plan, RunSpec
from lateprompt.utils.errors import LatePromptError

Choice = dict[str, Any]


def choices_of(plan: Plan, entry: MethodEntry) -> list[Choice]:
    """The combinations that a method tries, drawn without replacement by a fixed seed; one empty one without a grid."""
    assert plan.search is not None
    grid = {**plan.search.grid.get("default", {}), **plan.search.grid.get(entry.name, {})}
    options = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    random.Random(0).shuffle(options)
    return options[: plan.search.tries]


Pair = tuple[str, str]
"""Names of a model and a method."""


def search_runs(plan: Plan) -> list[tuple[Pair, int, RunSpec]]:
    """The runs of the search: model and method, number of the choice, run. None scores test rows."""
    search = plan.search
    if search is None:
        return []
    tasks = [task for task in plan.tasks if search.tasks is None or Path(task.task).stem in search.tasks]
    seeds = search.seeds or plan.seeds[:1]
    shots = plan.shots[0] if search.shots is None else search.shots
    return [
        ((model.name, entry.name), number, plan.run(model, entry.changed(choice), task, shots, seed, test=False))
        for model in plan.models
        for entry in plan.methods
        for number, choice in enumerate(choices_of(plan, entry))
        for task in tasks
        for seed in seeds
    ]


def choose(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[Pair, Choice], list[dict[str, Any]]]:
    """The best choice of each method on each model by mean dev score, and a table of all tries.

    Args:
        plan: the plan.
        results: the runs' results by key.

    Raises:
        LatePromptError: a method none of whose choices has finished on all tasks.
    """
    scores: dict[tuple[Pair, int], list[float | None]] = {}
    for pair, number, spec in search_runs(plan):
        scores.setdefault((pair, number), []).append(results.get(spec.key, {}).get("dev"))
    chosen: dict[Pair, Choice] = {}
    table = []
    for model, entry in itertools.product(plan.models, plan.methods):
        pair = (model.name, entry.name)
        best: float | None = None
        for number, choice in enumerate(choices_of(plan, entry)):
            values = scores[pair, number]
            whole = [value for value in values if value is not None]
            score = mean(whole) if len(whole) == len(values) else None
            table.append({"model": model.name, "method": entry.name, "choice": choice, "dev": score})
            if score is not None and (best is None or score > best):
                best, chosen[pair] = score, choice
        if best is None:
            raise LatePromptError(
                f"no choice of method {entry.name!r} finished its search on {model.name!r}; see the failed runs in "
                "worker.log, and --retry-failed"
            )
    return chosen, table
