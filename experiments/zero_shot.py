"""Accuracy of a pretrained model's label words without any tuning: `zero_shot.py MODEL TASK FILE [ROWS]`."""

from __future__ import annotations

import sys

from lateprompt.data import load_task, read_rows
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.training.settings import ModelSettings

if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        raise SystemExit("usage: zero_shot.py MODEL TASK FILE [ROWS]")
    task = load_task(sys.argv[2])
    rows = read_rows(sys.argv[3], task=task)[: int(sys.argv[4]) if len(sys.argv) == 5 else None]
    classifier = TextClassifier.build(ModelSettings(model=sys.argv[1], method="fixed"), task, seed=0)
    with classifier.model.disable_adapter():
        print(classifier.evaluate(rows))
