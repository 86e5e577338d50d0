"""How many steps, and which learning rate, few training rows need: accuracy on dev rows that the training never saw.

    LATEPROMPT_TASKS=folder .venv/bin/python experiments/few_rows.py MODEL --tasks trec sst2 --shots 60 300

The dev rows are 500 of each task's training file, drawn by the seed; the tasks' own dev files (the test rows of our
tables) are not read.
"""

from __future__ import annotations

from statistics import mean

from tuning import files_of, make_parser

from lateprompt.runs.train import DataSettings, train_model
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings


def main() -> None:
    parser = make_parser(__doc__, ["trec", "sst2"])
    parser.set_defaults(method="npg")
    parser.add_argument("--shots", nargs="+", type=int, default=[60, 300])
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 200, 400])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 5e-3])
    args = parser.parse_args()
    print("task", "rows", "steps", "rate", "dev accuracy, by seed and mean", sep="\t", flush=True)
    for task in args.tasks:
        for shots in args.shots:
            for steps in args.steps:
                for rate in args.rates:
                    scores = [accuracy(args, task, shots, steps, rate, seed) for seed in args.seeds]
                    shown = " ".join(f"{score:.3f}" for score in scores)
                    print(task, shots, steps, f"{rate:g}", f"{shown}  {mean(scores):.3f}", sep="\t", flush=True)


def accuracy(args: object, task: str, shots: int, steps: int, rate: float, seed: int) -> float:
    """Dev accuracy of the last weights: dev rows choose nothing here, as in a run without a dev file."""
    model = ModelSettings(model=args.model, method=args.method, prompt_layer=args.prompt_layer, readout="head")
    data = DataSettings(train=files_of(task)[0], task=task, shots=shots, dev_rows=500)
    recipe = RecipeSettings(max_steps=steps, lr=rate, seed=seed, eval_every=steps)
    return train_model(model, data, recipe, StatesSettings()).result.metrics["accuracy"]


if __name__ == "__main__":
    main()
