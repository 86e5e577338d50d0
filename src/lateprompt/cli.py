"""The command line: one table from command to functions. Only the chosen command's modules are imported.

Errors are one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lateprompt.arguments import add_columns, columns_of, dashes_to_underscores
from lateprompt.errors import LatePromptError
from lateprompt.outcome import BAD_INPUT, finish, versions
from lateprompt.suggestions import did_you_mean

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.parser import Parser as _Parser


def _from(module: str, name: str) -> Callable[..., Any]:
    """A function of another module, which is imported when it is called."""
    return lambda *args: getattr(import_module(f"lateprompt.{module}"), name)(*args)


def _add_evaluate(parser: _Parser) -> None:
    _add_run(parser)
    parser.add_argument("--data", nargs="+", required=True, help="files of labelled rows")
    add_columns(parser, "default the run's")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_run(parser: _Parser) -> None:
    parser.add_argument("run", type=str, help="run folder of lateprompt train")
    parser.add_argument("--model", type=str | None, help="where the base model is, if not where it was")
    parser.add_argument(
        "--ignore_fingerprint", action="store_true", help="take a base model with other weights than it was trained on"
    )
    parser.add_argument("--device", type=str | None, help="where to run; default a GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=64, help="rows in a batch")


def _load(args: Namespace) -> Any:
    from lateprompt.run import load_run

    if args.batch_size < 1:
        raise LatePromptError(f"batch_size {args.batch_size!r} is too small; give a whole number from 1")
    return load_run(args.run, model=args.model, device=args.device, check_model=not args.ignore_fingerprint)


def _evaluate(args: Namespace) -> None:
    from lateprompt.row_checks import unknown_labels, warn_unknown
    from lateprompt.tasks import read_rows

    classifier = _load(args)
    rows = {
        path: read_rows(path, task=classifier.task, split="validation", columns=columns_of(args), any_label=True)
        for path in args.data
    }
    for path, part in rows.items():
        warn_unknown(unknown_labels(part, classifier.task), len(part), path)
    results = {path: classifier.evaluate(part, batch_size=args.batch_size) for path, part in rows.items()}
    print_metrics(results, as_json=args.json, single=len(results) == 1)


def _add_predict(parser: _Parser) -> None:
    from lateprompt.predict_cli import add_predict

    _add_run(parser)
    add_predict(parser)


def _predict(args: Namespace) -> int:
    from lateprompt.predict_cli import predict

    return predict(args, _load)


def _add_tasks(parser: _Parser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=["list", "check"], help="list, or check FILE")
    parser.add_argument("file", nargs="?", help="name of a task or a YAML file")
    parser.add_argument("--model", type=str | None, help="model whose tokenizer the label words are checked with")
    parser.add_argument("--readout", type=str, default="auto", help="mask, label, head or auto")


def _tasks(args: Namespace) -> None:
    from lateprompt.progress import print_table
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
    add_columns(parser, "fill")
    parser.add_argument("--readout", type=str, default="auto", help="fill: mask, label, head or auto")
    parser.add_argument("--max_length", type=int, default=256, help="fill: longest input in tokens")
    parser.add_argument("--max_target_length", type=int, default=64, help="fill: of these, the most for a target")
    parser.add_argument("--dtype", type=str, default="auto", help="fill: auto, float32, bfloat16, float16 or int8")
    parser.add_argument("--device", type=str | None, help="fill: where to run; default a GPU if there is one")
    parser.add_argument("--limit_gb", type=float | None, help="prune: most that may stay, in 10^9 bytes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _states(args: Namespace) -> None:
    from lateprompt.progress import print_table
    from lateprompt.training.states_settings import StatesSettings

    if args.folder is not None and not args.folder.strip():
        raise LatePromptError(f"folder {args.folder!r} is no folder; give one, or leave --folder out")
    folder = Path(args.folder) if args.folder is not None else StatesSettings().folder
    assert folder is not None
    result, problems = _fill_states(args, folder) if args.action == "fill" else _look_after_states(args, folder)
    if args.json:
        print(json.dumps(result))
    elif result:
        hidden = {"format", "fingerprint"}
        if all(row.get("problem") is None for row in result):
            hidden.add("problem")
        shown = [{key: value for key, value in row.items() if key not in hidden} for row in result]
        cells = [["" if value is None else _figure(value) for value in row.values()] for row in shown]
        print_table(list(shown[0]), cells)
    else:
        print(f"no trunk states in {folder}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise LatePromptError(f"{problems[0]}{more}")


def _look_after_states(args: Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What list, verify or prune found, and what is wrong with stores that it could not handle."""
    from lateprompt.states import list_stores, prune_stores, verify_stores

    if args.action == "prune":
        limit = args.limit_gb
        if limit is None:
            raise LatePromptError("states prune needs --limit-gb: how much may stay (0 removes everything)")
        if not limit >= 0:
            raise LatePromptError(f"limit_gb {limit!r} is no size; give a number of 10^9 bytes from 0")
        done = prune_stores(folder, limit * 1e9)
        refused = [] if done.fits else list(done.refused.values())
        return [{"freed_bytes": done.freed_bytes}], [*refused, *done.broken.values()]
    if not os.path.lexists(folder):  # nothing has been kept yet
        return [], []
    result = list_stores(folder) if args.action == "list" else [vars(found) for found in verify_stores(folder)]
    return result, [row["problem"] for row in result if row["problem"] is not None]


