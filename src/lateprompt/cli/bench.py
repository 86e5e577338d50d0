"""The arguments and tables of `lateprompt bench` (training steps) and `lateprompt bench job` (whole jobs)."""

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
    """`bench` itself measures steps; `bench steps` and `bench job` have arguments of their own."""
    _add_steps(parser)
    kinds = parser.add_subcommands(dest="what", required=False)
    steps = type(parser)(description="training steps of several methods, side by side in one run")
    _add_steps(steps)
    kinds.add_subcommand("steps", steps, help="the default: training steps of several methods, interleaved")
    job = type(parser)(
        description="a whole job on a data file (filling trunk states, epochs, evaluations) against PEFT's methods"
    )
    for each in (parser, steps, job):
        each.allow_abbrev = False  # the outer parser would take the job's --dev for its own --device
    _add_job(job)
    kinds.add_subcommand("job", job, help="a whole job on a data file, against PEFT's prompt tuning and LoRA")


def _add_steps(parser: Parser) -> None:
    from lateprompt.experiments.bench import BenchSettings

    parser.add_class_arguments(BenchSettings)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_job(parser: Parser) -> None:
    from lateprompt.experiments.baselines import RIVALS
    from lateprompt.experiments.end_to_end import JobSettings

    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(JobSettings, skip={"rivals"})
    parser.add_argument(
        "--rivals", nargs="*", default=list(RIVALS), help=f"PEFT methods to compare with, of {', '.join(RIVALS)}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def bench(args: Namespace) -> None:
    """Run what `add_bench` has parsed."""
    if args.what is None:
        _steps(args)
        return
    _check_nothing_before(args)
    (_job if args.what == "job" else _steps)(args[args.what])


def _check_nothing_before(args: Namespace) -> None:
    """`bench --repeats 3 job`: what stands before the word belongs to neither, and must not be lost in silence."""
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
                row["method"] + (", kept states" if row["states"] else ""),
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


def _job(args: Namespace) -> None:
    from lateprompt.experiments.end_to_end import JobSettings, run_job

    result = run_job(settings_of(JobSettings, args), quiet=args.quiet or args.json)
    if args.json:
        print(json.dumps(result))
        return
    job, rows = result["job"], result["rows"]
    header = ("method", "fill, s", "epoch ends, s", "whole job, s", "in the trunk", "vs prompt tuning")
    print_table((*header, f"dev {job['metric']}", "trained"), [_job_row(row) for row in rows])
    for row in rows:
        if row["extrapolated"]:
            print(
                f"~ {row['method']}: measured {row['measured_seconds']:.1f} s for {row['steps_measured']} of "
                f"{row['steps']} steps; the time of the whole job is extrapolated from them, and the dev "
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


def _job_row(row: dict[str, Any]) -> tuple[str, ...]:
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
