"""Text-to-text tuning: SmolLM2 learns to turn what people say at home into commands, from 160 rows made here.

    make example                                         # installs and converts SmolLM2, then runs this
    .venv/bin/python examples/text_to_text.py MODEL      # any causal model: a folder or a hub id

It makes rows with a `text` and a `target`, tunes a late prompt (the trunk's states are computed once), and has the
answers to new requests written, before and after. The same from the command line:

    lateprompt train --model MODEL --task FOLDER/task.yaml --train FOLDER/train.jsonl --dev FOLDER/dev.jsonl \
        --prompt-layer 0.67 --max-steps 60 --batch-size 8 --lr 5e-3 --eval-every 20 --output FOLDER/run
    lateprompt predict FOLDER/run --data FOLDER/test.jsonl --output predictions.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from lateprompt.data import Row, load_task, read_rows
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.runs.train import DataSettings, train_run
from lateprompt.training.metrics import text_metrics
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.console import print_table

TASK = """\
name: home
template: "{text}\\n{target}"
metrics: [perplexity, exact_match, rouge_l]
"""
ROOMS = ("kitchen", "bedroom", "hall", "garage", "bathroom", "study", "garden", "attic")
DEVICES = ("lamp", "heater", "fan", "radio", "television", "printer", "speaker", "oven")
PHRASES = (
    "please turn {state} the {device} in the {room} at {hour} {half}",
    "at {hour} {half} I want the {device} in the {room} {state}",
    "could you switch the {room} {device} {state} at {hour} {half}?",
    "{room}: {device} {state}, {hour} {half}",
)


def make_rows(number: int, seed: int) -> list[dict[str, str]]:
    """Requests, and the commands that they mean."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        state, device, room = rng.choice(("on", "off")), rng.choice(DEVICES), rng.choice(ROOMS)
        hour, half = rng.randint(1, 11), rng.choice(("am", "pm"))
        text = rng.choice(PHRASES).format(state=state, device=device, room=room, hour=hour, half=half)
        rows.append({"text": text, "target": f"{room}.{device} = {state} @ {hour} {half}"})
    return rows


def write_files(folder: Path) -> None:
    """The task and three files of rows."""
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")
    for name, number, seed in (("train", 160, 1), ("dev", 24, 2), ("test", 40, 3)):
        lines = "".join(json.dumps(row) + "\n" for row in make_rows(number, seed))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def score(writer: TextWriter, rows: list[Row]) -> tuple[list[str], dict[str, float]]:
    """What is written for some rows, and how it compares with their targets."""
    written = writer.write(rows)
    return written, text_metrics(("exact_match", "rouge_l"), [row.target or "" for row in rows], written)


def main() -> None:
    parser = argparse.ArgumentParser(description="tune a late prompt to write commands")
    parser.add_argument("model", nargs="?", default="models/smollm2", help="a causal model; default models/smollm2")
    parser.add_argument("--max-steps", type=int, default=60)
    args = parser.parse_args()
    if args.model == "models/smollm2" and not Path(args.model).is_dir():
        parser.error("models/smollm2 is not there yet: run `make example`, or name a causal model")
    started = time.perf_counter()
    settings = ModelSettings(args.model, method="npg", prompt_layer="0.67", max_length=160, max_target_length=32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        task = load_task(str(folder / "task.yaml"))
        test = read_rows(folder / "test.jsonl", task=task)
        untuned, before = score(TextWriter.build(settings, task, seed=1), test)
        tuned, measured = train_run(
            settings,
            DataSettings(str(folder / "train.jsonl"), dev=[str(folder / "dev.jsonl")], task=str(folder / "task.yaml")),
            RecipeSettings(max_steps=args.max_steps, batch_size=8, lr=5e-3, eval_every=20, seed=1),
            folder / "run",
            quiet=False,
        )
        assert isinstance(tuned, TextWriter)
        answers, after = score(tuned, test)
    shown = list(zip(test, untuned, answers, strict=True))[:4]
    print_table(
        ("request", "an untrained prompt writes", "a tuned one"),
        [(row.text, first.splitlines()[0][:60] if first else "", answer) for row, first, answer in shown],
    )
    print_table(
        ("40 new requests", "before", "after"),
        [(name, f"{before[name]:.2f}", f"{after[name]:.2f}") for name in ("exact_match", "rouge_l")],
    )
    print(f"dev perplexity {measured['perplexity']:.3f}; {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
