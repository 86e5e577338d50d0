"""The arguments of `lateprompt evaluate`, and what it does; what it shares with `predict`: a saved run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lateprompt.cli.arguments import add_columns, columns_of
from lateprompt.cli.figures import print_metrics
from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.cli.parser import Parser


def add_evaluate(parser: Parser) -> None:
    """Its arguments."""
    add_run(parser)
    parser.add_argument("--data", nargs="+", required=True, help="files of labelled rows")
    add_columns(parser, "default the run's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_run(parser: Parser) -> None:
    """Arguments of what works with a saved run: which, and where it is computed."""
    parser.add_argument("run", type=str, help="run folder of lateprompt train")
    parser.add_argument("--model", type=str | None, help="where the base model is, if not where it was")
    parser.add_argument(
        "--ignore_fingerprint", action="store_true", help="take a base model with other weights than it was trained on"
    )
    parser.add_argument("--device", type=str | None, help="where to run; default a GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=64, help="rows in a batch")


def load(args: Namespace) -> Any:
    """The classifier or writer of the run that `add_run` has parsed."""
    from lateprompt.predictors.kinds import load_run

    if args.batch_size < 1:
        raise LatePromptError(f"batch_size {args.batch_size!r} is too small; give a whole number from 1")
    return load_run(args.run, model=args.model, device=args.device, check_model=not args.ignore_fingerprint)


def evaluate(args: Namespace) -> None:
    """Run what `add_evaluate` has parsed."""
    from lateprompt.data import read_rows
    from lateprompt.data.row_checks import unknown_labels, warn_unknown

    classifier = load(args)
    rows = {
        path: read_rows(path, task=classifier.task, split="validation", columns=columns_of(args), any_label=True)
        for path in args.data
    }
    for path, part in rows.items():
        warn_unknown(unknown_labels(part, classifier.task), len(part), path)
    results = {path: classifier.evaluate(part, batch_size=args.batch_size) for path, part in rows.items()}
    print_metrics(results, as_json=args.json, single=len(results) == 1)
