"""The commands of comparisons: `lateprompt methods`, `compare`, `report`."""

from __future__ import annotations

import json

from jsonargparse import Namespace

from lateprompt.cli.parser import Parser
from lateprompt.utils.console import print_table


def add_compare(parser: Parser) -> None:
    """Its arguments."""
    parser.add_argument("plan", type=str | None, nargs="?", help="YAML file of the plan; the options below change it")
    parser.add_argument("--output", type=str, required=True, help="folder of the results")
    parser.add_argument("--model", type=str | None, help="folder or hub id of the model")
    parser.add_argument("--methods", nargs="+", help="methods to compare (lateprompt methods lists them)")
    parser.add_argument("--tasks", nargs="+", help="names of tasks, or YAML files")
    parser.add_argument(
        "--data", type=str | None, help="folder with TASK/train.jsonl and TASK/dev.jsonl (or test.jsonl)"
    )
    parser.add_argument("--shots", nargs="+", help="training rows in all, or full")
    parser.add_argument("--seeds", nargs="+", help="seeds")
    parser.add_argument("--dev_rows", type=int | None, help="training rows that choose the best weights; default 1000")
    parser.add_argument("--epochs", type=int | None, help="passes over the training rows")
    parser.add_argument("--steps", type=int | None, help="optimiser steps")
    parser.add_argument("--lr", type=float | None, help="peak learning rate, of methods that name none")
    parser.add_argument("--prompt_layer", type=str | None, help="number of layers below the prompt, or a fraction")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--retry_failed", action="store_true", help="run failed ones again")
    parser.add_argument("--dry_run", action="store_true", help="show what it would cost, and stop")
    parser.add_argument("--json", action="store_true", help="print the rows of the table as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def compare(args: Namespace) -> None:
    """Run a plan, or say what it would cost."""
    from lateprompt.experiments.compare import compare as run_plan
    from lateprompt.experiments.compare import load_plan
    from lateprompt.experiments.compare.folder import check_plan_file, check_results
    from lateprompt.experiments.compare.runner import cost
    from lateprompt.experiments.compare.table import summary

    names = ("model", "methods", "tasks", "data", "shots", "seeds", "dev_rows")
    changes = {name: getattr(args, name) for name in names}
    plan = load_plan(args.plan, changes)
    for part, keys in (("recipe", ("epochs", "steps", "lr")), ("settings", ("prompt_layer",))):
        getattr(plan, part).update({key: getattr(args, key) for key in keys if getattr(args, key) is not None})
    plan.check()
    results = check_results(args.output)
    if args.plan is not None:
        check_plan_file(plan, args.plan, results)
    if not args.json:
        table, seconds, source = cost(plan, results, retry_failed=args.retry_failed)
        print_table(("method", "runs left", "seconds"), table)
        print(f"about {seconds / 60:.0f} minutes of one process, estimated from {source}")
    if args.dry_run:
        return
    rows = run_plan(plan, results, workers=args.workers, retry_failed=args.retry_failed, quiet=args.quiet or args.json)
    if args.json:
        print(json.dumps(rows))
    else:
        print_table(*summary(rows))
        print(f"lateprompt report {results} makes a page of it")


def add_report(parser: Parser) -> None:
    """Its arguments."""
    parser.add_argument("results", type=str, help="folder that lateprompt compare left, or its table of results")
    parser.add_argument(
        "--output", type=str | None, help="HTML page; default report.html among the results, if nothing else is asked"
    )
    parser.add_argument("--markdown", type=str | None, help="file for the main table in Markdown")
    parser.add_argument("--latex", type=str | None, help="file for the main table in LaTeX (booktabs)")
    parser.add_argument("--figures", type=str | None, help="folder for each figure as PDF and PNG")
    parser.add_argument("--json", action="store_true", help="print the main table as one JSON object")


def report(args: Namespace) -> None:
    """Write a page, tables, figures, or print the main table."""
    from lateprompt.experiments.report import write_report

    result, written = write_report(
        args.results,
        page=args.output,
        markdown_file=args.markdown,
        latex_file=args.latex,
        figures=args.figures,
        or_default=not args.json,
    )
    if args.json:
        print(json.dumps(result, allow_nan=False))
    else:
        for path in written:
            print(f"wrote {path}")


def add_methods(parser: Parser) -> None:
    """Its arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def methods(args: Namespace) -> None:
    """List the methods."""
    from lateprompt.methods import METHODS, NAMES, is_late

    if args.json:
        print(json.dumps({name: {"late": is_late(name)} for name in NAMES}))
        return
    rows = [
        (
            method.name,
            method.title,
            method.source,
            " ".join(f"{key}={'null' if value is None else value}" for key, value in method.options.items()),
            "yes" if is_late(method.name) else f"late-{method.name}" if method.late else "",
        )
        for method in METHODS.values()
    ]
    print_table(("method", "title", "source", "--set", "late"), rows)
    print("A late prompt and a tuner can be put together: npg+late-lora")
