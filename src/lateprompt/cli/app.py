"""The command line: one table from command to functions. Only the chosen command's modules are imported.

Errors are one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lateprompt.cli.arguments import dashes_to_underscores
from lateprompt.cli.figures import print_metrics as print_metrics
from lateprompt.cli.outcome import BAD_INPUT, environment, finish
from lateprompt.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.cli.parser import Parser as _Parser


def _from(module: str, name: str) -> Callable[..., Any]:
    """A function of another module, which is imported when it is called."""
    return lambda *args: getattr(import_module(f"lateprompt.cli.{module}"), name)(*args)


def _add_demo(parser: _Parser) -> None:
    parser.add_argument("--seed", type=int, default=42, help="seed")


def _demo(args: Namespace) -> None:
    from lateprompt.demo import run_demo

    run_demo(seed=args.seed)


Command = tuple[str, Callable[["_Parser"], None], Callable[["Namespace"], int | None]]
COMMANDS: dict[str, Command] = {
    "train": (
        "train a classifier, or a writer of answers, and leave a run folder",
        _from("train", "add_train"),
        _from("train", "train"),
    ),
    "evaluate": (
        "metrics of a run on labelled rows",
        _from("evaluate", "add_evaluate"),
        _from("evaluate", "evaluate"),
    ),
    "predict": (
        "labels and scores, or written answers, for each row of a file",
        _from("predict", "add_predict"),
        _from("predict", "predict"),
    ),
    "tasks": (
        "list tasks, or check one against a model's tokenizer",
        _from("tasks", "add_tasks"),
        _from("tasks", "tasks"),
    ),
    "methods": (
        "list the methods that train takes, and their options",
        _from("compare", "add_methods"),
        _from("compare", "methods"),
    ),
    "states": (
        "fill, list, verify or prune kept trunk states",
        _from("states", "add_states"),
        _from("states", "states"),
    ),
    "compare": (
        "methods × tasks × shots × seeds into one table of results, resumable",
        _from("compare", "add_compare"),
        _from("compare", "compare"),
    ),
    "report": (
        "one HTML page from the results of lateprompt compare",
        _from("compare", "add_report"),
        _from("compare", "report"),
    ),
    "bench": (
        "training steps, or whole jobs, of several methods side by side in one run",
        _from("bench", "add_bench"),
        _from("bench", "bench"),
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
        "lateprompt bench end-to-end --model roberta-base --train train.csv --dev dev.csv",
    ),
    "demo": ("lateprompt demo",),
}
_GOES_ON = {
    "train": "it goes on with the same command and --resume",
    "compare": "it goes on with the same command",
    "states": "it goes on with the same command",
}
"""How the work of an interrupted command is taken up again."""


def build_parser(name: str) -> _Parser:
    """The parser of one command of the table."""
    from lateprompt.cli.parser import Parser

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
    found = environment()
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
    from lateprompt.cli.config_files import check_arguments

    check_arguments(words)
    parser = build_parser(name)
    return COMMANDS[name][2](parser.parse_args([dashes_to_underscores(word) for word in words]))
