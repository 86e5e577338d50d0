"""The arguments of `lateprompt predict`, and what it does: rows in, predictions out, as they come."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lateprompt.cli.evaluate import add_run, load
from lateprompt.cli.interruption import exit_code
from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.cli.parser import Parser

SKIPPED = 3
"""The exit code of a predict that is through, with rows that have an error in their place."""


def add_predict(parser: Parser) -> None:
    """Its arguments."""
    add_run(parser, several=True)
    parser.add_argument("--data", type=str, required=True, help="file of rows; labels are not needed, and not read")
    parser.add_argument(
        "--output",
        type=str,
        default="-",
        help="file for the predictions, by its suffix: .csv, .tsv, .parquet, JSON lines for any other; .gz behind a "
        "text's; - for the screen (JSON lines)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output file even if it is no file of predictions"
    )
    parser.add_argument(
        "--on_error",
        choices=["stop", "skip"],
        default="stop",
        help="a row that cannot be predicted: stop (all rows are checked before the first is computed), or skip (it "
        f"gets prediction null and an error in its place; exit code {SKIPPED}, the number of such rows on stderr)",
    )
    parser.add_argument("--text_column", type=str | None, help="the column of the text; default the run's, or text")
    parser.add_argument(
        "--text_pair_column", type=str | None, help="the column of the second text; default the run's, or text_pair"
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="write the frozen model's own state of each text, too (a mean or the last)",
    )
    parser.add_argument("--beams", type=int | None, help="text-to-text: beams to search the answer with; default 1")
    parser.add_argument("--max_new_tokens", type=int | None, help="text-to-text: most tokens of an answer")


def predict(args: Namespace) -> int:
    """Run what `add_predict` has parsed.

    Returns:
        The exit code: 0, 3 with rows that have an error, 130 after SIGINT and 143 after SIGTERM.
    """
    left = [""]
    try:
        return _predict(args, left)
    except KeyboardInterrupt as stop:
        print(f"lateprompt: interrupted; {left[0] or 'nothing was written'}", file=sys.stderr)
        return exit_code(stop)


def _predict(args: Namespace, left: list[str]) -> int:
    from lateprompt.predictors.outputs import PredictionFile, check_existing
    from lateprompt.predictors.text_generator import TextWriter
    from lateprompt.training.distributed import processes
    from lateprompt.utils.files import check_output

    main = processes().is_main  # of several that a launcher started, one writes
    _check(args)
    if args.output != "-" and main:
        check_output(args.output, inputs=[args.data, *args.run, *([args.model] if args.model else [])])
        names = [Path(run).name or Path(run).resolve().name for run in args.run] if _many(args) else []
        check_existing(args.output, overwrite=args.overwrite, tasks=names)
    tuned = _load(args)
    writes = isinstance(tuned, TextWriter)
    if not writes:
        _refuse_writing(args)
    file = PredictionFile(
        args.output if main else os.devnull,
        labels=_labels(tuned),
        errors=args.on_error == "skip",
        overwrite=args.overwrite,
        embeddings=args.embeddings,
    )
    file.survey = _survey(args, tuned, table=file.format.table)
    try:
        _write(args, tuned, file, quiet=args.output == "-" or not main)
    except LatePromptError as error:
        raise LatePromptError(f"{error}; {file.left}" if file.left else str(error)) from None
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        left[0] = file.left
        raise
    except BaseException:
        if file.left:
            print(f"lateprompt: {file.left}", file=sys.stderr)
        raise
    left[0] = "all rows are written"
    return _sum_up(file) if main else 0


def _many(args: Namespace) -> bool:
    return len(args.run) > 1 or bool(args.embeddings)


def _load(args: Namespace) -> Any:
    """The classifier or writer of a run, or the `MultiTask` of several."""
    places = {"model": args.model, "device": args.device}
    if not _many(args):
        ignored = args.ignore_fingerprint
        return load(args.run[0], ignore_fingerprint=ignored, batch_size=args.batch_size, **places)
    from lateprompt.predictors.multi_task import MultiTask

    if args.batch_size < 1:
        raise LatePromptError(f"batch_size {args.batch_size!r} is too small; give a whole number from 1")
    return MultiTask.load(args.run, check_model=not args.ignore_fingerprint, **places)


def _labels(tuned: Any) -> Any:
    """The labels of a run, or by task of several; None where texts are written."""
    from lateprompt.predictors.multi_task import MultiTask
    from lateprompt.predictors.text_generator import TextWriter

    if isinstance(tuned, MultiTask):
        return {name: one.task.labels for name, one in tuned.tasks.items()}
    return None if isinstance(tuned, TextWriter) else tuned.task.labels


def _rows(args: Namespace, tuned: Any) -> Iterator[Any]:
    from lateprompt.data import iter_rows
    from lateprompt.predictors.multi_task import MultiTask

    task = tuned.reading_task(args.text_column is not None) if isinstance(tuned, MultiTask) else tuned.task
    columns = {"text": args.text_column, "text_pair": args.text_pair_column}
    return iter_rows(args.data, task=task, labelled=False, split="test", columns=columns, on_error=args.on_error)


def _survey(args: Namespace, tuned: Any, *, table: bool) -> Any:
    """What a first pass over the rows tells, where one is needed: to stop before any work, or for a table's columns."""
    from lateprompt.predictors.outputs import Survey
    from lateprompt.predictors.predicting import check_rows

    if args.on_error == "skip" and not table:
        return None
    rows = _rows(args, tuned)
    return Survey().of(rows if args.on_error == "skip" else check_rows(tuned, rows, max_new_tokens=args.max_new_tokens))


def _write(args: Namespace, tuned: Any, file: Any, *, quiet: bool) -> None:
    from lateprompt.predictors.predicting import predict_windows
    from lateprompt.utils.console import Bar

    total = None if file.survey is None else file.survey.rows
    with file, Bar("predicting", total, quiet=quiet, rate="rows/s") as bar:
        for part in predict_windows(
            tuned,
            _rows(args, tuned),
            batch_size=args.batch_size,
            on_error=args.on_error,
            beams=args.beams or 1,
            max_new_tokens=args.max_new_tokens,
            embeddings=args.embeddings,
            progress=bar.advance,
        ):
            file.write(part)


def _sum_up(file: Any) -> int:
    for name, kept in file.columns.renamed.items():
        print(f"lateprompt: the input's column {name!r} is {kept!r} in the output", file=sys.stderr)
    if not file.errors:
        return 0
    print(
        f"lateprompt: {file.errors:,} of {file.rows:,} rows could not be predicted; each has the reason in its column "
        "'error'",
        file=sys.stderr,
    )
    return SKIPPED


def _check(args: Namespace) -> None:
    for name in ("beams", "max_new_tokens"):
        if args[name] is not None and args[name] < 1:
            raise LatePromptError(f"{name} {args[name]!r} is too small; give a whole number from 1")


def _refuse_writing(args: Namespace) -> None:
    for name in ("beams", "max_new_tokens"):
        if args[name] is not None:
            raise LatePromptError(f"{name} {args[name]!r} is for runs that write text; {args.run[0]!r} predicts labels")
