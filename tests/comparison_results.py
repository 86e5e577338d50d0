"""Made-up results of a comparison, as `lateprompt compare` leaves them: plausible figures, the same every time."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from lateprompt.experiments.report.results import COLUMNS

# Name to final score, parameters, tokens per second, bytes, and share of the way learnt per evaluation.
METHODS = {
    "full": (0.905, 355_359_744, 310.0, 9.8e9, 0.6),
    "prompt tuning 20": (0.842, 20_480, 470.0, 6.1e9, 0.22),
    "lora": (0.893, 786_432, 520.0, 6.4e9, 0.45),
    "head": (0.790, 2_050, 2350.0, 1.3e9, 0.5),
    "npg": (0.878, 791_680, 1120.0, 2.9e9, 0.4),
    "mppg": (0.884, 263_296, 1150.0, 2.8e9, 0.38),
}
TASKS = {
    "sst2": ("accuracy", 0.0, ("negative", "positive")),
    "mrpc": ("accuracy_f1_mean", -0.09, ("No", "Yes")),
    "rte": ("accuracy", -0.17, ("entailment", "not_entailment")),
    "subj": ("accuracy", 0.04, ("objective", "subjective")),
    "trec": ("accuracy", -0.02, ("Description", "Entity", "Expression", "Human", "Location", "Number")),
}
SEEDS = (13, 21, 42)
SHOTS: tuple[int | str, ...] = (100, 500)
WORDS = (  # noqa: SIM905
    "a gem of a film , warm and wise , that never quite becomes the thing it promises to be in its first ten "
    "minutes , dull in places , and yet the cast keeps it alive by the river"
).split()


def write_results(
    folder: Path,
    *,
    methods: Sequence[str] = tuple(METHODS),
    tasks: Sequence[str] = tuple(TASKS),
    seeds: Sequence[int] = SEEDS,
    shots: Sequence[int | str] = SHOTS,
    files: bool = True,
) -> list[dict]:
    """Write results.csv and the run folders; returns the rows."""
    rows = [
        _run(folder, method, task, seed, number, files)
        for method in methods
        for task in tasks
        for number in shots
        for seed in seeds
    ]
    save_rows(folder, rows)
    return rows


def save_rows(folder: Path, rows: Sequence[dict]) -> Path:
    """Write results.csv alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def fail(row: dict, error: str) -> None:
    """Turn a row into that of a failed run."""
    row.update(dict.fromkeys(("dev", "test", "steps", "train_seconds", "tokens_per_second"), ""))
    row.update(status="failed", error=error)


def _run(folder: Path, method: str, task: str, seed: int, shots: int | str, files: bool) -> dict:
    chance = random.Random(f"{method} {task} {seed} {shots}")
    top, parameters, speed, memory, rate = METHODS.get(method, (0.85, 1000, 900.0, 2e9, 0.3))
    metric, harder, labels = TASKS.get(task, ("accuracy", 0.0, ("no", "yes")))
    fewer = 0.0 if shots == "full" else 0.9 / math.sqrt(float(shots)) * (1.5 if method == "full" else 1.0)
    final = min(0.99, top + harder - fewer + chance.gauss(0, 0.012))
    run = f"runs/{method.replace(' ', '-')}/{task}/{shots}/{seed}".replace("<", "").replace(">", "")
    steps, seconds = 1000, 1000 * 16 * 48 / speed
    if files:
        _files(folder / run, chance, metric, final, rate, steps, seconds, labels, task)
    values = {
        "method": method,
        "task": task,
        "shots": shots,
        "seed": seed,
        "model": "roberta-large",
        "settings": json.dumps(
            {"learning_rate": 1e-3 if "p" in method else 5e-4, "batch_size": 16, "max_steps": 1000, "prompt_layer": 12}
        ),
        "metric": metric,
        "dev": round(final + chance.gauss(0, 0.006), 6),
        "test": round(final, 6),
        "trainable_parameters": parameters,
        "steps": steps,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(speed * chance.uniform(0.95, 1.05), 2),
        "peak_memory_bytes": int(memory * chance.uniform(0.98, 1.02)),
        "trunk_fill_seconds": 4.2 if method in ("npg", "mppg", "head") else "",
        "status": "done",
        "error": "",
        "run": run,
        "test_f1": round(final - 0.02, 6) if task == "mrpc" else "",
        "hostname": "not shown",
    }
    assert set(COLUMNS) < set(values)
    return values


def _files(folder, chance, metric, final, rate, steps, seconds, labels, task) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start, history = 1 / len(labels), []
    for step in range(100, steps + 1, 100):
        learnt = 1 - math.exp(-rate * step / 100)
        score = min(0.99, start + (final - start) * learnt + chance.gauss(0, 0.006))
        history.append(
            {
                "step": step,
                "epoch": step / 10,
                "seconds": round(seconds * step / steps, 2),
                "train_loss": round(0.1 + 0.6 * (1 - learnt), 4),
                f"dev_{metric}": round(score, 6),
            }
        )
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")
    rows = random.Random(task)
    predictions = []
    for _ in range(120):
        start_word = rows.randrange(len(WORDS) - 12)
        label = rows.choice(labels)
        right = chance.random() < final
        line = {
            "text": " ".join(WORDS[start_word : start_word + rows.randrange(6, 22)]),
            "label": label,
            "prediction": label if right else chance.choice([other for other in labels if other != label]),
            "probability": round(chance.uniform(1 / len(labels), 1.0), 4),
        }
        if task in ("mrpc", "rte"):
            line["text_pair"] = " ".join(rows.sample(WORDS, 8))
        predictions.append(line)
    text = "".join(json.dumps(line) + "\n" for line in predictions)
    (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
