"""The linear baselines' test accuracy by task and number of training rows: one JSON line a run.

    LATEPROMPT_TASKS=folder .venv/bin/python experiments/linear_baselines.py MODEL results.jsonl

The training rows are drawn as `lateprompt train --shots N --seed S` does. C is chosen by cross-validation on them: no
other rows are read, as where there is no dev file. The tasks' own dev files are the test rows. Runs that are in the
file already are not done again.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tuning import files_of

from lateprompt.data import few_shot, load_label_task, read_rows
from lateprompt.predictors.kinds import kind_of
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "subj", "trec", "mrpc"])
    parser.add_argument("--methods", nargs="+", default=["tfidf", "embedding-lr"])
    parser.add_argument("--rows", nargs="+", type=int, default=[60, 300, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--dtype", default="float32", help="float type of the frozen model")
    parser.add_argument("--states", default="on", help="where the texts' pooled states are kept")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(line["task"], line["rows"], line["seed"], line["method"]) for line in lines}
    for task in args.tasks:
        for method in args.methods:
            left = [(n, seed) for n in args.rows for seed in args.seeds if (task, n, seed, method) not in done]
            for line in measure(args, task, method, left) if left else ():
                with args.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(*line.values(), sep="\t", flush=True)


def measure(args: Namespace, name: str, method: str, runs: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Test accuracy of runs with so many rows and a seed, the C that was chosen, and the seconds that fitting took."""
    task = load_label_task(name)
    train, test = (read_rows(path, task=task) for path in files_of(name))
    settings = ModelSettings(args.model, method=method, dtype=args.dtype)
    classifier = kind_of(task, method).build(settings, task, seed=0)
    samples = [few_shot(train, rows, seed, dev_size=0)[0] for rows, seed in runs]
    parts = [classifier.batches(part) for part in (test, *samples)]
    encoded = [(part, np.arange(len(part))) for part in parts]
    (held, *drawn), _ = classifier.cached(encoded, StatesSettings(args.states), quiet=True)
    for (rows, seed), batches in zip(runs, drawn, strict=True):
        result = classifier.fit(batches, None, RecipeSettings(seed=seed))
        found = {"accuracy": classifier.evaluate(held)["accuracy"], "C": result.metrics["C"]}
        seconds = round(result.train_seconds, 3)
        yield {"task": name, "rows": rows, "seed": seed, "method": method, **found, "seconds": seconds}


if __name__ == "__main__":
    main()
