"""The arguments and tables of `lateprompt bench`: training steps, whole trainings (`end-to-end`), and `tasks`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from jsonargparse import Namespace

from lateprompt.cli.arguments import settings_of
from lateprompt.cli.parser import Parser
from lateprompt.utils.console import print_table
from lateprompt.utils.errors import LatePromptError


def add_bench(parser: Parser) -> None:
    """`bench` itself measures steps; `bench steps` and `bench end-to-end` have arguments of their own."""
    _add_steps(parser)
    kinds = parser.add_subcommands(dest="what", required=False)
    steps = type(parser)(description="training steps of several methods, side by side in one run")
    _add_steps(steps)
    kinds.add_subcommand("steps", steps, help="the default: training steps of several methods, interleaved")
    end_to_end = type(parser)(
        description="a whole training on a data file (filling trunk states, epochs, evaluations) against PEFT's methods"
    )
    tasks = type(parser)(description="many tasks on the same texts, answered by one pass of the frozen model")
    _add_tasks(tasks)
    for each in (parser, steps, end_to_end, tasks):
        each.allow_abbrev = False  # the outer parser would take the other's --dev for its own --device
    _add_end_to_end(end_to_end)
    kinds.add_subcommand(
        "end-to-end",
        end_to_end,
        help="a whole training on a data file, against PEFT's prompt tuning and LoRA (also: job)",
        aliases=["job"],
    )
    kinds.add_subcommand("tasks", tasks, help="many tasks on the same texts, against a model for each")


def _add_steps(parser: Parser) -> None:
    from lateprompt.experiments.bench import BenchSettings

    parser.add_class_arguments(BenchSettings)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_tasks(parser: Parser) -> None:
    from lateprompt.experiments.bench_tasks import TasksBenchSettings

    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(TasksBenchSettings)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_end_to_end(parser: Parser) -> None:
    from lateprompt.experiments.end_to_end import EndToEndSettings
    from lateprompt.experiments.methods import BASELINES

    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(EndToEndSettings, skip={"baselines", "baseline_epochs"})
    parser.add_argument(
        "--baselines",
        "--rivals",
        nargs="*",
        default=list(BASELINES),
        help=f"PEFT methods to compare with, of {', '.join(BASELINES)}",
    )
    parser.add_argument(
        "--baseline_epochs",
        "--rival_epochs",
        type=int | None,
        help="stop PEFT's methods after so many epochs and extrapolate their time; default they go to the end",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def bench(args: Namespace) -> None:
    """Run what `add_bench` has parsed."""
    if args.what is None:
        _steps(args)
        return
    _check_nothing_before(args)
    {"steps": _steps, "tasks": _tasks}.get(args.what, _end_to_end)(args[args.what])


def _check_nothing_before(args: Namespace) -> None:
    """`bench --repeats 3 end-to-end`: what stands before the word belongs to neither, and must not be lost."""
    from lateprompt.experiments.bench import BenchSettings

    defaults = {field.name: field.default for field in fields(BenchSettings)} | {"json": False}
    for name, default in defaults.items():
        if str(getattr(args, name)) != str(default):  # "0.5" was parsed to a number
            flag = f"--{name.replace('_', '-')}"
            raise LatePromptError(
                f"{flag} {getattr(args, name)!r} stands before {args.what!r}; put the flags of bench {args.what} "
                f"after it (lateprompt bench {args.what} --help lists them)"
            )


_AGAINST_BASELINE = ("speed_vs_prompt_tuning", "peak_memory_bytes", "memory_vs_prompt_tuning")


def _steps(args: Namespace) -> None:
    from lateprompt.experiments.bench import BenchSettings, run_bench

    result = run_bench(settings_of(BenchSettings, args))
    if args.json:
        print(json.dumps(result))
        return
    longest = max(row["tokens_per_second"] for row in result["rows"])
    rows = []
    for row in result["rows"]:
        bar = "█" * max(1, round(16 * row["tokens_per_second"] / longest))
        speed, size, share = (row[key] for key in _AGAINST_BASELINE)
        rows.append(
            (
                row["method"] + (", cached states" if row["states"] else ""),
                row["dtype"],
                f"{row['step_ms']:.0f}",
                f"{row['tokens_per_second']:,.0f}",
                "" if speed is None else f"{speed:.2f} x",
                f"{row['ceiling_fraction']:.0%}",
                "" if size is None else f"{size / 1e9:.2f} GB",
                "" if share is None else f"{share:.2f} x",
                bar,
            )
        )
    header = ("method", "dtype", "step, ms", "tokens/s", "speed", "of ceiling", "peak memory", "memory", "tokens/s")
    print_table(header, rows)
    print("speed and memory: against prompt tuning 20 by PEFT")
    print(f"matrix-product ceiling: {result['ceiling_gflops']:.0f} GFLOP/s")


def _tasks(args: Namespace) -> None:
    from lateprompt.experiments.bench_tasks import TasksBenchSettings, run_bench_tasks

    result = run_bench_tasks(settings_of(TasksBenchSettings, args))
    if args.json:
        print(json.dumps(result))
        return
    header = ("tasks", "one pass, ms", "plain passes", "common trunk, ms", "a model each, ms", "speed")
    rows = [
        (
            f"{row['tasks']}",
            f"{row['ms']:.0f}",
            f"{row['plain_passes']:.2f}",
            "" if row["shared_trunk_ms"] is None else f"{row['shared_trunk_ms']:.0f}",
            f"{row['separate_ms']:.0f}",
            f"{row['speed_vs_separate']:.2f} x",
        )
        for row in result["rows"]
    ]
    print_table(header, rows)
    mixed = result["mixed"]
    print(
        f"read-only prompts of {result['num_prompt_tokens']} vectors; a plain pass of the frozen model takes "
        f"{result['plain_ms']:.0f} ms; a model each: as many times one late prompt"
    )
    print(
        f"one task a row: {mixed['one_task_a_row_ms']:.0f} ms, one task for all rows: {mixed['one_task_ms']:.0f} ms "
        f"({mixed['speed_vs_one_task']:.2f} x the speed)"
    )


def _end_to_end(args: Namespace) -> None:
    from lateprompt.experiments.end_to_end import EndToEndSettings, run_end_to_end

    result = run_end_to_end(settings_of(EndToEndSettings, args), quiet=args.quiet or args.json)
    if args.json:
        print(json.dumps(result))
        return
    job, rows = result["job"], result["rows"]
    header = ("method", "fill, s", "epoch ends, s", "in all, s", "in the trunk", "vs prompt tuning")
    print_table((*header, f"dev {job['metric']}", "trained"), [_row(row) for row in rows])
    for row in rows:
        if row["extrapolated"]:
            print(
                f"~ {row['method']}: measured {row['measured_seconds']:.1f} s for {row['steps_measured']} of "
                f"{row['steps']} steps; the time in all is extrapolated from them, and the dev "
                f"{job['metric']} is the one after them"
            )
    rest = "; all other times are measured" if any(row["extrapolated"] for row in rows) else ": all times are measured"
    print(f"~ marks what is extrapolated{rest}")
    print(
        f"{job['train_rows']['rows']} training rows, {job['dev_rows']['rows']} dev rows, {rows[0]['steps']} steps; "
        "loading the model and encoding the rows are counted for none"
    )
    machine = result["machine"]
    print(f"{machine['device']}, {machine['cpus']} CPUs, {machine['threads']} threads, torch {machine['torch']}")
    busy = (machine["load_before"] or 0.0) > machine["cpus"] / 2
    if busy and machine["threads"] > 1 and (machine["wait_policy"] or "").lower() != "passive":
        print(
            f"the machine was busy (load {machine['load_before']:.1f}), so these times may be unfair to some methods; "
            "measure on a quiet one, or with OMP_WAIT_POLICY=passive"
        )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    ends = [f"{seconds:.1f}" for seconds in row["seconds_to_epoch_end"]]
    shown = ends if len(ends) <= 3 else [*ends[:2], "…", ends[-1]]
    speed = row["speed_vs_prompt_tuning"]
    return (
        row["method"],
        "" if row["fill_seconds"] is None else f"{row['fill_seconds']:.1f}",
        " ".join(shown),
        f"{'~ ' if row['extrapolated'] else ''}{row['total_seconds']:.1f}",
        "" if row["trunk_share"] is None else f"{row['trunk_share']:.1%}",
        "" if speed is None else f"{'~ ' if row['speed_extrapolated'] else ''}{speed:.2f} x",
        "" if row["dev"] is None else f"{row['dev']:.3f}",
        f"{row['trainable_parameters']:,}",
    )
