"""Seconds to train K tasks on the same texts: in one run, and in K runs.

.venv/bin/python benchmarks/train_tasks.py [K …] [--rows 1000] [--steps 200] [--tokens 5] [--no-states]

Installed reviews, MiniLM-L6, read-npg with a head, batches of 32. Each task asks whether a review has a certain word.
Both ways begin with an empty store of the frozen model's states; of K runs the first fills it. With --no-states
nothing is kept: each step computes the texts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from lateprompt import train_tasks
from lateprompt.demo import installed_encoder, reviews
from lateprompt.runs.train import train_run
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings


def write_rows(path: Path, number: int, tasks: int) -> list[str]:
    """Write reviews with a column for each of the commonest words; the names of the columns."""
    rows = random.Random(1).sample(reviews(), number)
    words = [set(re.findall(r"[a-z]{4,}", row.text.lower())) for row in rows]
    common = [word for word, _ in Counter(word for own in words for word in own).most_common(tasks)]
    lines = [
        json.dumps({"text": row.text, **{f"has {word}": ("no", "yes")[word in own] for word in common}})
        for row, own in zip(rows, words, strict=True)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return [f"has {word}" for word in common]


def main() -> None:
    """Time both ways for each K."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="*", type=int, default=[1, 10])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--no-states", action="store_true")
    given = parser.parse_args()
    model = ModelSettings(
        installed_encoder(), method="read-npg", readout="head", num_prompt_tokens=given.tokens, device="cpu"
    )
    recipe = RecipeSettings(max_steps=given.steps, batch_size=32, eval_every=given.steps)
    print(f"{given.rows} rows, {given.steps} steps of 32, k = {given.tokens}, {torch.get_num_threads()} threads")
    for tasks in given.tasks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            columns = write_rows(folder / "rows.jsonl", given.rows, tasks)
            data = DataSettings(str(folder / "rows.jsonl"))
            started = time.perf_counter()
            states = StatesSettings("off" if given.no_states else str(folder / "one"))
            _, measured = train_tasks(model, data, columns, recipe, folder / "many", states)
            together = time.perf_counter() - started
            started, steps = time.perf_counter(), 0.0
            states = StatesSettings("off" if given.no_states else str(folder / "each"))
            for column in columns:
                own = DataSettings(data.train, label_column=column)
                _, alone = train_run(model, own, recipe, folder / f"run {column}", states=states)
                steps += alone["train_seconds"]
            apart = time.perf_counter() - started
        print(
            f"K = {tasks}: one run {together:.1f} s ({measured['train_seconds']:.1f} in steps), {tasks} runs "
            f"{apart:.1f} s ({steps:.1f} in steps): {apart / together:.1f} times as long",
            flush=True,
        )


if __name__ == "__main__":
    main()
