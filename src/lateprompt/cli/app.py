"""The command line: one table from command to function. Only the chosen command's modules are imported.

Errors are one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lateprompt.cli.arguments import dashes_to_underscores
from lateprompt.cli.figures import print_metrics as print_metrics
from lateprompt.cli.outcome import BAD_INPUT, environment, finish
from lateprompt.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from lateprompt.cli.parser import Parser as _Parser


@dataclass(frozen=True)
class Command:
    """A line of the table of commands.

    Args:
        text: what it does, for the help.
        function: what does it, as `module:function` of this package; its signature and docstring are its arguments.
        examples: command lines for the help.
        arguments: a function that declares them instead, where they are the fields of settings or one option depends on
            others; the command's function then takes what was parsed, as it is.
        going_on: how the work is taken up again after an interruption.
    """

    text: str
    function: str
    examples: tuple[str, ...]
    arguments: str = ""
    going_on: str = ""


COMMANDS = {
    "train": Command(
        "train a classifier, or a writer of answers, and leave a run folder",
        "train:train",
        (
            "lateprompt train --model roberta-base --train train.csv --output runs/first",
            "lateprompt train --model roberta-base --train train.csv --dev dev.csv \\\n"
            "      --method npg+late-lora --set r=4 --output runs/both",
            "lateprompt train --model roberta-base --train train.csv --method read-npg \\\n"
            "      --label-columns topic urgency --output runs/many",
        ),
        arguments="train:add_train",
        going_on="it goes on with the same command and --resume",
    ),
    "evaluate": Command(
        "metrics of a run on labelled rows",
        "evaluate:evaluate",
        ("lateprompt evaluate runs/first --data test.csv",),
    ),
    "predict": Command(
        "labels and scores, or written answers, for each row of a file",
        "predict:predict",
        (
            "lateprompt predict runs/first --data new.jsonl --output predictions.jsonl",
            "lateprompt predict runs/first --data new.csv --text-column review \\\n"
            "      --on-error skip --output labels.csv",
            "lateprompt predict runs/mood runs/topic --data new.jsonl --output all.jsonl",
        ),
        arguments="predict:add_predict",
    ),
    "tasks": Command(
        "list tasks, or check one against a model's tokenizer",
        "tasks:tasks",
        ("lateprompt tasks", "lateprompt tasks check sst2 --model roberta-base"),
    ),
    "methods": Command(
        "list the methods that train takes, and their options", "compare:methods", ("lateprompt methods",)
    ),
    "states": Command(
        "fill, list, verify or prune cached trunk states",
        "states:states",
        (
            "lateprompt states fill --model roberta-base --task sst2 --data train.jsonl",
            "lateprompt states list",
            "lateprompt states prune --limit-gb 5",
        ),
        arguments="states:add_states",
        going_on="it goes on with the same command",
    ),
    "compare": Command(
        "methods × tasks × shots × seeds into one table of results, resumable",
        "compare:compare",
        (
            "lateprompt compare --model roberta-base --methods npg lora head \\\n"
            "      --tasks sst2 trec --data data --output results",
            "lateprompt compare plan.yaml --output results --workers 2",
        ),
        going_on="it goes on with the same command",
    ),
    "report": Command(
        "one HTML page from the results of lateprompt compare",
        "compare:report",
        ("lateprompt report results", "lateprompt report results --markdown table.md --latex table.tex"),
    ),
    "bench": Command(
        "training steps, or whole jobs, of several methods side by side in one run",
        "bench:bench",
        (
            "lateprompt bench --model roberta-base --batch 16 --length 64",
            "lateprompt bench end-to-end --model roberta-base \\\n      --train train.csv --dev dev.csv",
        ),
        arguments="bench:add_bench",
    ),
    "analyze": Command(
        "what a prompt does by its layer: score, gradient, influence, information, instances",
        "analyze:analyze",
        (
            "lateprompt analyze layers --model roberta-base --task sst2 \\\n"
            "      --train train.jsonl --dev dev.jsonl --shots 100 --output layers",
            "lateprompt analyze instances runs/first --output instances",
        ),
        arguments="analyze:add_analyze",
        going_on="it goes on with the same command",
    ),
    "demo": Command(
        "tune a late prompt on installed reviews with an installed small model", "app:demo", ("lateprompt demo",)
    ),
}


def demo(*, seed: int = 42) -> None:
    """Run the demo.

    Args:
        seed: seed
    """
    from lateprompt.demo import run_demo

    run_demo(seed=seed)


def _function(place: str) -> Callable[..., Any]:
    """The function `module:function` of this package; its module is imported now."""
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"lateprompt.cli.{module}"), name)
    return found


def build_parser(name: str) -> _Parser:
    """The parser of one command of the table."""
    from lateprompt.cli.parser import Parser

    command = COMMANDS[name]
    parser = Parser(prog=f"lateprompt {name}", description=command.text, examples=command.examples)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    if command.arguments:
        _function(command.arguments)(parser)
    else:
        parser.add_function(_function(command.function))
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
                fill(command.text, 78, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))
                for name, command in COMMANDS.items()
            ),
            "",
            "options:",
            "  -h, --help  show this help, or that of a command: lateprompt train --help",
            "  --version   show the version, and those of what it stands on",
            "  --debug     show where an error comes from, with any command",
            "",
            "examples:",
            *(f"  {COMMANDS[name].examples[0]}" for name in ("train", "predict")),
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
    return finish(lambda: _run(name, words[1:]), going_on=COMMANDS[name].going_on, debug=debug)


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
    parsed = build_parser(name).parse_args([dashes_to_underscores(word) for word in words])
    command = COMMANDS[name]
    function = _function(command.function)
    if command.arguments:
        return function(parsed)  # type: ignore[no-any-return]
    return function(**{key: parsed[key] for key in signature(function).parameters})  # type: ignore[no-any-return]
