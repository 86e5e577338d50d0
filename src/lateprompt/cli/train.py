"""The arguments of `lateprompt train`, in groups, and what it does."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lateprompt.cli.arguments import settings_of
from lateprompt.cli.figures import print_expected, print_metrics, print_search

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.cli.parser import Parser

_MACHINE = ("dtype", "device", "compile")
_KEPT = "cached states"
_SEARCH = "search"
_MANY = ("label_columns", "multi_label")
"""The options that make it a run of many tasks."""


def add_train(parser: Parser) -> None:
    """Its arguments."""
    from lateprompt.cli.config_files import LABEL_WORDS, class_weight, label_words
    from lateprompt.cli.parser import REQUIRED
    from lateprompt.search.settings import SearchSettings
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.training.data_settings import DataSettings
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    parser.add_class_arguments(ModelSettings, as_group=False, skip={"trunk_dropout", "options"})
    parser.add_argument("--set", nargs="+", default=[], help="the method's own options: key=value …, e.g. r=16")
    parser.add_argument(
        "--read_only",
        action="store_true",
        help="the late prompt reads the text and is not seen by it: --method npg becomes read-npg, npg+late-lora "
        "becomes read-npg+lora (docs/read-only.md)",
    )
    parser.add_argument(
        "--trunk_dropout",
        action="store_true",
        help="keep dropout in the frozen layers below the prompt while training, as the authors do",
    )
    parser.add_class_arguments(DataSettings, as_group=False, skip={"dev", "test", "label_words"})
    parser.add_argument("--label_words", type=label_words, help=f"without a task: {LABEL_WORDS}")
    parser.add_argument(
        "--label_columns", nargs="+", default=[], help="columns with labels, each a task: many tasks in one run"
    )
    parser.add_argument(
        "--multi_label", type=str | None, help="column with a list of labels (or a|b), each a task: yes or no"
    )
    parser.add_argument("--dev", nargs="+", default=[], help="files of rows that choose the best weights (the first)")
    parser.add_argument("--test", nargs="+", default=[], help="files of rows that are scored once, at the end")
    parser.add_class_arguments(RecipeSettings, as_group=False, skip={"class_weight"})
    parser.add_argument(
        "--class_weight",
        type=class_weight,
        help="what the losses of a class's rows are multiplied with: balanced (the rarer, the more), or a mapping, "
        "label to weight, as in '{bad: 2.5, good: 1}'",
    )
    parser.add_class_arguments(SearchSettings, as_group=False)
    parser.add_class_arguments(StatesSettings, as_group=False)
    parser.add_argument("--output", type=str, required=True, help="folder of the run")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run that is there, once the new one has succeeded"
    )
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.usually_needed = ("model",)
    method = [name for name in _names(ModelSettings) if name not in _MACHINE]
    parser.arrange(
        {
            REQUIRED: ("model", "train", "output"),
            "data": ("dev", "test", *_names(DataSettings), *_MANY),
            "method": ("method", "read_only", "set", *method),
            _SEARCH: _names(SearchSettings),
            "training": (*_names(RecipeSettings), *_MACHINE),
            _KEPT: _names(StatesSettings),
            "output": ("overwrite", "resume", "json", "quiet"),
        },
        {
            _SEARCH: "With --method auto, or --prompt-layer auto, what is best for these rows is found (docs/auto.md).",
            _KEPT: "What the frozen layers make of a text is computed once, and read again by later epochs and runs.",
        },
    )


def _names(settings: Any) -> list[str]:
    return [field.name for field in fields(settings)]


def train(args: Namespace) -> None:
    """Run what `add_train` has parsed."""
    from lateprompt.methods import parse_options, read_only_name
    from lateprompt.runs.train import train_run
    from lateprompt.search.settings import SearchSettings
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.training.data_settings import DataSettings
    from lateprompt.training.distributed import processes
    from lateprompt.training.settings import ModelSettings, RecipeSettings
    from lateprompt.utils.errors import LatePromptError

    args.options = parse_options(args.set)
    if args.read_only:
        if args.method == "auto":
            raise LatePromptError("method 'auto' tries read-only prompts among others; leave out --read-only")
        args.method = read_only_name(args.method)
    if any(args[name] for name in _MANY):
        _train_tasks(args)
        return
    _, measured = train_run(
        settings_of(ModelSettings, args),
        settings_of(DataSettings, args),
        settings_of(RecipeSettings, args),
        args.output,
        states=settings_of(StatesSettings, args),
        search=settings_of(SearchSettings, args),
        overwrite=args.overwrite,
        resume=args.resume,
        quiet=args.quiet or args.json,
    )
    if processes().is_main:
        if not args.json:
            print_search(args.output)
        print_metrics({args.output: measured}, as_json=args.json, single=True)
        if not args.json:
            print_expected(measured)


def _train_tasks(args: Namespace) -> None:
    """Train many tasks in one run."""
    import json

    from lateprompt.cli.figures import figure
    from lateprompt.runs.many_tasks import train_tasks
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.training.data_settings import DataSettings
    from lateprompt.training.settings import ModelSettings, RecipeSettings
    from lateprompt.utils.console import print_table
    from lateprompt.utils.errors import LatePromptError
    from lateprompt.utils.names import DEFAULT_METHOD

    if "auto" in (args.method, args.prompt_layer):
        raise LatePromptError("a run of many tasks has nothing to search by; give --method and --prompt-layer")
    if args.method == DEFAULT_METHOD:
        args.method = "read-npg"  # the default of many tasks: tuners on a path of their own are not trained together
    if args.resume:
        raise LatePromptError("a run of many tasks cannot be resumed; leave out --resume, and give --overwrite")
    _, measured = train_tasks(
        settings_of(ModelSettings, args),
        settings_of(DataSettings, args),
        args.label_columns,
        settings_of(RecipeSettings, args),
        args.output,
        settings_of(StatesSettings, args),
        multi_label=args.multi_label,
        overwrite=args.overwrite,
        quiet=args.quiet or args.json,
    )
    if args.json:
        print(json.dumps(measured))
        return
    tests = list(dict.fromkeys(path for own in measured["tasks"].values() for path in own["test"]))
    print_table(
        ("task", "rows", "dev accuracy", *(f"accuracy on {path}" for path in tests)),
        [
            (
                name,
                figure(own["train_rows"]),
                *(
                    figure(part["accuracy"]) if "accuracy" in part else "-"
                    for part in (own, *(own["test"].get(path, {}) for path in tests))
                ),
            )
            for name, own in measured["tasks"].items()
        ],
    )
    print(f"{len(measured['tasks'])} tasks, {measured['steps']:,} steps, {measured['seconds']:.1f} s in all")
