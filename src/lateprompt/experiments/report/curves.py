"""Convergence: a run's dev metric over steps and seconds, averaged over seeds."""

from __future__ import annotations

import pandas as pd

from lateprompt.experiments.report.aggregate import mean
from lateprompt.experiments.report.artifacts import read_history


def curves(runs: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], int]:
    """The curves of one task's runs, and how many runs left no history.

    A point is a step that all runs of the method evaluated at: a mean over fewer seeds late in the curve would jump
    where a run stopped early.

    Returns:
        Method to its curve by `step`: mean `dev` in percent, mean `seconds` (NaN if some are not known), `seeds`.
    """
    found, missing = {}, 0
    for method, part in runs.groupby("method", sort=False):
        histories = [read_history(run.folder, run.metric) for run in part.itertuples()]
        known = [history for history in histories if history is not None]
        missing += len(histories) - len(known)
        if known:
            points = pd.concat(known).groupby("step")
            curve = points.agg(mean).assign(seeds=points.size())
            curve["dev"] *= 100
            if (points["seconds"].count() < curve["seeds"]).any():
                curve["seconds"] = float("nan")
            found[str(method)] = curve[curve["seeds"] == len(known)]
    return {method: curve for method, curve in found.items() if len(curve)}, missing
