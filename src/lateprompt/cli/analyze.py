"""The arguments of `lateprompt analyze`, and what it does: the paper's reasoning, measured by prompt layer."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lateprompt.cli.arguments import settings_of

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.analysis.settings import StudySettings
    from lateprompt.cli.parser import Parser

_KINDS = {
    "layers": "score and training time of methods by prompt layer",
    "influence": "by prompt layer, the gradient that reaches the prompt, and how far the prompt moves the output",
    "information": "what each layer's states say about the label: a probe's accuracy, and usable bits",
    "instances": "how much a run's prompts differ between instances and classes",
}


def add_analyze(parser: Parser) -> None:
    """A parser for each analysis."""
    kinds = parser.add_subcommands(dest="what", required=True)
    for name, text in _KINDS.items():
        own = type(parser)(description=text)
        own.add_argument("--config", action="config", help="YAML file with any of these settings")
        if name == "instances":
            _add_instances(own)
        else:
            _add_study(own, name)
        kinds.add_subcommand(name, own, help=text)


def _add_study(parser: Parser, name: str) -> None:
    from lateprompt.cli.config_files import LABEL_WORDS, label_words
    from lateprompt.cli.parser import REQUIRED
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.training.data_settings import DataSettings
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    parser.add_class_arguments(
        ModelSettings, as_group=False, skip={"method", "prompt_layer", "trunk_dropout", "options", "compile"}
    )
    what = {
        "layers": "methods to train at each layer",
        "influence": "methods with a prompt to train at each layer",
        "information": "methods with a prompt, under which states are looked at",
    }[name]
    parser.add_argument("--methods", "--method", nargs="+", default=["npg"], help=what)
    parser.add_argument("--set", nargs="+", default=[], help="the methods' own options: key=value …, e.g. r=16")
    where = "in the middle" if name == "information" else "all from 1 to L-1"
    parser.add_argument(
        "--layers", nargs="+", default=[], help=f"prompt layers, as numbers or shares of the depth; default {where}"
    )
    parser.add_argument(
        "--seeds", "--seed", nargs="+", type=int, default=[42], help="seeds of samples, initialisation and order"
    )
    if name == "information":
        parser.add_argument(
            "--frozen_only", action="store_true", help="look at the frozen model alone: nothing is trained"
        )
    parser.add_class_arguments(DataSettings, as_group=False, skip={"dev", "test", "label_words"})
    parser.add_argument("--label_words", type=label_words, help=f"without a task: {LABEL_WORDS}")
    parser.add_argument("--dev", nargs="+", default=[], help="rows that choose weights, and that all is measured on")
    parser.add_argument("--test", nargs="+", default=[], help="layers: rows that each run is scored on in the end")
    parser.add_class_arguments(RecipeSettings, as_group=False, skip={"seed"})
    parser.add_class_arguments(StatesSettings, as_group=False)
    parser.add_argument(
        "--output", type=str, required=True, help="folder for results, page and figures; one that is there goes on"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON lines")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    names = {kind: [field.name for field in fields(kind)] for kind in (DataSettings, RecipeSettings, StatesSettings)}
    parser.arrange(
        {
            REQUIRED: ("model", "train", "output"),
            "analysis": ("methods", "layers", "seeds", "set", "frozen_only"),
            "data": ("dev", "test", *names[DataSettings]),
            "model": [field.name for field in fields(ModelSettings)],
            "training": names[RecipeSettings],
            "cached states": names[StatesSettings],
            "output": ("json", "quiet"),
        }
    )


def _add_instances(parser: Parser) -> None:
    parser.add_argument("run", type=str, help="folder of a run with a prompt")
    parser.add_argument("--data", type=str | None, help="labelled rows to look at; default the run's dev rows")
    parser.add_argument("--train", type=str | None, help="rows to find neighbours in; default the run's training rows")
    parser.add_argument("--examples", type=int, default=3, help="rows whose nearest training texts are shown")
    parser.add_argument("--neighbours", type=int, default=3, help="nearest training texts of each")
    parser.add_argument("--seed", type=int, default=42, help="seed of the choice of examples")
    parser.add_argument("--model", type=str | None, help="where the base model is, if not where it was")
    parser.add_argument("--device", type=str | None, help="where to run; default a GPU if there is one")
    parser.add_argument("--output", type=str, required=True, help="folder for results, page and figures")
    parser.add_argument("--json", action="store_true", help="print the results as JSON lines")


def analyze(args: Namespace) -> None:
    """Run what `add_analyze` has parsed."""
    own = args[args.what]
    if args.what == "instances":
        _instances(own)
        return
    from lateprompt.analysis import studies
    from lateprompt.analysis.page import write_study

    settings = _settings(own)
    if args.what == "layers":
        folder = studies.study_layers(settings, own.output)
    elif args.what == "influence":
        folder = studies.study_influence(settings, own.output)
    else:
        folder = studies.study_information(settings, own.output, frozen_only=own.frozen_only)
    _show(*write_study(folder), folder.results, as_json=own.json)


def _settings(args: Namespace) -> StudySettings:
    from lateprompt.analysis.settings import StudySettings
    from lateprompt.methods import parse_options
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.training.data_settings import DataSettings
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    args.options = parse_options(args.set)
    given = {field.name: args[field.name] for field in fields(ModelSettings) if field.name in args}
    recipe = {field.name: args[field.name] for field in fields(RecipeSettings) if field.name in args}
    return StudySettings(
        ModelSettings(**given),
        settings_of(DataSettings, args),
        RecipeSettings(**recipe),
        settings_of(StatesSettings, args),
        methods=args.methods,
        layers=args.layers,
        seeds=args.seeds,
        quiet=args.quiet or args.json,
    )


def _instances(args: Namespace) -> None:
    from lateprompt.analysis.page import write_instances
    from lateprompt.analysis.run_prompts import study_instances

    folder, pictured, examples = study_instances(
        args.run,
        args.output,
        data=args.data,
        train=args.train,
        examples=args.examples,
        neighbours=args.neighbours,
        seed=args.seed,
        model=args.model,
        device=args.device,
    )
    _show(*write_instances(folder, pictured, examples), folder.results, as_json=args.json)
    if not args.json:
        for example in examples:
            print(f"\n{example.label}: {example.text}")
            for text, label, similarity in example.neighbours:
                print(f"  {similarity:.2f} {label}: {text}")


def _show(tables: Any, files: Any, results: Any, *, as_json: bool) -> None:
    """Print the tables of a page, and where it is."""
    from lateprompt.utils.console import print_table

    if as_json:
        for row in results:
            print(json.dumps(row))
        return
    for table in tables:
        print(table.caption)
        print_table(table.headers, table.rows)
    print(f"{files[0]}, and {len(files) - 1} files of figures")
