"""The sections of the page about scores: main table, speed, learning curves, ranks, convergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lateprompt.experiments.report.aggregate import MainTable, extra_tables, groups, shots_name
from lateprompt.experiments.report.charts import Bubble, Line, bubble_chart, line_chart, rank_chart
from lateprompt.experiments.report.curves import curves
from lateprompt.experiments.report.elements import data_table, figure, folds, main_table, note, notes, panels
from lateprompt.experiments.report.results import Results
from lateprompt.experiments.report.statistics import Ranking, rank_methods
from lateprompt.experiments.report.tables import DASH, gigabytes, grid, rate

Numbers = Mapping[str, int]
"""Method to its number, the same in all charts."""


def title_of(table: MainTable) -> str:
    """Which model and how many training rows."""
    return f"{table.model}, {shots_name(table.shots)}"


def scores_section(results: Results, tables: Sequence[MainTable], numbers: Numbers) -> str:
    """Section 1: methods by tasks, and further metrics folded below."""
    parts = [main_table(grid(table)) for table in tables]
    if any(column.split == "dev" for table in tables for column in table.columns):
        parts.append(note("Columns marked dev have no test scores; they show the score that chose the weights."))
    extra = extra_tables(results)
    for name, found in extra.items():
        body = "".join(main_table(grid(table, costs=False)) for table in found)
        parts.append(f"<details><summary>{name} on the test rows</summary>{body}</details>")
    return "".join(parts)


def speed_section(results: Results, tables: Sequence[MainTable], numbers: Numbers) -> str:
    """Section 2: the average score against training speed; area shows memory."""
    items = []
    for table in tables:
        name = score_name(table)
        bubbles = [
            Bubble(
                row.method,
                numbers[row.method],
                row.tokens_per_ms,
                100 * row.mean,
                row.memory_bytes,
                f"{name} {100 * row.mean:.1f}, {rate(row.tokens_per_ms)} tokens/ms"
                + ("" if row.memory_bytes is None else f", {gigabytes(row.memory_bytes)} GB"),
            )
            for row in table.rows
            if row.mean is not None and row.tokens_per_ms is not None
        ]
        absent = [row.method for row in table.rows if row.method not in {bubble.name for bubble in bubbles}]
        body = ""
        if bubbles:
            sizes = [bubble.size for bubble in bubbles if bubble.size is not None]
            area = f" Circle area: peak memory, {gigabytes(min(sizes))} to {gigabytes(max(sizes))} GB." if sizes else ""
            body = figure(
                f"{title_of(table)}: {name}, mean over {_tasks(len(table.columns))}, against training speed.{area} "
                "Up and to the right is better.",
                lambda width, table=table, bubbles=bubbles, name=name: bubble_chart(  # type: ignore[misc]
                    bubbles,
                    title=f"{name} against training speed, {title_of(table)}",
                    x_label="training speed, tokens/ms",
                    y_label=f"{name}, %",
                    width=width,
                    height=400 if width > 500 else 340,
                ),
            )
        if absent:
            body += note(f"Not shown, for want of a speed or of a score on some task: {', '.join(absent)}.")
        items.append((title_of(table), body))
    return folds(items)


def score_name(table: MainTable) -> str:
    """The metric, if all tasks share one."""
    metrics = {column.metric for column in table.columns}
    return metrics.pop() if len(metrics) == 1 else "score"


def _tasks(number: int) -> str:
    return f"{number} task{'s' * (number != 1)}"


def shots_section(results: Results, tables: Sequence[MainTable], numbers: Numbers) -> str:
    """Section 3: scores by the number of training rows; empty where there is one number only."""
    items = []
    for model in dict.fromkeys(table.model for table in tables):
        found = [table for table in tables if table.model == model]
        if len(found) < 2:
            continue
        names = [f"{table.shots:,}" if table.shots != "full" else "full" for table in found]
        body = ""
        average = _by_shots(found, numbers, None)
        if average:
            tasks = len(found[0].columns)
            body = figure(
                f"{model}: mean over {_tasks(tasks)} by training rows (evenly spaced).",
                lambda width, model=model, average=average, names=names: line_chart(  # type: ignore[misc]
                    average,
                    title=f"Average score by training rows, {model}",
                    x_label="training rows in total",
                    y_label="average, %",
                    categories=names,
                    width=width,
                    height=340 if width > 500 else 300,
                ),
            )
        charts = []
        for task in dict.fromkeys(column.task for table in found for column in table.columns):
            lines = _by_shots(found, numbers, task)
            metric = next(column.metric for table in found for column in table.columns if column.task == task)
            if lines:
                chart = line_chart(
                    lines,
                    title=f"{task} by training rows, {model}",
                    x_label="training rows in total",
                    y_label=f"{metric}, %",
                    categories=names,
                )
                charts.append((task, chart))
        items.append((model, body + panels(charts)))
    return folds(items) if items else ""


def _by_shots(tables: Sequence[MainTable], numbers: Numbers, task: str | None) -> list[Line]:
    """Lines over the tables of one model: of a task, or of the average (None)."""
    points: dict[str, list[tuple[float, float]]] = {}
    for place, table in enumerate(tables):
        for row in table.rows:
            score = row.mean if task is None else row.cells[task].mean if task in row.cells else None
            if score is not None:
                points.setdefault(row.method, []).append((float(place), 100 * score))
    return [Line(method, numbers[method], found) for method, found in points.items()]


def rank_section(results: Results, tables: Sequence[MainTable], numbers: Numbers) -> str:
    """Section 4: mean ranks with their tests."""
    return folds([(title_of(table), _ranking(title_of(table), rank_methods(table), numbers)) for table in tables])


def _ranking(title: str, ranking: Ranking, numbers: Numbers) -> str:
    if not ranking.ranks:
        return notes(ranking.notes)
    dots = [(rank.method, numbers[rank.method], rank.mean_rank) for rank in ranking.ranks]
    body = figure(
        f"{title}: mean rank over {ranking.blocks} block{'s' * (ranking.blocks != 1)} (task and seed).",
        lambda width: rank_chart(dots, title=f"Mean rank of each method, {title}", width=width),
    )
    best = ranking.ranks[0].method
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
    body += data_table(f"{title}: each method against {best}, the best by mean rank", headers, rows, kind="numbers")
    if ranking.friedman_p is not None:
        freedom = len(ranking.ranks) - 1
        said = f"Friedman test: χ² = {ranking.friedman_statistic:.2f}, {freedom} degrees of freedom, p "
        value = _p(ranking.friedman_p)
        body += note(said + (value if value.startswith("<") else f"= {value}") + ".")
    return body + notes(ranking.notes)


def _p(value: float | None) -> str:
    return DASH if value is None else "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def convergence_section(results: Results, tables: Sequence[MainTable], numbers: Numbers) -> str:
    """Section 5: dev metric over steps and over seconds, per task."""
    items = []
    for (model, shots), runs in groups(results.done).items():
        by_step: list[tuple[str, str]] = []
        by_second: list[tuple[str, str]] = []
        missing = 0
        for task in dict.fromkeys(run.task for run in runs):
            of_task = [run for run in runs if run.task == task]
            found, without = curves(of_task)
            missing += without
            label = f"dev {of_task[0].metric}, %"
            title = f"{task}, {model}, {shots_name(shots)}"
            steps = [Line(curve.method, numbers[curve.method], curve.by_step) for curve in found]
            times = [Line(curve.method, numbers[curve.method], curve.by_second) for curve in found if curve.by_second]
            for lines, charts, x_label in ((steps, by_step, "steps"), (times, by_second, "seconds of training")):
                if lines:
                    what = f"Convergence by {x_label}: {title}"
                    charts.append((task, line_chart(lines, title=what, x_label=x_label, y_label=label)))
        body = "".join(
            f"<h3>{heading}</h3>{panels(charts)}"
            for heading, charts in (("By step", by_step), ("By second", by_second))
            if charts
        )
        if missing:
            body += note(f"{missing} of {len(runs)} runs left no history.jsonl and are not in the curves.")
        items.append((f"{model}, {shots_name(shots)}", body))
    return folds(items) if items else note("No run is done.")
