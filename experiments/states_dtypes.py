"""Dev accuracy by the type that cached trunk states have on disk: float32, bfloat16, int8.

LATEPROMPT_TASKS=folder python experiments/states_dtypes.py MODEL [--tasks sst2 trec] [--seeds 13 21 42]
"""

from __future__ import annotations

import statistics

from tuning import files_of, make_parser

from lateprompt.runs.train import DataSettings, train_run
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

DTYPES = ("float32", "bfloat16", "int8")


def main() -> None:
    """Print one line per task and type: mean dev accuracy over the seeds, and each seed's."""
    parser = make_parser(__doc__, ["sst2", "trec"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    args = parser.parse_args()
    print(f"{'task':6} {'states':9} {'mean':>6}  seeds {args.seeds}")
    for task in args.tasks:
        train, dev = files_of(task)
        files = DataSettings(train=train, dev=[dev], task=task)
        for dtype in args.dtypes:
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
