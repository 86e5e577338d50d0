"""Tune a causal language model on a CSV: to write (columns text and target), or to classify (columns text and label).

    python examples/tune_decoder.py MODEL train.csv new.csv answers.csv
    python examples/tune_decoder.py MODEL    # on rows made up below; `make example` does this with SmolLM2

MODEL is a hub id or a folder. `lateprompt predict runs/decoder --data more.csv` goes on with the tuned model.
"""

import csv
import random
import sys
from pathlib import Path

from lateprompt.data import read_rows
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.runs.train import DataSettings, train_run
from lateprompt.training.settings import ModelSettings, RecipeSettings

ROOMS = ("kitchen", "bedroom", "hall", "garage", "bathroom", "study", "garden", "attic")
DEVICES = ("lamp", "heater", "fan", "radio", "television", "printer", "speaker", "oven")


def write_csv(path: str, *lines: tuple[str, ...]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def make_up(train_file: str, new_file: str) -> None:
    """Write requests and the commands they mean: 100 to train on, 28 others to try the model on."""
    things = [(device, room, state) for device in DEVICES for room in ROOMS for state in ("on", "off")]
    lines = [(f"please turn the {d} in the {r} {s}", f"{r}.{d} = {s}") for d, r, s in things]
    random.Random(1).shuffle(lines)
    write_csv(train_file, ("text", "target"), *lines[:100])
    write_csv(new_file, ("text", "target"), *lines[100:])


def main(model: str, train_file: str, new_file: str, output: str) -> None:
    settings = ModelSettings(model, method="npg", prompt_layer="0.67", max_length=160, max_target_length=32)
    recipe = RecipeSettings(steps=60, batch_size=8, lr=5e-3)
    tuned, _ = train_run(settings, DataSettings(train_file), recipe, "runs/decoder", overwrite=True, quiet=False)
    rows = read_rows(new_file, task=tuned.task, labelled=False)
    if isinstance(tuned, TextWriter):
        answers = tuned.write(rows)
    else:
        answers = [tuned.task.labels[best] for best in tuned.probabilities(rows).argmax(1)]
    write_csv(output, ("text", "prediction"), *((row.text, a) for row, a in zip(rows, answers, strict=True)))
    right = [a == (row.target or row.label) for row, a in zip(rows, answers, strict=True) if row.target or row.label]
    print(f"{len(rows)} answers are in {output}; the first: {rows[0].text!r} -> {answers[0]!r}")
    if right:
        print(f"right: {sum(right)} of the {len(right)} whose answer is known")


if __name__ == "__main__":
    files = sys.argv[2:] or ["runs/requests.csv", "runs/more_requests.csv", "runs/commands.csv"]
    if len(sys.argv) == 1 or len(files) != 3:
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        make_up(*files[:2])
    main(sys.argv[1], *files)
