"""The linear baselines' test accuracy by task and number of training rows: one JSON line a run.

    LATEPROMPT_TASKS=folder .venv/bin/python experiments/linear_baselines.py MODEL results.jsonl

The training rows are drawn as `lateprompt train --shots N --seed S` does. C is chosen by cross-validation on them: no
other rows are read, as where there is no dev file. The tasks' own dev files are the test rows. Runs that are in the
file already are not done again.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from tuning import files_of

from lateprompt.data import Row, Task, few_shot, load_label_task, read_rows
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

METHODS = ("tfidf", "embedding-lr")
TEST = "test"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "subj", "trec", "mrpc"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--rows", nargs="+", type=int, default=[60, 300, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--dtype", default="float32", help="float type of the frozen model")
    parser.add_argument("--states", default="on", help="where the texts' pooled states are kept")
    args = parser.parse_args()
    names = ("task", "rows", "seed", "method")
    lines = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {tuple(line[name] for name in names) for line in lines}
    for name in args.tasks:
        task = load_label_task(name)
        train, test = (read_rows(path, task=task) for path in files_of(name))
        for rows in args.rows:
            for seed in args.seeds:
                for method in args.methods:
                    key = dict(zip(names, (name, rows, seed, method), strict=True))
                    if tuple(key.values()) in done:
                        continue
                    settings = ModelSettings(args.model, method=method, dtype=args.dtype)
                    sample, _ = few_shot(train, rows, seed, dev_size=0)
                    line = {**key, **measure(settings, task, sample, test, seed, args.states)}
                    with args.results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(*line.values(), sep="\t", flush=True)


def measure(
    settings: ModelSettings, task: Task, train: Sequence[Row], test: Sequence[Row], seed: int, states: str
) -> dict[str, float]:
    """Test accuracy of one run, with the C that was chosen and the seconds that fitting took."""
    rows = Rows(task, list(train), test={TEST: list(test)})
    pipeline = Pipeline(settings, rows, RecipeSettings(seed=seed), StatesSettings(states))
    measured = pipeline.run()
    seconds = round(measured["train_seconds"], 3)
    return {"accuracy": measured["test"][TEST]["accuracy"], "C": measured["C"], "seconds": seconds}


if __name__ == "__main__":
    main()
