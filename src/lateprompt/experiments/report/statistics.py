"""Ranks of methods over tasks and seeds, with the Friedman and the Wilcoxon signed-rank test (scipy computes both).

Source: Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, JMLR 7 (2006), sections 3.1.3 and
3.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lateprompt.experiments.report.aggregate import MainTable

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class MethodRank:
    """A method's place among the others.

    Args:
        method: its name.
        mean_rank: mean over blocks of its rank (1 is best; equal scores share the mean of their ranks).
        difference: mean over blocks of its score less the best method's; None for the best method.
        p: two-sided p of the Wilcoxon signed-rank test against the best; None if there is nothing to test.
        p_adjusted: the same after Holm's correction for the number of pairs.
    """

    method: str
    mean_rank: float
    difference: float | None
    p: float | None
    p_adjusted: float | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Methods from best to worst.

    Args:
        ranks: one per method that has a score.
        blocks: pairs of task and seed in which every method has a score.
        left_out: pairs in which some method has none.
        friedman_statistic: Friedman's chi-squared; None with fewer than 3 methods or 2 blocks.
        friedman_p: its p.
        notes: what the tests cannot say here, in sentences.
    """

    ranks: Sequence[MethodRank]
    blocks: int
    left_out: int
    friedman_statistic: float | None
    friedman_p: float | None
    notes: Sequence[str]


def rank_methods(table: MainTable) -> Ranking:
    """Rank the methods of a table in each block, a pair of task and seed."""
    scores = table.scores.dropna(how="all").dropna(axis="columns", how="all").sort_index(axis="columns")
    blocks = scores.dropna(axis="columns")
    methods, number = blocks.shape
    left_out = scores.shape[1] - number
    if methods < 2 or not number:
        note = "Ranks need two methods or more." if methods < 2 else "No task and seed has a score of every method."
        return Ranking([], number, left_out, None, None, [note])
    mean_ranks = blocks.rank(ascending=False).mean(axis="columns").sort_values(kind="stable")
    best, *others = mean_ranks.index
    raw = [wilcoxon(blocks.loc[other].to_numpy(), blocks.loc[best].to_numpy()) for other in others]
    ranks = [MethodRank(best, float(mean_ranks[best]), None, None, None)]
    for other, p, p_adjusted in zip(others, raw, holm(raw), strict=True):
        difference = float((blocks.loc[other] - blocks.loc[best]).mean())
        ranks.append(MethodRank(other, float(mean_ranks[other]), difference, p, p_adjusted))
    tasks = blocks.columns.unique("task")
    notes = _notes(methods, len(tasks), number, left_out)
    return Ranking(ranks, number, left_out, *friedman(blocks.to_numpy().T), notes)


def friedman(scores: np.ndarray) -> tuple[float | None, float | None]:
    """Friedman's chi-squared and its p for scores `(blocks, methods)`; None where they are not defined."""
    if scores.shape[0] < 2 or scores.shape[1] < 3 or (scores == scores[:, :1]).all():
        return None, None
    result = stats.friedmanchisquare(*scores.T)
    return float(result.statistic), float(result.pvalue)


def wilcoxon(first: np.ndarray, second: np.ndarray) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test over paired blocks, zeros dropped; None if all pairs are equal."""
    if (first == second).all():
        return None
    return float(stats.wilcoxon(first, second).pvalue)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; None stays None and is not counted."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for place, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - place)))
        adjusted[i] = largest
    return adjusted


def _notes(methods: int, tasks: int, blocks: int, left_out: int) -> list[str]:
    notes = []
    pairs = methods - 1
    smallest = pairs * 2.0 ** (1 - blocks)  # all differences of one sign, times Holm's first factor
    if smallest > ALPHA:
        notes.append(
            f"With {blocks} block{'s' * (blocks != 1)} and {pairs} pair{'s' * (pairs != 1)} the smallest adjusted "
            f"Wilcoxon p that can occur is {min(1.0, smallest):.3g}: no difference, however clear, could reach "
            f"{ALPHA}. Read the means, not the p values."
        )
    if methods < 3 or blocks < 2:
        notes.append("The Friedman test needs three methods and two blocks or more; it is left out.")
    elif blocks <= 10 or methods <= 6:
        notes.append(
            f"Friedman's p is a chi-squared approximation, good for more than 10 blocks and 6 methods; here are "
            f"{blocks} and {methods}."
        )
    if blocks > tasks:
        notes.append(
            f"Blocks are pairs of task and seed ({tasks} task{'s' * (tasks != 1)}). Seeds of one task are not "
            "independent evidence about other tasks, so the p values speak of these tasks only, and too favourably "
            "of any claim beyond them."
        )
    if left_out:
        some = "1 pair of task and seed is" if left_out == 1 else f"{left_out} pairs of task and seed are"
        notes.append(f"{some} left out, because a method has no score there.")
    return notes
