"""Dev accuracy by the type that kept trunk states have on disk: float32, bfloat16, int8.

LATEPROMPT_TASKS=folder python experiments/states_dtypes.py MODEL [--tasks sst2 trec] [--seeds 13 21 42]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

from lateprompt.run import DataSettings, train_run
from lateprompt.training.kept import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

DTYPES = ("float32", "bfloat16", "int8")


def main() -> None:
    """Print one line per task and type: mean dev accuracy over the seeds, and each seed's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "trec"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--method", default="mppg")
    parser.add_argument("--prompt-layer", default="0.5")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    data = os.environ.get("LATEPROMPT_TASKS")
    if not data:
        sys.exit("set LATEPROMPT_TASKS to the folder with the tasks' rows (<task>/train.jsonl, dev.jsonl)")
    print(f"{'task':6} {'states':9} {'mean':>6}  seeds {args.seeds}")
    for task in args.tasks:
        files = DataSettings(
            train=str(Path(data) / task / "train.jsonl"), dev=[str(Path(data) / task / "dev.jsonl")], task=task
        )
        for dtype in DTYPES:
            found = []
            for seed in args.seeds:
                model = ModelSettings(args.model, method=args.method, prompt_layer=args.prompt_layer)
                recipe = RecipeSettings(epochs=args.epochs, seed=seed)
                _, measured = train_run(model, files, recipe, None, states=StatesSettings(states_dtype=dtype))
                found.append(measured["accuracy"])
            values = " ".join(f"{value:.4f}" for value in found)
            print(f"{task:6} {dtype:9} {statistics.mean(found):.4f}  {values}", flush=True)


if __name__ == "__main__":
    main()
