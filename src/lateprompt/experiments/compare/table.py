"""The table of results: one row for each run, rebuilt from the runs' result files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from lateprompt.data import load_label_task
from lateprompt.data.task import MULTI_LABEL_METRICS
from lateprompt.experiments.compare.plan import RunSpec
from lateprompt.experiments.compare.worker import RESULT_FILE
from lateprompt.training.metrics import METRICS, primary_metric
from lateprompt.utils.files import read_json, write_atomically, write_text

TABLE = "results.csv"
_MEASURED = ("trainable_parameters", "steps", "train_seconds", "tokens_per_second", "peak_memory_bytes")


def result_of(results: Path, spec: RunSpec) -> dict[str, Any] | None:
    """What a run left, or None if it has not finished."""
    file = results / "runs" / spec.folder / RESULT_FILE
    return read_json(file, "result") if file.is_file() else None


def row_of(spec: RunSpec, result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row, with the columns that docs/report.md names."""
    recipe = {key: value for key, value in asdict(spec.recipe).items() if key != "seed"}
    settings = {
        "method": spec.settings.method,
        **{f"set.{key}": value for key, value in spec.settings.options.items()},
        "prompt_layer": result.get("prompt_layer", spec.settings.prompt_layer),
        **{k: getattr(spec.settings, k) for k in ("num_prompt_tokens", "bottleneck_dim", "readout", "dtype")},
        **recipe,
    }
    return {
        "method": spec.name,
        "task": spec.task,
        "shots": spec.shots,
        "seed": spec.recipe.seed,
        "model": spec.model,
        "settings": json.dumps(settings, sort_keys=True),
        "metric": result.get("metric") or primary_metric(load_label_task(str(spec.data.task)).metrics),
        "dev": result.get("dev"),
        "test": result.get("test"),
        **{f"test_{name}": result.get(f"test_{name}") for name in dict.fromkeys((*METRICS, *MULTI_LABEL_METRICS))},
        **{name: result.get(name) for name in _MEASURED},
        "trunk_fill_seconds": result.get("trunk_fill_seconds"),
        "status": result["status"],
        "error": result.get("error", ""),
        "run": f"runs/{spec.folder}",
    }


def write_table(results: Path, specs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """Write results.csv from the runs that have finished; returns its rows."""
    rows = [row_of(spec, result) for spec in specs if (result := result_of(results, spec)) is not None]
    if not rows:
        return rows
    table = _frame(rows)
    empty = [name for name in table if name.startswith("test_") and table[name].isna().all()]
    write_text(results / TABLE, table.drop(columns=empty).to_csv(index=False, lineterminator="\n"))
    return rows


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as objects: pandas would make floats of whole numbers in columns with gaps."""
    return pd.DataFrame(rows, dtype=object)


def write_parquet(results: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same table as Parquet."""
    if rows:
        table = _frame(rows).astype({"shots": str})
        write_atomically(results / "results.parquet", lambda path: table.to_parquet(path, index=False))


def summary(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Methods × tasks: mean and standard deviation over seeds, in percent, of one model and number of shots each."""
    key = ["model", "shots", "method"]
    table = _frame(rows).reindex(columns=[*key, "task", "test", "status"]).astype({"test": float})
    tasks = list(table["task"].unique())
    lines = []
    for names, own in table.groupby(key, sort=False):
        cells = own.groupby("task")[["test", "status"]].apply(_cell).reindex(tasks, fill_value="")
        means = own.dropna(subset="test").groupby("task")["test"].agg(mean)
        average = f"{100 * mean(means):.1f}" if len(means) == len(tasks) else ""
        lines.append([*map(str, names), *cells, average])
    return [*key, *tasks, "average"], lines


def _cell(runs: pd.DataFrame) -> str:
    """A method's runs on one task: mean, standard deviation where there are seeds, and how many failed."""
    scores, failed = runs["test"].dropna(), (runs["status"] == "failed").sum()
    shown = f"{100 * mean(scores):.1f}" if len(scores) else ""
    spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
    return (shown + spread + (f" ({failed} failed)" if failed else "")).strip()
