"""The sections about scores: main table, score against speed, learning curves, ranks, convergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from lateprompt.experiments.report.aggregate import MainTable, extra_tables, groups, shots_name
from lateprompt.experiments.report.blocks import Block, DataTable, Figure, Fold, Note, Panels, folds
from lateprompt.experiments.report.curves import curves
from lateprompt.experiments.report.figures import Chart, bubble_chart, line_chart, rank_chart
from lateprompt.experiments.report.results import Results
from lateprompt.experiments.report.statistics import rank_methods
from lateprompt.experiments.report.tables import DASH, gigabytes, grid, rate


def group_name(table: MainTable) -> str:
    """Which model and how many training rows."""
    return f"{table.model}, {shots_name(table.shots)}"


def some(number: int, what: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def scores_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Methods by tasks, and further metrics folded below."""
    blocks: list[Block] = [grid(table) for table in tables]
    if any(column.split == "dev" for table in tables for column in table.columns):
        blocks.append(Note("Columns marked dev have no test scores; they show the score that chose the weights."))
    for name, found in extra_tables(results).items():
        blocks.append(Fold(f"{name} on the test rows", [grid(table, costs=False) for table in found]))
    return blocks


def speed_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """The average score against training speed; area shows memory."""
    items: list[tuple[str, list[Block]]] = []
    for table in tables:
        title, score = group_name(table), _score_name(table)
        blocks: list[Block] = []
        bubbles = pd.DataFrame(
            {
                "x": table.costs["tokens_per_ms"],
                "y": 100 * table.averages["mean"],
                "size": table.costs["memory_bytes"],
            }
        )
        absent = bubbles.index[bubbles[["x", "y"]].isna().any(axis=1)]
        bubbles = bubbles.drop(absent)
        if len(bubbles):
            bubbles["note"] = [
                f"{score} {bubble.y:.1f}, {rate(bubble.x)} tokens/ms"
                + ("" if pd.isna(bubble.size) else f", {gigabytes(bubble.size)} GB")
                for bubble in bubbles.itertuples()
            ]
            sizes = bubbles["size"].dropna()
            area = f"{gigabytes(sizes.min())} to {gigabytes(sizes.max())} GB" if len(sizes) else ""
            caption = (
                f"{title}: {score}, mean over {some(len(table.columns), 'task')}, against training speed."
                + (f" Circle area: peak memory, {area}." if area else "")
                + " Up and to the right is better."
            )
            chart = bubble_chart(
                bubbles,
                results.numbers,
                name=f"speed {title}",
                title=f"{score} against training speed, {title}",
                x_label="training speed, tokens/ms",
                y_label=f"{score}, %",
            )
            blocks.append(Figure(caption, chart))
        if len(absent):
            blocks.append(Note(f"Not shown, for want of a speed or of a score on some task: {', '.join(absent)}."))
        items.append((title, blocks))
    return folds(items)


def _score_name(table: MainTable) -> str:
    """The metric, if all tasks share one."""
    metrics = {column.metric for column in table.columns}
    return metrics.pop() if len(metrics) == 1 else "score"


def shots_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Scores by the number of training rows; empty where there is one number only."""
    items: list[tuple[str, list[Block]]] = []
    for model in dict.fromkeys(table.model for table in tables):
        found = [table for table in tables if table.model == model]
        if len(found) < 2:
            continue
        axis: dict[str, Any] = {
            "x_label": "training rows in total",
            "categories": [table.shots if table.shots == "full" else f"{table.shots:,}" for table in found],
        }
        blocks: list[Block] = []
        average = _lines([table.averages["mean"] for table in found])
        if average:
            chart = line_chart(
                average,
                results.numbers,
                name=f"shots {model}",
                title=f"Average score by training rows, {model}",
                y_label="average, %",
                width=720,
                height=340,
                **axis,
            )
            tasks = some(len(found[0].columns), "task")
            blocks.append(Figure(f"{model}: mean over {tasks} by training rows (evenly spaced).", chart))
        panels = []
        metrics = {column.task: column.metric for table in reversed(found) for column in table.columns}
        for task in dict.fromkeys(column.task for table in found for column in table.columns):
            lines = _lines([table.cells["mean"].unstack("task").get(task, pd.Series()) for table in found])
            if lines:
                chart = line_chart(
                    lines,
                    results.numbers,
                    name=f"shots {model} {task}",
                    title=f"{task} by training rows, {model}",
                    y_label=f"{metrics[task]}, %",
                    **axis,
                )
                panels.append((task, chart))
        items.append((model, [*blocks, Panels(panels)]))
    return folds(items)


def _lines(columns: Sequence[pd.Series]) -> dict[str, pd.Series]:
    """Method to its scores in percent by their place in a row of tables, without gaps."""
    scores = 100 * pd.concat(columns, axis=1, keys=range(len(columns)))
    lines = {str(method): line.dropna() for method, line in scores.iterrows()}
    return {method: line for method, line in lines.items() if len(line)}


def ranks_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Mean ranks with their tests."""
    return folds([(group_name(table), _ranking(results, table)) for table in tables])


