"""Scoring the labels of a decoder's task: all in one pass, against one whole pass for each label.

    python benchmarks/label_scoring.py MODEL --task trec --data FILE [--rows 64] [--prompt-layer 20] [--repeats 7]

Both score the same rows with the same late prompt (npg); they take turns, and the median of their times is shown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch

from lateprompt import readout
from lateprompt.data import load_task, read_rows
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.readouts import MultiTokenReadout
from lateprompt.training.evaluate import predict_scores
from lateprompt.training.settings import ModelSettings


def main() -> None:
    """Print the two times, their ratio, and the largest difference of the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", default="trec")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt-layer", default="0.67")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    task = load_task(args.task)
    settings = ModelSettings(args.model, prompt_layer=args.prompt_layer, readout="label")
    classifier = TextClassifier.build(settings, task, seed=1)
    ours = classifier.readout
    if not isinstance(ours, MultiTokenReadout):  # words of one token each: one pass is all there is
        base, words = classifier.model.get_base_model(), classifier.encoder.label_tokens
        ours = MultiTokenReadout(base, classifier.layer, words, "labels")
    feed = classifier.batches(read_rows(args.data, task=task)[: args.rows])
    times: dict[bool, list[float]] = {True: [], False: []}
    scores: dict[bool, torch.Tensor] = {}
    for turn in range(args.repeats + 1):
        for together in (True, False):
            with mock.patch.object(readout, "can_branch", lambda layer, answer=together: answer):
                started = time.perf_counter()
                found = predict_scores(ours, feed, batch_size=args.batch, device=classifier.device)
                if turn:
                    times[together].append(time.perf_counter() - started)
            scores[together] = torch.from_numpy(found)
    one, each = (statistics.median(times[together]) for together in (True, False))
    words = ours.filled.sum(1).tolist()
    print(f"{len(feed)} rows, {len(words)} labels of {words} tokens, {torch.get_num_threads()} threads")
    print(f"one pass for all labels: {one:.2f} s; a pass for each: {each:.2f} s; {each / one:.2f} x")
    print(f"largest difference of scores: {(scores[True] - scores[False]).abs().max():.1e}")


if __name__ == "__main__":
    main()
