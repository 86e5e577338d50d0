"""The commands of comparisons: `lateprompt methods`, `compare`, `report`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps

from lateprompt.utils.console import print_table


def compare(
    plan: str | None = None,
    *,
    output: str,
    model: str | None = None,
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    data: str | None = None,
    shots: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    dev_rows: int | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    lr: float | None = None,
    prompt_layer: str | None = None,
    workers: int = 1,
    retry_failed: bool = False,
    dry_run: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Run a plan, or say what it would cost.

    Args:
        plan: YAML file of the plan; the options below change it
        output: folder of the results
        model: folder or hub id of the model
        methods: methods to compare (lateprompt methods lists them)
        tasks: names of tasks, or YAML files
        data: folder with TASK/train.jsonl and TASK/dev.jsonl (or test.jsonl)
        shots: training rows in all, or full
        seeds: seeds
        dev_rows: training rows that choose the best weights; default 1000
        epochs: passes over the training rows
        max_steps: optimiser steps
        lr: peak learning rate, of methods that name none
        prompt_layer: number of layers below the prompt, or a fraction
        workers: processes at a time
        retry_failed: run failed ones again
        dry_run: show what it would cost, and stop
        json: print the rows of the table as JSON
        quiet: no progress bar
    """
    from lateprompt.experiments.compare import compare as run_plan
    from lateprompt.experiments.compare import load_plan
    from lateprompt.experiments.compare.folder import check_plan_file, check_results
    from lateprompt.experiments.compare.runner import cost
    from lateprompt.experiments.compare.table import summary

    changes = {"model": model, "methods": methods, "tasks": tasks, "data": data}
    changed = load_plan(plan, {**changes, "shots": shots, "seeds": seeds, "dev_rows": dev_rows})
    recipe = {"epochs": epochs, "max_steps": max_steps, "lr": lr}
    changed.recipe.update({key: value for key, value in recipe.items() if value is not None})
    if prompt_layer is not None:
        changed.settings["prompt_layer"] = prompt_layer
    changed.check()
    results = check_results(output)
    if plan is not None:
        check_plan_file(changed, plan, results)
    if not json:
        table, seconds, source = cost(changed, results, retry_failed=retry_failed)
        print_table(("method", "runs left", "seconds"), table)
        print(f"about {seconds / 60:.0f} minutes of one process, estimated from {source}")
    if dry_run:
        return
    rows = run_plan(changed, results, workers=workers, retry_failed=retry_failed, quiet=quiet or json)
    if json:
        print(dumps(rows))
    else:
        print_table(*summary(rows))
        print(f"lateprompt report {results} makes a page of it")


def report(
    results: str,
    *,
    output: str | None = None,
    markdown: str | None = None,
    latex: str | None = None,
    figures: str | None = None,
    json: bool = False,
) -> None:
    """Write a page, tables, figures, or print the main table.

    Args:
        results: folder that lateprompt compare left, or its table of results
        output: HTML page; default report.html among the results, if nothing else is asked
        markdown: file for the main table in Markdown
        latex: file for the main table in LaTeX (booktabs)
        figures: folder for each figure as PDF and PNG
        json: print the main table as one JSON object
    """
    from lateprompt.experiments.report import write_report

    result, written = write_report(
        results, page=output, markdown_file=markdown, latex_file=latex, figures=figures, or_default=not json
    )
    if json:
        print(dumps(result, allow_nan=False))
    else:
        for path in written:
            print(f"wrote {path}")


def methods(*, json: bool = False) -> None:
    """List the methods.

    Args:
        json: print one JSON object
    """
    from lateprompt.methods import METHODS, NAMES, is_late

    if json:
        print(dumps({name: {"late": is_late(name)} for name in NAMES}))
        return
    rows = [
        (
            method.name,
            method.title,
            method.source,
            ", ".join(f"{rate:g}" for rate in dict.fromkeys((method.recipe.rate(0), method.recipe.lr))),
            f"{method.recipe.least_steps}",
            " ".join(f"{key}={'null' if value is None else value}" for key, value in method.options.items()),
            "yes" if is_late(method.name) else f"late-{method.name}" if method.late else "",
        )
        for method in METHODS.values()
    ]
    print_table(("method", "title", "source", "rate", "least steps", "--set", "late"), rows)
    print("A late prompt and a tuner can be put together: npg+late-lora")
    print("rate, least steps: where --lr, --epochs and --max-steps are left out;")
    print("of two rates the first is for fewer than 2,000 training rows")
    print("late: trains above the prompt layer only: what is below runs once for each text")
    print("read-NAME: the prompt reads the text, which never sees it: all of the frozen")
    print("model runs once for each text, for any number of tasks; read-npg+lora: with")
    print("LoRA on the prompt's own path")
    print("prompt_start (none, anchor, mean) and zero_init (true, false) say what a late")
    print("prompt begins as; null: the method's default")
