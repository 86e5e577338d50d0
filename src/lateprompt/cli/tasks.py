"""`lateprompt tasks`: list tasks, or check one against a model's tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from lateprompt.data import TextTask


def tasks(
    action: Literal["list", "check"] = "list",
    file: str | None = None,
    *,
    model: str | None = None,
    readout: str = "auto",
) -> None:
    """List tasks, or check one against a model's tokenizer.

    Args:
        action: list, or check FILE
        file: name of a task or a YAML file
        model: model whose tokenizer the label words are checked with
        readout: masked_lm, causal_lm, head or auto
    """
    from lateprompt.data import load_task, task_names
    from lateprompt.utils.console import print_table

    if action == "list":
        table = [(task.name, ", ".join(task.labels), task.template) for task in map(load_task, task_names())]
        print_table(("task", "labels", "template"), table)
        return
    if file is None or model is None:
        raise LatePromptError("tasks check needs a task file and a model: lateprompt tasks check FILE --model MODEL")
    _check(file, model, readout)


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
