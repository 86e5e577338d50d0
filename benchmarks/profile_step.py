"""Where a training step's time goes: prompt tuning by PEFT, a late prompt from cached states as it was, and as it is.

    python benchmarks/profile_step.py [--model roberta-base] [--batch 16] [--length 64] [--prompt-layer 6]

"As it was" runs the whole tail (`lateprompt.backbone.kernels.read_positions` off) with torch's own dropout.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.experiments.bench import BASELINE, METHODS, Bench, BenchSettings

GROUPS = {
    "linear layers": ("addmm", "mm"),
    "attention": ("bmm", "softmax", "masked_fill", "scaled_dot", "logical_not", "bitwise_not"),
    "dropout": ("bernoulli", "random_", "dropout", "ge"),
    "normalisation": ("layer_norm",),
    "activation": ("gelu",),
    "copies": ("copy", "cat", "index", "zero", "fill"),
}
STEPS = 3


def group_of(name: str) -> str:
    """The group of an operator, `other` if it is in none."""
    name = name.removeprefix("aten::").strip("_")
    for group, parts in GROUPS.items():
        if name in parts or any(len(part) > 3 and part in name for part in parts):
            return group
    return "other"


def measure(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds per step in each group."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            step()
    times = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in profiled.key_averages():
        times[group_of(event.key)] += event.self_cpu_time_total / 1000 / STEPS
    return times


def main() -> None:
    """Print milliseconds by group of operators, a column per way to train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="roberta-base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--prompt-layer", default="6")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    bench = Bench(BenchSettings(model=args.model, batch=args.batch, length=args.length, prompt_layer=args.prompt_layer))
    torch.set_num_interop_threads(1)
    columns = {"prompt tuning 20": measure(METHODS[BASELINE].make(bench))}
    step = METHODS["npg-states"].make(bench)
    with (
        mock.patch.object(LateBackbone, "can_be_lean", return_value=False),
        mock.patch.object(LateBackbone, "quick_dropout", return_value=nullcontext()),
    ):
        columns["npg, as it was"] = measure(step)
    columns["npg, as it is"] = measure(step)
    print(f"{'ms per step':16}" + "".join(f"{name:>18}" for name in columns))
    for group in [*GROUPS, "other"]:
        print(f"{group:16}" + "".join(f"{times[group]:18.1f}" for times in columns.values()))
    print(f"{'all':16}" + "".join(f"{sum(times.values()):18.1f}" for times in columns.values()))


if __name__ == "__main__":
    main()