def _fill_states(args: Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    from lateprompt.run import DataSettings, kind_of, resolve_task
    from lateprompt.tasks import TextTask, load_task, read_rows
    from lateprompt.training.kept import fill_layers
    from lateprompt.training.settings import ModelSettings

    if args.model is None or not args.data:
        raise LatePromptError("states fill needs a model and data: lateprompt states fill --model MODEL --data FILE")
    task = None if args.task is None else load_task(args.task)
    labelled = task is None or isinstance(task, TextTask)  # states of a target's tokens are kept too
    columns = columns_of(args)
    rows = [row for path in args.data for row in read_rows(path, task=task, labelled=labelled, columns=columns)]
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
    return [store.describe() for store in stores], []


def _add_demo(parser: _Parser) -> None:
    parser.add_argument("--seed", type=int, default=42, help="seed")


def _demo(args: Namespace) -> None:
    from lateprompt.demo import run_demo

    run_demo(seed=args.seed)


Command = tuple[str, Callable[["_Parser"], None], Callable[["Namespace"], int | None]]
COMMANDS: dict[str, Command] = {
    "train": (
        "train a classifier, or a writer of answers, and leave a run folder",
        _from("train_cli", "add_train"),
        _from("train_cli", "train"),
    ),
    "evaluate": ("metrics of a run on labelled rows", _add_evaluate, _evaluate),
    "predict": ("labels and scores, or written answers, for each row of a file", _add_predict, _predict),
    "tasks": ("list tasks, or check one against a model's tokenizer", _add_tasks, _tasks),
    "methods": (
        "list the methods that train takes, and their options",
        _from("compare_cli", "add_methods"),
        _from("compare_cli", "methods"),
    ),
    "states": ("fill, list, verify or prune kept trunk states", _add_states, _states),
    "compare": (
        "methods × tasks × shots × seeds into one table of results, resumable",
        _from("compare_cli", "add_compare"),
        _from("compare_cli", "compare"),
    ),
    "report": (
        "one HTML page from the results of lateprompt compare",
        _from("compare_cli", "add_report"),
        _from("compare_cli", "report"),
    ),
    "bench": (
        "training steps, or whole jobs, of several methods side by side in one run",
        _from("bench_cli", "add_bench"),
        _from("bench_cli", "bench"),
    ),
    "demo": ("tune a late prompt on installed reviews with an installed small model", _add_demo, _demo),
}
EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "lateprompt train --model roberta-base --train train.csv --output runs/first",
        "lateprompt train --model roberta-base --train train.csv --dev dev.csv \\\n"
        "      --method npg+late-lora --set r=4 --output runs/both",
    ),
    "evaluate": ("lateprompt evaluate runs/first --data test.csv",),
    "predict": (
        "lateprompt predict runs/first --data new.jsonl --output predictions.jsonl",
        "lateprompt predict runs/first --data new.csv --text-column review \\\n"
        "      --on-error skip --output labels.csv",
    ),
    "tasks": ("lateprompt tasks", "lateprompt tasks check sst2 --model roberta-base"),
    "methods": ("lateprompt methods",),
    "states": (
        "lateprompt states fill --model roberta-base --task sst2 --data train.jsonl",
        "lateprompt states list",
        "lateprompt states prune --limit-gb 5",
    ),
    "compare": (
        "lateprompt compare --model roberta-base --methods npg lora head \\\n"
        "      --tasks sst2 trec --data data --output results",
        "lateprompt compare plan.yaml --output results --workers 2",
    ),
    "report": ("lateprompt report results", "lateprompt report results --markdown table.md --latex table.tex"),
    "bench": (
        "lateprompt bench --model roberta-base --batch 16 --length 64",
        "lateprompt bench job --model roberta-base --train train.csv --dev dev.csv",
    ),
    "demo": ("lateprompt demo",),
}
_GOES_ON = {
    "train": "it goes on with the same command and --resume",
    "compare": "it goes on with the same command",
    "states": "it goes on with the same command",
}
"""How the work of an interrupted command is taken up again."""


