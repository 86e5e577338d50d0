"""Few-shot accuracy with dropout in the frozen trunk (the authors' code) and without (ours).

    LATEPROMPT_TASKS=folder python experiments/trunk_dropout.py MODEL [--tasks sst2 trec rte] [--seeds 13 21 42]

100 training rows in all, 1000 more of them as dev rows choose the best weights; the task's dev file is the test set, as
in the paper.
"""

from __future__ import annotations

import statistics

from tuning import files_of, make_parser

from lateprompt.runs.train import DataSettings, train_run
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings


def main() -> None:
    """Print one line per task and setting: mean test accuracy over the seeds, and each seed's."""
    parser = make_parser(__doc__, ["sst2", "trec", "rte"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    print(f"{'task':6} {'trunk':10} {'mean':>6} {'stdev':>6} {'seconds':>8}  seeds {args.seeds}")
    for task in args.tasks:
        train, test = files_of(task)
        files = DataSettings(train=train, test=[test], task=task, shots=100)
        for dropout in (True, False):
            found, seconds = [], 0.0
            for seed in args.seeds:
                model = ModelSettings(
                    args.model, method=args.method, prompt_layer=args.prompt_layer, trunk_dropout=dropout
                )
                recipe = RecipeSettings(max_steps=args.steps, eval_every=100, lr=args.lr, seed=seed)
                states = StatesSettings(states="off" if dropout else "on")
                _, measured = train_run(model, files, recipe, None, states=states)
                found.append(measured["test"][test]["accuracy"])
                seconds += measured["train_seconds"]
            values = " ".join(f"{value:.4f}" for value in found)
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            kind = "dropout" if dropout else "eval mode"
            print(f"{task:6} {kind:10} {statistics.mean(found):.4f} {spread:.4f} {seconds:8.1f}  {values}", flush=True)


if __name__ == "__main__":
    main()
