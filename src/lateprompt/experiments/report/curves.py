"""Convergence: a run's dev metric over steps and seconds, averaged over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lateprompt.experiments.report.artifacts import Evaluation, read_history
from lateprompt.experiments.report.results import Run


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's dev metric on one task, mean over seeds.

    Args:
        method: its name.
        seeds: runs with a history.
        by_step: pairs of step and score in percent.
        by_second: pairs of mean seconds and score in percent; empty if a history has no times.
    """

    method: str
    seeds: int
    by_step: Sequence[tuple[float, float]]
    by_second: Sequence[tuple[float, float]]


def curves(runs: Sequence[Run]) -> tuple[list[Curve], int]:
    """The curves of one task's runs, and how many runs left no history.

    A point is a step that all runs of the method evaluated at: a mean over fewer seeds late in the curve would jump
    where a run stopped early.
    """
    found, missing = [], 0
    for method in dict.fromkeys(run.method for run in runs):
        histories = [read_history(run) for run in runs if run.method == method]
        known = [history for history in histories if history]
        missing += len(histories) - len(known)
        curve = _mean(method, known)
        if curve is not None:
            found.append(curve)
    return found, missing


def _mean(method: str, histories: Sequence[Sequence[Evaluation]]) -> Curve | None:
    by_step = [{evaluation.step: evaluation for evaluation in history} for history in histories]
    steps = sorted(set.intersection(*(set(history) for history in by_step))) if by_step else []
    if not steps:
        return None
    devs = {step: 100 * statistics.fmean(history[step].dev for history in by_step) for step in steps}
    seconds = {step: [s for history in by_step if (s := history[step].seconds) is not None] for step in steps}
    timed = all(len(values) == len(by_step) for values in seconds.values())
    by_second = [(statistics.fmean(seconds[step]), devs[step]) for step in steps] if timed else []
    return Curve(method, len(by_step), list(devs.items()), sorted(by_second))
