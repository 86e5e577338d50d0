"""Read-only prompts beside other methods on few rows: rates chosen on dev rows, test rows scored once.

    LATEPROMPT_TASKS=folder python experiments/read_only.py MODEL RESULTS.jsonl [--kind decoder] [--methods NAME …]

MODEL is a folder: MiniLM-L6 or all-mpnet-base-v2, or with `--kind decoder` SmolLM2-135M (see convert_smollm2.py).
One process, one line of RESULTS a run; what is there already is not run again, and the table is printed at the end.
Lines do not say the precision of their run: read-only prompts train fastest in fp32, the others in bf16 on AMX.
`--ablate` prints dev accuracy by prompt layer and by number of vectors instead, one seed, sst2 and trec.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from pathlib import Path
from typing import Any

from lateprompt.runs.data import TEST, load_rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

SEEDS = (13, 21, 42)
KINDS: dict[str, dict[str, Any]] = {
    "encoder": {
        "tasks": ("sst2", "subj", "trec", "mrpc", "rte"),
        "steps": 150,
        "methods": {
            "read-npg": (2e-3, 5e-3),
            "read-npg+lora": (2e-3, 5e-3),
            "npg": (1e-3, 5e-3),
            "late-lora": (1e-3, 5e-3),
        },
    },
    "decoder": {
        "tasks": ("sst2", "subj", "trec"),
        "steps": 100,
        "methods": {
            "read-npg": (3e-3, 1e-2),
            "read-npg+lora": (2e-3, 5e-3),
            "lora": (1e-3, 3e-3),
            "late-lora": (1e-3, 3e-3),
            "npg@anchor": (1e-3, 5e-3),
            "prompt-tuning": (3e-2, 1e-1),
        },
    },
}
SEARCH = (("sst2", 13), ("trec", 13))
DEV_ROWS, TEST_ROWS = 200, 400


def run(
    model: str,
    kind: str,
    task: str,
    method: str,
    lr: float,
    seed: int,
    *,
    shots: int,
    test: bool,
    layer: int | str = "0.5",
    tokens: int | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Train once; dev accuracy, and test accuracy if asked for."""
    folder = Path(os.environ["LATEPROMPT_TASKS"]) / task
    data = DataSettings(
        train=str(folder / "train.jsonl"),
        test=[str(folder / "dev.jsonl")] if test else [],
        task=None if kind == "encoder" else task,
        shots=shots,
        dev_rows=DEV_ROWS,
    )
    rows = load_rows(data, seed, "auto")
    # The files are sorted by nothing that we know of, but the same rows for all methods are what counts.
    for path, found in rows.test.items():
        rows.test[path] = random.Random(0).sample(found, min(TEST_ROWS, len(found)))
    name, _, start = method.partition("@")
    options = {"prompt_start": start} if start else {}
    readout = "head" if kind == "encoder" else "causal_lm"
    settings = ModelSettings(model, name, options, layer, tokens, readout=readout, max_length=128, loss="labels")
    steps = KINDS[kind]["steps"]
    recipe = RecipeSettings(
        max_steps=steps, lr=lr, batch_size=16, seed=seed, eval_every=steps // 3, precision=precision
    )
    pipeline = Pipeline(settings, rows, recipe, StatesSettings(os.environ.get("LATEPROMPT_STATES", "on")))
    pipeline.run()
    metrics = pipeline.metrics
    tested = next(iter(metrics[TEST].values()), {}) if test else {}
    return {
        "dev": metrics["accuracy"],
        "test": tested.get("accuracy"),
        "train_seconds": metrics["train_seconds"],
        "parameters": metrics["trainable_parameters"],
    }


def ablate(model: str, kind: str, methods: list[str], pairs: list[str], *, shots: int) -> None:
    """Print dev accuracy of sst2 and trec, seed 13, for pairs of a prompt layer and a number of prompt vectors."""
    print("| method | layer | vectors | sst2 | trec | seconds |\n|---|---|---|---|---|---|")
    for method in methods:
        rate = KINDS[kind]["methods"][method][0]
        for layer, tokens in (map(int, pair.split(":")) for pair in pairs):
            more: dict[str, Any] = {"shots": shots, "test": False, "layer": layer, "tokens": tokens}
            found = [run(model, kind, task, method, rate, seed, **more) for task, seed in SEARCH]
            seconds = statistics.mean(entry["train_seconds"] for entry in found)
            cells = " | ".join(f"{entry['dev']:.3f}" for entry in found)
            print(f"| {method} | {layer} | {tokens} | {cells} | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="encoder")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--shots", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: faster with AMX")
    parser.add_argument("--ablate", nargs="*", metavar="LAYER:TOKENS")
    given = parser.parse_args()
    kind = KINDS[given.kind]
    if given.ablate is not None:
        ablate(given.model, given.kind, given.methods or ["read-npg"], given.ablate, shots=given.shots)
        return
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    if given.results.exists():
        for line in given.results.read_text().splitlines():
            entry = json.loads(line)
            found[tuple(entry["key"])] = entry

    def result(task: str, method: str, lr: float, seed: int, *, test: bool) -> dict[str, Any]:
        key = (given.shots, task, method, lr, seed, test)
        if key not in found:
            found[key] = {
                "key": key,
                **run(
                    given.model,
                    given.kind,
                    task,
                    method,
                    lr,
                    seed,
                    shots=given.shots,
                    test=test,
                    precision=given.precision,
                ),
            }
            with given.results.open("a") as file:
                file.write(json.dumps(found[key]) + "\n")
            print(key, found[key], flush=True)
        return found[key]

    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    methods = {name: rates for name, rates in kind["methods"].items() if not given.methods or name in given.methods}
    best = {
        method: max(rates, key=lambda lr: sum(result(t, method, lr, s, test=False)["dev"] for t, s in SEARCH))
        for method, rates in methods.items()
    }
    for seed in given.seeds:
        for task in kind["tasks"]:
            for method in methods:
                entry = result(task, method, best[method], seed, test=True)
                table.setdefault(method, {}).setdefault(task, []).append(entry)
    print(f"| method | rate | {' | '.join(kind['tasks'])} | mean | parameters | seconds |")
    print("|---" * (len(kind["tasks"]) + 5) + "|")
    for method, of_tasks in table.items():
        means = [statistics.mean(entry["test"] for entry in of_tasks[task]) for task in kind["tasks"]]
        every = [entry for entries in of_tasks.values() for entry in entries]
        seconds = statistics.mean(entry["train_seconds"] for entry in every)
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        print(
            f"| {method} | {best[method]:g} | {cells} | {statistics.mean(means):.3f} | "
            f"{every[0]['parameters']:,} | {seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
