"""SetFit's library and ours at equal rows: test accuracy and seconds, 8, 16 and 32 rows a class.

    LATEPROMPT_TASKS=folder python experiments/setfit_comparison.py LIBRARY MODEL RESULTS.jsonl [--tasks …] [--seeds …]

LIBRARY is `setfit` (run in an environment of its own, with SetFit's defaults: contrastive pairs, one epoch, logistic
regression) or `lateprompt` (the defaults of `lateprompt train`, cross-validation aside unless --folds says otherwise).
MODEL is the folder of a sentence encoder. One line of RESULTS a run, what is there already is not run again, and the
table of all lines is printed at the end. Seconds: from the loaded model to the last trained weight, states and all;
one process, the same number of threads for both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

TEST_ROWS = 400


def rows_of(task: str, per_class: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """So many training rows of each class, drawn by the seed, and the test rows, always the same."""
    folder = Path(os.environ["LATEPROMPT_TASKS"]) / task
    train, test = ([json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in ("train", "dev"))
    random.Random(seed).shuffle(train)
    taken: list[dict[str, Any]] = []
    for label in sorted({row["label"] for row in train}):
        taken += [row for row in train if row["label"] == label][:per_class]
    return taken, random.Random(0).sample(test, min(TEST_ROWS, len(test)))


def with_setfit(model: str, train: list[dict[str, Any]], test: list[dict[str, Any]], seed: int) -> tuple[float, float]:
    """Accuracy and seconds of SetFit's defaults."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    names = sorted({row["label"] for row in train})
    data = Dataset.from_list([{"text": row["text"], "label": names.index(row["label"])} for row in train])
    tuned = SetFitModel.from_pretrained(model, local_files_only=True)
    arguments = TrainingArguments(seed=seed, report_to="none", save_strategy="no")
    trainer = Trainer(model=tuned, args=arguments, train_dataset=data)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    found = tuned.predict([row["text"] for row in test], use_labels=False)
    right = sum(names[int(label)] == row["label"] for label, row in zip(found, test, strict=True))
    return right / len(test), seconds


def with_lateprompt(
    model: str, train: list[dict[str, Any]], test: list[dict[str, Any]], seed: int, folds: int | None
) -> tuple[float, float]:
    """Accuracy and seconds of our defaults; no state was kept before."""
    import tempfile

    from lateprompt.data import Row, default_task
    from lateprompt.runs.data import Rows
    from lateprompt.runs.pipeline import Pipeline
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    task = default_task(sorted({row["label"] for row in train}), pair=False)
    own = [Row(row["text"], None, row["label"], {}) for row in train]
    with tempfile.TemporaryDirectory() as folder:
        recipe = RecipeSettings(seed=seed, folds=folds)
        pipeline = Pipeline(ModelSettings(model, readout="head"), Rows(task, own), recipe, StatesSettings(folder))
        pipeline.build()
        started = time.perf_counter()
        pipeline.encode()
        pipeline.cache_states()
        pipeline.fit()
        pipeline.cross_validate()
        seconds = time.perf_counter() - started
        scores = pipeline.tuned.evaluate([Row(row["text"], None, row["label"], {}) for row in test])
    return scores["accuracy"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("setfit", "lateprompt"))
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "subj", "trec"])
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--folds", type=int, default=0, help="lateprompt: folds of its cross-validation")
    given = parser.parse_args()
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    if given.results.exists():
        entries = [json.loads(line) for line in given.results.read_text().splitlines()]
        found = {tuple(entry["key"]): entry for entry in entries}
    name = given.library if given.library == "setfit" or not given.folds else f"lateprompt, {given.folds} folds"
    for seed in given.seeds:
        for task in given.tasks:
            for per_class in given.rows:
                key = (name, task, per_class, seed)
                if key in found:
                    continue
                rows = rows_of(task, per_class, seed)
                if given.library == "setfit":
                    accuracy, seconds = with_setfit(given.model, *rows, seed)
                else:
                    accuracy, seconds = with_lateprompt(given.model, *rows, seed, given.folds)
                found[key] = {"key": key, "accuracy": accuracy, "seconds": seconds, "rows": len(rows[0])}
                with given.results.open("a") as file:
                    file.write(json.dumps(found[key]) + "\n")
                print(key, f"{accuracy:.3f} in {seconds:.1f} s", flush=True)
    print("| library | rows a class | " + " | ".join(given.tasks) + " | mean | seconds |")
    print("|---" * (len(given.tasks) + 4) + "|")
    for library in dict.fromkeys(key[0] for key in found):
        for per_class in given.rows:
            by_task = {
                task: [entry for key, entry in found.items() if key[:3] == (library, task, per_class)]
                for task in given.tasks
            }
            if not all(by_task.values()):
                continue
            means = [statistics.mean(entry["accuracy"] for entry in entries) for entries in by_task.values()]
            seconds = statistics.mean(entry["seconds"] for entries in by_task.values() for entry in entries)
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            print(f"| {library} | {per_class} | {cells} | {statistics.mean(means):.3f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