def print_metrics(results: dict[str, dict[str, Any]], *, as_json: bool, single: bool) -> None:
    """Metrics by run or file, as tables or as one JSON object."""
    from lateprompt.progress import print_table

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


def build_parser(name: str) -> _Parser:
    """The parser of one command of the table."""
    from lateprompt.parser import Parser

    text, add_arguments, _ = COMMANDS[name]
    parser = Parser(prog=f"lateprompt {name}", description=text, examples=EXAMPLES.get(name, ()))
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    add_arguments(parser)
    return parser


def help_text() -> str:
    """What `lateprompt --help` prints."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: lateprompt COMMAND [options]",
            "",
            "Late Prompt Tuning: tune frozen transformers by prompts that enter late.",
            "",
            "commands:",
            *(
                fill(text, 78, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))
                for name, (text, _, _) in COMMANDS.items()
            ),
            "",
            "options:",
            "  -h, --help  show this help, or that of a command: lateprompt train --help",
            "  --version   show the version, and those of what it stands on",
            "  --debug     show where an error comes from, with any command",
            "",
            "examples:",
            *(f"  {EXAMPLES[name][0]}" for name in ("train", "predict")),
        ]
    )


def version_text() -> str:
    """What `lateprompt --version` prints."""
    found = versions()
    return f"lateprompt {found.pop('lateprompt', '')} ({', '.join(f'{key} {value}' for key, value in found.items())})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, the command's own, 2 for bad input, 130 after SIGINT, 143 after SIGTERM, and 1 for a fault of
        the library.

    Raises:
        SystemExit: with 0 after a help text or the version, with 2 for arguments that cannot be.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    words = [word for word in own if word != "--debug"] + words[len(own) :]
    name = _command(words)
    return finish(lambda: _run(name, words[1:]), going_on=_GOES_ON.get(name, ""), debug=debug)


def _command(words: Sequence[str]) -> str:
    """The command that is asked for."""
    if not words:
        print(help_text(), file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    name = words[0]
    if name == "help" and len(words) > 1 and words[1] in COMMANDS:
        build_parser(words[1]).print_help()
        raise SystemExit(0)
    if name in ("-h", "--help", "help"):
        print(help_text())
        raise SystemExit(0)
    if name in ("-V", "--version"):
        print(version_text())
        raise SystemExit(0)
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        hint = did_you_mean(name, COMMANDS if what == "command" else ("--help", "--version", "--debug"))
        if not hint and what == "option":
            hint = "; options stand behind a command"
        print(f"lateprompt: there is no {what} {name!r}{hint}; lateprompt --help shows all", file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    return name


def _run(name: str, words: Sequence[str]) -> int | None:
    from lateprompt.config_files import check_arguments

    check_arguments(words)
    parser = build_parser(name)
    try:
        args = parser.parse_args([dashes_to_underscores(word) for word in words])
    except RecursionError:
        raise LatePromptError("--config names a file that is nested too deeply; give a flat YAML file") from None
    except UnicodeDecodeError as error:
        raise LatePromptError(f"--config names a file that is not UTF-8 ({error}); save it as UTF-8") from None
    return COMMANDS[name][2](args)
