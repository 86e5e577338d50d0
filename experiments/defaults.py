"""What `lateprompt train` reaches with nothing said but model and data: test accuracy by task and training rows.

    LATEPROMPT_TASKS=folder .venv/bin/python experiments/defaults.py MODEL RESULTS.jsonl [--method auto --budget 3m]

The training rows are drawn as `lateprompt train --shots N --seed S` does; there are no dev rows, and the tasks' own dev
files are the test rows, as in linear_baselines.py, whose files `--baselines` puts beside. One line of RESULTS a run;
runs that are there already are not done again. The table is printed at the end: means over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuning import files_of

from lateprompt.data import few_shot, load_label_task, read_rows
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.runs.searching import find_settings
from lateprompt.search.settings import SearchSettings, asks_search
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings


def run(args: argparse.Namespace, task_name: str, size: int, seed: int) -> dict[str, Any]:
    """Train once, from no kept states, and score the test rows."""
    train_file, test_file = files_of(task_name)
    task = load_label_task(task_name)
    train, _ = few_shot(read_rows(train_file, task=task), size, seed)
    test = read_rows(test_file, task=task)
    model, recipe = ModelSettings(args.model, args.method, readout="head"), RecipeSettings(seed=seed, folds=args.folds)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows, states, found = Rows(task, train), StatesSettings(folder), None
        if asks_search(model):
            found = find_settings(model, rows, recipe, states, SearchSettings(args.budget, args.tries))
            model, recipe = found.model, found.recipe
        pipeline = Pipeline(model, rows, recipe, states, found=found)
        measured = pipeline.run()
        seconds = time.perf_counter() - started
        tested = pipeline.tuned.evaluate(test)
    expected = measured.get("cross_validation", {}).get("accuracy", measured.get("expected_accuracy"))
    return {
        "accuracy": tested["accuracy"],
        "expected": expected,
        "method": model.method,
        "layer": model.prompt_layer,
        "train_seconds": measured["train_seconds"],
        "seconds": seconds,
    }


def mean_of(lines: Iterable[dict[str, Any]]) -> str:
    """The mean accuracy of some runs, or a dash."""
    values = [line["accuracy"] for line in lines]
    return f"{statistics.mean(values):.3f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--method", default=ModelSettings("").method)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "subj", "trec", "mrpc"])
    parser.add_argument("--rows", nargs="+", type=int, default=[60, 300, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--folds", type=int, help="of the cross-validation; default the library's")
    parser.add_argument("--budget", help="of method auto")
    parser.add_argument("--tries", type=int, help="of method auto")
    parser.add_argument("--baselines", type=Path, help="a file that linear_baselines.py wrote for the same model")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {tuple(line["key"]) for line in lines}
    for seed in args.seeds:
        for task in args.tasks:
            for size in args.rows:
                key = (args.method, task, size, seed)
                if key in done:
                    continue
                lines.append({"key": key, **run(args, task, size, seed)})
                with args.results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(lines[-1], flush=True)
    linear = [json.loads(line) for line in args.baselines.read_text().splitlines()] if args.baselines else []
    print("| method | rows | " + " | ".join(args.tasks) + " |\n|---|---" + "|---" * len(args.tasks) + "|")
    for size in args.rows:
        for method in dict.fromkeys(line["method"] for line in linear):
            own = [line for line in linear if (line["method"], line["rows"]) == (method, size)]
            cells = [mean_of(line for line in own if line["task"] == task) for task in args.tasks]
            print(f"| {method} | {size} | " + " | ".join(cells) + " |")
        for method in dict.fromkeys(line["key"][0] for line in lines):
            cells = [
                mean_of(line for line in lines if tuple(line["key"][:3]) == (method, task, size)) for task in args.tasks
            ]
            print(f"| {method} | {size} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
