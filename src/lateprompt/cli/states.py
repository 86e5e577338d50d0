"""The arguments of `lateprompt states`, and what it does: fill, list, verify or prune cached trunk states."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lateprompt.cli.arguments import add_columns, columns_of
from lateprompt.cli.figures import figure
from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lateprompt.cli.parser import Parser


def add_states(parser: Parser) -> None:
    """Its arguments."""
    actions = ["fill", "list", "verify", "prune"]
    parser.add_argument("action", choices=actions, help="fill, list, verify or prune")
    parser.add_argument("--folder", type=str | None, help="where stores live; default LATEPROMPT_STATES or ~/.cache")
    parser.add_argument("--model", type=str | None, help="fill: folder or hub id of the model")
    parser.add_argument(
        "--prompt_layer", nargs="+", default=["0.5"], help="fill: one or more prompt layers, in one pass"
    )
    parser.add_argument(
        "--read_only",
        action="store_true",
        help="fill: all layers that a read-only prompt reads, from the prompt layer up, and the pooled state that a "
        "head reads, in one pass",
    )
    parser.add_argument("--head_pooling", type=str | None, help="fill: what a head reads: cls, mean or last")
    parser.add_argument("--data", nargs="+", default=[], help="fill: files of rows")
    parser.add_argument("--task", type=str | None, help="fill: name of a task or a YAML file")
    add_columns(parser, "fill")
    parser.add_argument("--readout", type=str, default="auto", help="fill: masked_lm, causal_lm, head or auto")
    parser.add_argument("--max_length", type=int, default=256, help="fill: longest input in tokens")
    parser.add_argument("--max_target_length", type=int, default=64, help="fill: of these, the most for a target")
    parser.add_argument("--dtype", type=str, default="auto", help="fill: auto, float32, bfloat16, float16 or int8")
    parser.add_argument("--device", type=str | None, help="fill: where to run; default a GPU if there is one")
    parser.add_argument("--limit_gb", type=float | None, help="prune: most that may stay, in 10^9 bytes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def states(args: Namespace) -> None:
    """Run what `add_states` has parsed."""
    from lateprompt.state_cache.settings import StatesSettings
    from lateprompt.utils.console import print_table
    from lateprompt.utils.files import given_path

    folder = given_path(args.folder, "folder") if args.folder is not None else StatesSettings().folder
    if folder is None:
        raise LatePromptError("there is no home folder with trunk states; give --folder")
    result, problems = _fill(args, folder) if args.action == "fill" else _look_after(args, folder)
    if args.json:
        print(json.dumps(result))
    elif result:
        hidden = {"format", "fingerprint"}
        if all(row.get("pooling") is None for row in result):
            hidden.add("pooling")
        if all(row.get("problem") is None for row in result):
            hidden.add("problem")
        shown = [{key: value for key, value in row.items() if key not in hidden} for row in result]
        cells = [["" if value is None else figure(value) for value in row.values()] for row in shown]
        print_table(list(shown[0]), cells)
    else:
        print(f"no trunk states in {folder}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise LatePromptError(f"{problems[0]}{more}")


def _look_after(args: Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What list, verify or prune found, and what is wrong with stores that it could not handle."""
    from lateprompt.state_cache import list_stores, prune_stores, verify_stores

    if args.action == "prune":
        limit = args.limit_gb
        if limit is None:
            raise LatePromptError("states prune needs --limit-gb: how much may stay (0 removes everything)")
        if not limit >= 0:
            raise LatePromptError(f"limit_gb {limit!r} is no size; give a number of 10^9 bytes from 0")
        done = prune_stores(folder, limit * 1e9)
        refused = [] if done.fits else list(done.refused.values())
        return [{"freed_bytes": done.freed_bytes}], [*refused, *done.broken.values()]
    if args.folder is None and not os.path.lexists(folder):  # the usual one, in which nothing has been kept yet
        return [], []
    result = list_stores(folder) if args.action == "list" else [vars(found) for found in verify_stores(folder)]
    return result, [row["problem"] for row in result if row["problem"] is not None]


def _fill(args: Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    from lateprompt.data import TextTask, load_task, read_rows
    from lateprompt.predictors.base import TunedModel
    from lateprompt.predictors.kinds import kind_of
    from lateprompt.runs.data import resolve_task
    from lateprompt.state_cache.fill import fill_layers
    from lateprompt.training.data_settings import DataSettings
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
        method="read-fixed" if args.read_only else "fixed",  # the states are the same under every generator
        prompt_layer=args.prompt_layer[0],
        readout=args.readout,
        head_pooling=args.head_pooling,
        max_length=args.max_length,
        max_target_length=args.max_target_length,
        device=args.device,
    )
    tuned = kind_of(task).build(settings, task, seed=0)
    assert isinstance(tuned, TunedModel)
    stores = fill_layers(tuned.model, tuned.readout, tuned.batches(rows), args.prompt_layer, folder, args.dtype)
    return [store.describe() for store in stores], []
