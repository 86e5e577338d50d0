"""The arguments of `lateprompt tasks`, and what it does: list tasks, or check one against a model's tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.cli.parser import Parser
    from lateprompt.data import TextTask


def add_tasks(parser: Parser) -> None:
    """Its arguments."""
    parser.add_argument("action", nargs="?", default="list", choices=["list", "check"], help="list, or check FILE")
    parser.add_argument("file", nargs="?", help="name of a task or a YAML file")
    parser.add_argument("--model", type=str | None, help="model whose tokenizer the label words are checked with")
    parser.add_argument("--readout", type=str, default="auto", help="masked_lm, causal_lm, head or auto")


def tasks(args: Namespace) -> None:
    """Run what `add_tasks` has parsed."""
    from lateprompt.data import load_task, task_names
    from lateprompt.utils.console import print_table

    if args.action == "list":
        table = [(task.name, ", ".join(task.labels), task.template) for task in map(load_task, task_names())]
        print_table(("task", "labels", "template"), table)
        return
    if args.file is None or args.model is None:
        raise LatePromptError("tasks check needs a task file and a model: lateprompt tasks check FILE --model MODEL")
    _check(args.file, args.model, args.readout)


def _check(file: str, model: str, readout: str) -> None:
    """Show how a task fits a model; LatePromptError where it does not."""
    from lateprompt.backbone.families import FAMILIES
    from lateprompt.data import TextTask, check_task, load_task
    from lateprompt.predictors.loading import load_config, load_tokenizer, resolve_readout
    from lateprompt.training.metrics import check_metrics
    from lateprompt.utils.console import print_table

    task = load_task(file)
    check_metrics(task.metrics)
    if isinstance(task, TextTask):
        if not FAMILIES[load_config(model).model_type].causal:
            raise LatePromptError(
                f"model {model!r} is an encoder and writes no text, as task {task.name!r} wants; take a decoder"
            )
        _print_parts(task, load_tokenizer(model))
        return
    results = check_task(task, load_tokenizer(model), resolve_readout(load_config(model), readout, model))
    print_table(
        ("label", "word", "pieces", "verdict"),
        [(r["label"], r["word"], " ".join(r["pieces"]), "ok" if r["ok"] else r["message"]) for r in results],
    )
    bad = [r for r in results if not r["ok"]]
    if bad:
        raise LatePromptError(str(bad[0]["message"]))


def _print_parts(task: TextTask, tokenizer: Any) -> None:
    """What a text-to-text task puts around a text."""
    from lateprompt.data import TargetEncoder
    from lateprompt.utils.console import print_table

    encoder = TargetEncoder(tokenizer, task)
    parts = [
        ("before", tokenizer.decode(encoder.before)),
        ("source", task.template),
        ("after", tokenizer.decode(encoder.after)),
        ("end of the target", tokenizer.decode([encoder.end])),
    ]
    print_table(("part", "text"), [(name, repr(text)) for name, text in parts])
