"""A worker process: takes runs as JSON lines on its input, leaves a result file for each.

Runs of one method on one model share a process, so that starting one is paid once. Peak memory begins anew with each
run, from what the process holds then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from lateprompt.experiments.compare.plan import RunSpec
from lateprompt.predictors.kinds import Classifier
from lateprompt.predictors.multi_label import MultiLabelClassifier
from lateprompt.runs.data import TEST
from lateprompt.runs.environment import peak_memory_bytes, reset_peak_memory, versions
from lateprompt.runs.pipeline import Pipeline
from lateprompt.runs.saving import HISTORY_FILE
from lateprompt.runs.train import check_run, train_model
from lateprompt.training.metrics import compute_metrics, primary_metric
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import write_json, write_lines

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.jsonl"


def run_one(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Train, score the test rows once, and leave history, predictions and, last, the result in `folder`."""
    check_run(spec.settings, spec.data, spec.recipe, spec.states)
    reset_peak_memory()
    pipeline = train_model(spec.settings, spec.data, spec.recipe, spec.states)
    test = _score_tests(pipeline, folder)
    metric = primary_metric(pipeline.rows.task.metrics)
    row = {
        "metric": metric,
        "dev": pipeline.result.metrics.get(metric),
        "test": next((values[metric] for values in test.values()), None),
        **{f"test_{name}": value for values in test.values() for name, value in values.items() if name != "loss"},
        **pipeline.costs(),
        "peak_memory_bytes": peak_memory_bytes(pipeline.tuned.device),
        "status": "done",
        "error": "",
        "prompt_layer": pipeline.tuned.prompt_layer,
        "calibration": pipeline.calibrated.get("calibration"),
        "versions": versions(),
    }
    write_lines(folder / HISTORY_FILE, pipeline.result.history)
    write_json(folder / RESULT_FILE, row)
    return row


def _score_tests(pipeline: Pipeline, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics of the test sets by path, from one pass over their rows that gives the file of predictions too."""
    tuned, batch_size, values = pipeline.tuned, pipeline.recipe.eval_batch_size, {}
    assert isinstance(tuned, Classifier)  # a plan's tasks have labels
    for path, rows in pipeline.rows.test.items():
        feed = pipeline.batches[pipeline.rows.name_of(path, TEST)]
        scores = tuned.batch_scores(feed, batch_size=batch_size)
        if isinstance(tuned, MultiLabelClassifier):  # a file of predictions has one label a row
            measured = tuned.measure(scores, feed)
            values[path] = {name: value for name, value in measured.items() if isinstance(value, float)}
            continue
        values[path] = compute_metrics(tuned.task.metrics, feed.labels, scores.argmax(1), scores.shape[1])
        values[path] |= tuned.calibration.errors(scores, feed.labels)
        probabilities, labels = tuned.probabilities_of(scores), tuned.task.labels
        lines = []
        for row, scored, best in zip(rows, probabilities, scores.argmax(1).tolist(), strict=True):
            pair = {} if row.text_pair is None else {"text_pair": row.text_pair}
            found = {"label": row.label, "prediction": labels[best], "probability": round(float(scored[best]), 6)}
            lines.append({"text": row.text, **pair, **found})
        write_lines(folder / PREDICTIONS_FILE, lines)
    return values


def main() -> None:
    """Work until the input ends: a line is `{"folder": …, "run": …}`; the answer is one word."""
    warnings.simplefilter("ignore", FutureWarning)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        given = json.loads(line)
        folder = Path(given["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            run_one(RunSpec.from_json(given["run"]), folder)
        except Exception as error:  # whatever goes wrong in a run is its result, and the next one goes on
            traceback.print_exc()
            kind = "" if isinstance(error, LatePromptError) else f"{type(error).__name__}: "
            fail(folder, f"{kind}{error}")
        print("done", file=answers, flush=True)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: a run of its own may already be going on elsewhere."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def fail(folder: Path, error: str) -> None:
    """Leave a failed result."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT_FILE, {"status": "failed", "error": " ".join(error.split())[:500]})


if __name__ == "__main__":
    main()
