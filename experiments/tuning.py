"""What the experiments that tune a model on the ten tasks share: their arguments, and where the rows are."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def make_parser(doc: str | None, tasks: list[str]) -> argparse.ArgumentParser:
    """The arguments of all of them; `doc` is the script's own docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--method", default="mppg")
    parser.add_argument("--prompt-layer", default="0.5")
    return parser


def files_of(task: str) -> tuple[str, str]:
    """A task's training and dev file."""
    data = os.environ.get("LATEPROMPT_TASKS")
    if not data:
        sys.exit("set LATEPROMPT_TASKS to the folder with the tasks' rows (<task>/train.jsonl, dev.jsonl)")
    folder = Path(data) / task
    return str(folder / "train.jsonl"), str(folder / "dev.jsonl")
