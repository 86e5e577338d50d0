"""`lateprompt evaluate`, and what it shares with `predict`: a saved run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lateprompt.cli.figures import print_metrics
from lateprompt.utils.errors import LatePromptError

SCREEN = "-"
if TYPE_CHECKING:
    from lateprompt.cli.parser import Parser


def add_run(parser: Parser, *, several: bool = False) -> None:
    """Arguments of what works with a saved run (or several): which, and where it is computed."""
    if several:
        text = "run folders of lateprompt train; several: of one base model, which runs once for all"
        parser.add_argument("run", nargs="+", type=str, help=text)
    else:
        parser.add_argument("run", type=str, help="run folder of lateprompt train")
    parser.add_argument("--model", type=str | None, help="where the base model is, if not where it was")
    parser.add_argument(
        "--ignore_fingerprint", action="store_true", help="take a base model with other weights than it was trained on"
    )
    parser.add_argument("--device", type=str | None, help="where to run; default a GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=64, help="rows in a batch")


def load(run: str, *, model: str | None, ignore_fingerprint: bool, device: str | None, batch_size: int) -> Any:
    """The classifier or writer of a run; LatePromptError for a batch size that cannot be, too."""
    from lateprompt.predictors.kinds import load_run

    if batch_size < 1:
        raise LatePromptError(f"batch_size {batch_size!r} is too small; give a whole number from 1")
    return load_run(run, model=model, device=device, check_model=not ignore_fingerprint)


def evaluate(
    run: str,
    *,
    data: Sequence[str],
    model: str | None = None,
    ignore_fingerprint: bool = False,
    device: str | None = None,
    batch_size: int = 64,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    target_column: str | None = None,
    errors: str | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Print the metrics of a run on labelled rows; of a classifier class by class too, with the confusion matrix.

    Args:
        run: run folder of lateprompt train
        data: files of labelled rows
        model: where the base model is, if not where it was
        ignore_fingerprint: take a base model with other weights than it was trained on
        device: where to run; default a GPU if there is one
        batch_size: rows in a batch
        text_column: column with the texts; default the run's
        text_pair_column: column with the second texts; default the run's
        label_column: column with the labels; default the run's
        target_column: column with the texts to be written; default the run's
        errors: file for the rows that are predicted wrongly, the most confident mistakes first; .csv, .tsv, .parquet,
            JSON lines for any other suffix
        overwrite: replace a file of errors even if it is none
        json: print one JSON object, with all classes and the whole confusion matrix
    """
    from lateprompt.cli.figures import print_assessments
    from lateprompt.data import TextTask, read_rows
    from lateprompt.data.row_checks import unknown_labels, warn_unknown
    from lateprompt.predictors.outputs import write_mistakes
    from lateprompt.training.distributed import processes

    if errors is not None:
        _check_errors(errors, data, [run, *([model] if model else [])], overwrite=overwrite)
    classifier = load(run, model=model, ignore_fingerprint=ignore_fingerprint, device=device, batch_size=batch_size)
    columns = {"text": text_column, "text_pair": text_pair_column, "label": label_column, "target": target_column}
    rows = {
        path: read_rows(path, task=classifier.task, split="validation", columns=columns, any_label=True)
        for path in data
    }
    for path, part in rows.items():
        warn_unknown(unknown_labels(part, classifier.task), len(part), path)
    if isinstance(classifier.task, TextTask):
        if errors is not None:
            raise LatePromptError(f"errors {errors!r} is for runs that predict labels; {run!r} writes text")
        results = {path: classifier.evaluate(part, batch_size=batch_size) for path, part in rows.items()}
        print_metrics(results, as_json=json, single=len(results) == 1)
        return
    found = {path: classifier.assess(part, batch_size=batch_size) for path, part in rows.items()}
    print_assessments(found, as_json=json)
    if errors is not None and processes().is_main:
        number = write_mistakes(errors, rows[data[0]], found[data[0]], overwrite=overwrite)
        print(f"lateprompt: {number:,} of {len(rows[data[0]]):,} rows are predicted wrongly: {errors}", file=sys.stderr)


def _check_errors(errors: str, data: Sequence[str], inputs: Sequence[str], *, overwrite: bool) -> None:
    """Raise LatePromptError for a file of errors that cannot be, before anything is loaded."""
    from lateprompt.predictors.outputs import check_existing
    from lateprompt.predictors.outputs.formats import format_of
    from lateprompt.utils.files import check_output

    if len(data) > 1:
        raise LatePromptError(f"errors {errors!r} is for one file of rows, but there are {len(data)}; give one --data")
    if errors == SCREEN:
        raise LatePromptError(f"errors {errors!r} is the screen, which has the tables; give a file")
    format_of(errors)
    check_output(errors, inputs=[*data, *inputs])
    check_existing(errors, overwrite=overwrite)