def _ranking(results: Results, table: MainTable) -> list[Block]:
    title, ranking = group_name(table), rank_methods(table)
    notes: list[Block] = [Note(text) for text in ranking.notes]
    if not ranking.ranks:
        return notes
    chart = rank_chart(
        {rank.method: rank.mean_rank for rank in ranking.ranks},
        results.numbers,
        name=f"ranks {title}",
        title=f"Mean rank of each method, {title}",
    )
    rows = [
        (
            rank.method,
            f"{rank.mean_rank:.2f}",
            DASH if rank.difference is None else f"{100 * rank.difference:+.1f}".replace("-", "−"),
            _p(rank.p),
            _p(rank.p_adjusted),
        )
        for rank in ranking.ranks
    ]
    headers = ("Method", "Mean rank", "Points to best", "p (Wilcoxon)", "p (Holm)")
    against = f"{title}: each method against {ranking.ranks[0].method}, the best by mean rank"
    blocks: list[Block] = [
        Figure(f"{title}: mean rank over {some(ranking.blocks, 'block')} (task and seed).", chart),
        DataTable(against, headers, rows, "numbers"),
    ]
    if ranking.friedman_p is not None:
        said = f"Friedman test: χ² = {ranking.friedman_statistic:.2f}, {len(rows) - 1} degrees of freedom, p "
        value = _p(ranking.friedman_p)
        blocks.append(Note(said + (value if value.startswith("<") else f"= {value}") + "."))
    return blocks + notes


def _p(value: float | None) -> str:
    return DASH if value is None else "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def convergence_section(results: Results, tables: Sequence[MainTable]) -> list[Block]:
    """Dev metric over steps and over seconds, per task."""
    items: list[tuple[str, list[Block]]] = []
    for model, shots, runs in groups(results.done):
        group = f"{model}, {shots_name(shots)}"
        by_step: list[tuple[str, Chart]] = []
        by_second: list[tuple[str, Chart]] = []
        missing = 0
        for task, of_task in runs.groupby("task", sort=False):
            found, without = curves(of_task)
            missing += without
            steps = {method: curve["dev"] for method, curve in found.items()}
            times = {
                method: curve.set_index("seconds")["dev"].sort_index()
                for method, curve in found.items()
                if curve["seconds"].notna().all()
            }
            for lines, panels, x_label in ((steps, by_step, "steps"), (times, by_second, "seconds of training")):
                if lines:
                    chart = line_chart(
                        lines,
                        results.numbers,
                        name=f"convergence {group} {task} by {x_label.split()[0]}",
                        title=f"Convergence by {x_label}: {task}, {group}",
                        x_label=x_label,
                        y_label=f"dev {of_task['metric'].iloc[0]}, %",
                    )
                    panels.append((str(task), chart))
        headed = (("By step", by_step), ("By second", by_second))
        blocks: list[Block] = [Panels(panels, heading) for heading, panels in headed if panels]
        if missing:
            blocks.append(Note(f"{missing} of {len(runs)} runs left no history.jsonl and are not in the curves."))
        items.append((group, blocks))
    return folds(items) if items else [Note("No run is done.")]
