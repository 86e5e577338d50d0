"""The table of results: one row for each run, rebuilt from the runs' result files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lateprompt.data import load_label_task
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
        **{f"test_{name}": result.get(f"test_{name}") for name in METRICS},
        **{name: result.get(name) for name in _MEASURED},
        "trunk_fill_seconds": result.get("trunk_fill_seconds"),
        "status": result["status"],
        "error": result.get("error", ""),
        "run": f"runs/{spec.folder}",
    }


def write_table(results: Path, specs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """Write results.csv (and results.parquet, where pyarrow is) from the runs that have finished; returns its rows."""
    rows = [row_of(spec, result) for spec in specs if (result := result_of(results, spec)) is not None]
    if not rows:
        return rows
    used = [key for key in rows[0] if not key.startswith("test_") or any(row[key] is not None for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, used, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(results / TABLE, text.getvalue())
    return rows


def write_parquet(results: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same table as Parquet."""
    import pyarrow
    from pyarrow import parquet

    if rows:
        table = pyarrow.Table.from_pylist([{**row, "shots": str(row["shots"])} for row in rows])
        write_atomically(results / "results.parquet", lambda path: parquet.write_table(table, path))


def summary(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Methods × tasks: mean and standard deviation over seeds, in percent, of one model and number of shots each."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = []
    for model, shots, name in dict.fromkeys((row["model"], row["shots"], row["method"]) for row in rows):
        own = [row for row in rows if (row["model"], row["shots"], row["method"]) == (model, shots, name)]
        cells, means = [], []
        for task in tasks:
            scores = [row["test"] for row in own if row["task"] == task and row["test"] is not None]
            failed = sum(row["task"] == task and row["status"] == "failed" for row in own)
            if scores:
                means.append(mean(scores))
            spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
            note = f" ({failed} failed)" if failed else ""
            cells.append(f"{100 * mean(scores):.1f}{spread}{note}" if scores else note.strip())
        average = f"{100 * mean(means):.1f}" if len(means) == len(tasks) else ""
        lines.append([str(model), str(shots), name, *cells, average])
    return ["model", "shots", "method", *tasks, "average"], lines
