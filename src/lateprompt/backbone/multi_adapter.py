"""Rows of several adapters in a batch (PEFT's `adapter_names`): one pass per prompt layer, each row its own prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from lateprompt.backbone.call_context import BASE, LateCall, replace_hidden
from lateprompt.backbone.late_pass import pooled
from lateprompt.backbone.views import PromptSlot, Views
from lateprompt.utils.errors import LatePromptError

Rows = dict[int | None, list[int]]
"""The rows of a batch by the layer after which their prompts enter (None: no prompt; `READ_ONLY`: read-only ones)."""
READ_ONLY = -1
"""Stands for the prompt layers of read-only prompts, whatever they are: one pass serves them all."""


def rows_by_layer(names: Sequence[str], slots: Mapping[str, PromptSlot]) -> Rows:
    """The rows of `adapter_names`; those without a prompt go along with read-only ones."""
    groups: Rows = {}
    for row, name in enumerate(names):
        slot = slots.get(name)
        layer = None if slot is None else READ_ONLY if slot.read_only else slot.prompt_layer
        groups.setdefault(layer, []).append(row)
    if READ_ONLY in groups and None in groups:
        groups[READ_ONLY] = sorted(groups[READ_ONLY] + groups.pop(None))
    return groups


def check_names(names: Sequence[str], batch: int, slots: Iterable[str], more_than_prompts: Iterable[str]) -> None:
    """Raise LatePromptError unless there is one known adapter a row, and all adapters are late prompts.

    Args:
        names: each row's adapter.
        batch: how many rows there are.
        slots: the adapters that there are.
        more_than_prompts: those with a tuner, or with a prompt elsewhere.
    """
    known, others = sorted(slots), sorted(more_than_prompts)
    unknown = sorted(set(names) - {BASE, *known})
    if unknown:
        raise LatePromptError(f"adapter_names has {unknown[0]!r}, which is none of {known} or {BASE!r}")
    if others:
        raise LatePromptError(
            f"adapter_names cannot be used while adapter {others[0]!r} is there: it is more than a late prompt, and "
            "would change the other rows too; delete it, or call with one active adapter"
        )
    if len(names) != batch:
        raise LatePromptError(f"adapter_names has {len(names)} names for a batch of {batch} rows; give one a row")


def forward_mixed(
    views: Views,
    groups: Rows,
    names: Sequence[str],
    call: LateCall,
    run: Callable[[Sequence[str], LateCall], ModelOutput],
) -> ModelOutput:
    """One pass per prompt layer, and the rows together again.

    Args:
        views: of the backbone.
        groups: the rows by prompt layer.
        names: each row's adapter.
        call: the whole batch's.
        run: the pass of rows with one prompt layer, from their adapters and their call.

    Raises:
        LatePromptError: the call has what only one prompt layer can have: trunk states, a KV cache, attentions.
    """
    layers = sorted(groups, key=lambda p: p or 0)
    named = ["read-only" if layer == READ_ONLY else layer for layer in layers]
    if isinstance(call.trunk_states, torch.Tensor) and (None in groups or len(groups) > 1):
        raise LatePromptError(
            f"trunk_states belong to one prompt layer, but adapter_names asks for {named} ({BASE}: None)"
        )
    if len(groups) == 1:
        return run(names, call)
    if call.arguments.get("past_key_values") is not None or call.arguments.get("use_cache"):
        raise LatePromptError(
            f"adapter_names mixes prompt layers {named} in one cached generation; use adapters of one prompt "
            "layer, or use_cache=False"
        )
    if views.family.causal:
        call = replace(call, arguments={**call.arguments, "use_cache": False})
    device = call.text.device
    order = [torch.tensor(groups[p], device=device) for p in layers]
    outputs = [run([names[i] for i in groups[p]], call.rows(rows)) for p, rows in zip(layers, order, strict=True)]
    return _merged(views, outputs, torch.cat(order).argsort(), call, layers)


def _merged(
    views: Views, outputs: Sequence[Any], back: torch.Tensor, call: LateCall, layers: Sequence[int | None]
) -> ModelOutput:
    """The groups' outputs as one, their rows in the order `back`."""
    if outputs[-1].get("attentions") is not None:
        raise LatePromptError(
            f"output_attentions differ in shape between prompt layers {layers}; ask for them one at a time"
        )
    hidden = torch.cat([output.last_hidden_state for output in outputs])[back]
    result = replace_hidden(outputs[-1], hidden, pooled(views, hidden) if call.read is None else None)
    if result.get("hidden_states") is not None:
        of_layers = zip(*(output.hidden_states for output in outputs), strict=True)
        result["hidden_states"] = tuple(torch.cat(states)[back] for states in of_layers)
    return result  # type: ignore[no-any-return]
