"""The command line: one table from command to function. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from lateprompt.arguments import settings_of
from lateprompt.bench_cli import add_bench, bench
from lateprompt.compare_cli import add_compare, add_methods, add_report, compare, methods, report
from lateprompt.errors import LatePromptError
from lateprompt.predict_cli import add_predict, predict
from lateprompt.progress import print_table


class _Parser(ArgumentParser):
    """Options with dashes, and one line for an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line; exit code 2."""
        line = " ".join(str(message).split())
        print(f"lateprompt: {line}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        text = super().format_help(*args, **kwargs)
        return re.sub(r"--[a-z][a-z_]+", lambda match: match[0].replace("_", "-"), text)


def _dashes_to_underscores(argument: str) -> str:
    """`--prompt-layer=3` to `--prompt_layer=3`; values stay as they are."""
    if not re.match(r"--[a-z]", argument):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _add_train(parser: _Parser) -> None:
    from lateprompt.run import DataSettings
    from lateprompt.training.kept import StatesSettings
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    parser.add_class_arguments(ModelSettings, skip={"trunk_dropout", "options"})
    parser.add_argument("--set", nargs="+", default=[], help="the method's own options: key=value …, e.g. r=16")
    parser.add_argument(
        "--trunk_dropout",
        action="store_true",
        help="keep dropout in the frozen trunk while training, as the authors do",
    )
    parser.add_class_arguments(DataSettings, skip={"dev", "test"})
    parser.add_argument("--dev", nargs="+", default=[], help="files of rows that choose the best weights (the first)")
    parser.add_argument("--test", nargs="+", default=[], help="files of rows that are scored once, at the end")
    parser.add_class_arguments(RecipeSettings)
    parser.add_class_arguments(StatesSettings)
    parser.add_argument("--output", type=str, required=True, help="folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="empty the folder first")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _train(args: Namespace) -> None:
    from lateprompt.methods import parse_options
    from lateprompt.run import DataSettings, train_run
    from lateprompt.training.kept import StatesSettings
    from lateprompt.training.parallel import processes
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    args.options = parse_options(args.set)
    _, measured = train_run(
        settings_of(ModelSettings, args),
        settings_of(DataSettings, args),
        settings_of(RecipeSettings, args),
        Path(args.output),
        states=settings_of(StatesSettings, args),
        overwrite=args.overwrite,
        resume=args.resume,
        quiet=args.quiet or args.json,
    )
    if processes().is_main:
        _print_metrics({args.output: measured}, as_json=args.json, single=True)


def _add_evaluate(parser: _Parser) -> None:
    _add_run(parser)
    parser.add_argument("--data", nargs="+", required=True, help="files of labelled rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_run(parser: _Parser) -> None:
    parser.add_argument("run", type=str, help="run folder of lateprompt train")
    parser.add_argument("--model", type=str | None, help="where the base model is, if not where it was")
    parser.add_argument("--device", type=str | None, help="where to run; default a GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=64, help="rows in a batch")


def _load(args: Namespace) -> Any:
    from lateprompt.run import load_run

    if args.batch_size < 1:
        raise LatePromptError(f"batch_size {args.batch_size!r} is too small; give a whole number from 1")
    return load_run(args.run, model=args.model, device=args.device)


def _evaluate(args: Namespace) -> None:
    from lateprompt.tasks import read_rows

    classifier = _load(args)
    rows = {path: read_rows(path, task=classifier.task, split="validation") for path in args.data}
    results = {path: classifier.evaluate(part, batch_size=args.batch_size) for path, part in rows.items()}
    _print_metrics(results, as_json=args.json, single=len(results) == 1)


def _add_predict(parser: _Parser) -> None:
    _add_run(parser)
    add_predict(parser)


def _predict(args: Namespace) -> int:
    return predict(args, _load)


def _add_tasks(parser: _Parser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=["list", "check"], help="list, or check FILE")
    parser.add_argument("file", nargs="?", help="name of a task or a YAML file")
    parser.add_argument("--model", type=str | None, help="model whose tokenizer the label words are checked with")
    parser.add_argument("--readout", type=str, default="auto", help="mask, label, head or auto")


def _tasks(args: Namespace) -> None:
    from lateprompt.tasks import load_task, task_names

    if args.action == "list":
        table = [(task.name, ", ".join(task.labels), task.template) for task in map(load_task, task_names())]
        print_table(("task", "labels", "template"), table)
        return
    if args.file is None or args.model is None:
        raise LatePromptError("tasks check needs a task file and a model: lateprompt tasks check FILE --model MODEL")
    from lateprompt.families import FAMILIES
    from lateprompt.pretrained import load_config, load_tokenizer, resolve_readout
    from lateprompt.tasks import TargetEncoder, TextTask, check_task
    from lateprompt.training.metrics import check_metrics

    task = load_task(args.file)
    check_metrics(task.metrics)
    if isinstance(task, TextTask):
        if not FAMILIES[load_config(args.model).model_type].causal:
            raise LatePromptError(
                f"model {args.model!r} is an encoder and writes no text, as task {task.name!r} wants; take a decoder"
            )
        tokenizer = load_tokenizer(args.model)
        encoder = TargetEncoder(tokenizer, task)
        parts = [
            ("before", tokenizer.decode(encoder.before)),
            ("source", task.template),
            ("after", tokenizer.decode(encoder.after)),
            ("end of the target", tokenizer.decode([encoder.end])),
        ]
        print_table(("part", "text"), [(name, repr(text)) for name, text in parts])
        return
    readout = resolve_readout(load_config(args.model), args.readout, args.model)
    results = check_task(task, load_tokenizer(args.model), readout)
    print_table(
        ("label", "word", "pieces", "verdict"),
        [(r["label"], r["word"], " ".join(r["pieces"]), "ok" if r["ok"] else r["message"]) for r in results],
    )
    bad = [r for r in results if not r["ok"]]
    if bad:
        raise LatePromptError(str(bad[0]["message"]))


def _add_states(parser: _Parser) -> None:
    actions = ["fill", "list", "verify", "prune"]
    parser.add_argument("action", choices=actions, help="fill, list, verify or prune")
    parser.add_argument("--folder", type=str | None, help="where stores live; default LATEPROMPT_STATES or ~/.cache")
    parser.add_argument("--model", type=str | None, help="fill: folder or hub id of the model")
    parser.add_argument(
        "--prompt_layer", nargs="+", default=["0.5"], help="fill: one or more prompt layers, in one pass"
    )
    parser.add_argument("--data", nargs="+", default=[], help="fill: files of rows")
    parser.add_argument("--task", type=str | None, help="fill: name of a task or a YAML file")
    parser.add_argument("--readout", type=str, default="auto", help="fill: mask, label, head or auto")
    parser.add_argument("--max_length", type=int, default=256, help="fill: longest input in tokens")
    parser.add_argument("--max_target_length", type=int, default=64, help="fill: of these, the most for a target")
    parser.add_argument("--dtype", type=str, default="auto", help="fill: auto, float32, bfloat16, float16 or int8")
    parser.add_argument("--device", type=str | None, help="fill: where to run; default a GPU if there is one")
    parser.add_argument("--limit_gb", type=float | None, help="prune: most that may stay, in 10^9 bytes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _states(args: Namespace) -> None:
    from lateprompt.states import list_stores, prune, stores_in, verify_store
    from lateprompt.training.kept import StatesSettings

    folder = Path(args.folder) if args.folder is not None else StatesSettings().folder
    assert folder is not None
    result: Any
    if args.action == "fill":
        result = _fill_states(args, folder)
    elif args.action == "list":
        result = list_stores(folder)
    elif args.action == "verify":
        result = [vars(verify_store(path)) for path in stores_in(folder)]
    elif args.limit_gb is None:
        raise LatePromptError("states prune needs --limit-gb: how much may stay (0 removes everything)")
    else:
        result = [{"freed_bytes": prune(folder, int(args.limit_gb * 1e9))}]
    if args.json:
        print(json.dumps(result))
    elif result:
        shown = [{key: value for key, value in row.items() if key not in ("format", "fingerprint")} for row in result]
        print_table(list(shown[0]), [[_figure(value) for value in row.values()] for row in shown])
    else:
        print(f"no trunk states in {folder}")


def _fill_states(args: Namespace, folder: Path) -> list[dict[str, Any]]:
    from lateprompt.run import DataSettings, kind_of, resolve_task
    from lateprompt.states.store import describe
    from lateprompt.tasks import TextTask, load_task, read_rows
    from lateprompt.training.kept import fill_layers
    from lateprompt.training.settings import ModelSettings

    if args.model is None or not args.data:
        raise LatePromptError("states fill needs a model and data: lateprompt states fill --model MODEL --data FILE")
    task = None if args.task is None else load_task(args.task)
    labelled = task is None or isinstance(task, TextTask)  # states of a target's tokens are kept too
    rows = [row for path in args.data for row in read_rows(path, task=task, labelled=labelled)]
    task = task or resolve_task(DataSettings(train=args.data[0]), rows)
    settings = ModelSettings(
        args.model,
        method="fixed",  # the states are the same under every generator
        prompt_layer=args.prompt_layer[0],
        readout=args.readout,
        max_length=args.max_length,
        max_target_length=args.max_target_length,
        device=args.device,
    )
    tuned = kind_of(task).build(settings, task, seed=0)
    stores = fill_layers(tuned, rows, args.prompt_layer, folder, args.dtype)
    return [{"store": store.folder.name, **describe(store.folder)} for store in stores]


def _add_demo(parser: _Parser) -> None:
    parser.add_argument("--seed", type=int, default=42, help="seed")


def _demo(args: Namespace) -> None:
    from lateprompt.demo import run_demo

    run_demo(seed=args.seed)


Command = tuple[str, Callable[[_Parser], None], Callable[[Namespace], int | None]]
COMMANDS: dict[str, Command] = {
    "bench": ("training steps, or whole jobs, of several methods side by side in one run", add_bench, bench),
    "compare": ("methods × tasks × shots × seeds into one table of results, resumable", add_compare, compare),
    "demo": ("tune a late prompt on installed reviews with an installed small model", _add_demo, _demo),
    "train": ("train a classifier, or a writer of answers, and leave a run folder", _add_train, _train),
    "methods": ("list the methods that train takes, and their options", add_methods, methods),
    "evaluate": ("metrics of a run on labelled rows", _add_evaluate, _evaluate),
    "predict": (
        "labels and scores, or written answers, for rows: JSON lines, CSV, TSV or Parquet",
        _add_predict,
        _predict,
    ),
    "report": ("one HTML page from the results of lateprompt compare", add_report, report),
    "states": ("fill, list, verify or prune kept trunk states", _add_states, _states),
    "tasks": ("list tasks, or check one against a model's tokenizer", _add_tasks, _tasks),
}


def _print_metrics(results: dict[str, dict[str, Any]], *, as_json: bool, single: bool) -> None:
    if as_json:
        print(json.dumps(next(iter(results.values())) if single else results))
        return
    for name, values in results.items():
        rows = [(key, _figure(value)) for key, value in values.items() if not isinstance(value, dict)]
        for kind in ("dev_sets", "test"):
            for path, part in values.get(kind, {}).items():
                rows += [(f"{kind.removesuffix('_sets')} {path}: {key}", _figure(value)) for key, value in part.items()]
        print_table((name, "value"), rows)


def _figure(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def build_parser() -> _Parser:
    """The parser with all commands of the table."""
    parser = _Parser(
        prog="lateprompt", description="Late Prompt Tuning: tune frozen transformers by prompts that enter late."
    )
    commands = parser.add_subcommands(dest="command")
    for name, (text, add_arguments, _) in COMMANDS.items():
        command = _Parser(description=text)
        command.add_argument("--config", action="config", help="YAML file with any of these settings")
        commands.add_subcommand(name, command, help=text)
        add_arguments(command)  # afterwards: it may add commands of its own, and a parser takes them in level order
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0, 2 for bad input, 3 if predict skipped rows, 130 when interrupted)."""
    arguments = [_dashes_to_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        args = build_parser().parse_args(arguments)
        return COMMANDS[args.command][2](args[args.command]) or 0
    except LatePromptError as error:
        print(f"lateprompt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.strerror}: {str(error.filename)!r}" if error.filename is not None else str(error)
        print(f"lateprompt: {what}; choose another place or mend its permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lateprompt: interrupted; compare goes on with the same command, train with --resume", file=sys.stderr)
        return 130
