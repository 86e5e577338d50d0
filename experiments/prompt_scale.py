"""How long a fresh prompt's vectors are against the hidden states they stand beside.

    .venv/bin/python experiments/prompt_scale.py MODEL DATA --task sst2 --prompt-layers 1 3

Prints, for each prompt layer and generator, the median norm of the first 32 rows' hidden states and of the prompt's
vectors as they are initialised.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from lateprompt.data import load_label_task, read_rows
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.console import print_table


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="norms of fresh prompts and of hidden states")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--prompt-layers", type=int, nargs="+", default=[3])
    args = parser.parse_args()
    task = load_label_task(args.task)
    rows = read_rows(args.data, task=task)[:32]
    table = []
    for layer in args.prompt_layers:
        for method in ("fixed", "npg", "mppg", "atpg"):
            tuned = TextClassifier.build(ModelSettings(args.model, method=method, prompt_layer=layer), task, seed=1)
            batch = tuned.batches(rows).batch(np.arange(len(rows)))
            call = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            states = tuned.layer.run_trunk(layer, call)
            prompt = tuned.layer.generate_prompt("default", states, batch.attention_mask)
            hidden = states.norm(dim=-1)[batch.attention_mask.bool()].median()
            table.append((str(layer), method, f"{hidden:.1f}", f"{prompt.norm(dim=-1).median():.2f}"))
    print_table(("prompt layer", "generator", "hidden states", "prompt"), table)


if __name__ == "__main__":
    main()
