"""Rows of several adapters in a batch (PEFT's `adapter_names`): one pass per prompt layer, each row its own prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.generic import ModelOutput

from lateprompt.backbone.call_context import BASE, gathered, replace_hidden, select_rows, text_of
from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from lateprompt.backbone.late_backbone import LateBackbone


def check_names(layer: LateBackbone, names: list[str], batch: int) -> None:
    """Raise LatePromptError unless there is one known adapter a row, and all of them are late prompts."""
    unknown = sorted({n for n in names if n != BASE and n not in layer.slots})
    if unknown:
        raise LatePromptError(f"adapter_names has {unknown[0]!r}, which is none of {sorted(layer.slots)} or {BASE!r}")
    other = [name for name in layer.slots if name in layer.detours or name in layer.late_prompt_beneath]
    if other:
        raise LatePromptError(
            f"adapter_names cannot be used while adapter {other[0]!r} is there: it is more than a late prompt, and "
            "would change the other rows too; delete it, or call with one active adapter"
        )
    if len(names) != batch:
        raise LatePromptError(f"adapter_names has {len(names)} names for a batch of {batch} rows; give one a row")


def forward_mixed(
    layer: LateBackbone,
    names: list[str],
    call: dict[str, Any],
    source_mask: torch.Tensor | None,
    trunk_states: torch.Tensor | None,
    read: torch.Tensor | None,
) -> ModelOutput:
    """Rows of several adapters: one pass per prompt layer, each row with its own generator and prompt length."""
    batch = len(names)
    groups = layer.rows_by_layer(names)
    layers = sorted(groups, key=lambda p: p or 0)
    if trunk_states is not None and (None in groups or len(groups) > 1):
        raise LatePromptError(
            f"trunk_states belong to one prompt layer, but adapter_names asks for {layers} ({BASE}: None)"
        )
    if len(groups) == 1:
        return layer.forward_group(sorted(set(names)), names, call, source_mask, trunk_states, read)
    if call.get("past_key_values") is not None or call.get("use_cache"):
        raise LatePromptError(
            f"adapter_names mixes prompt layers {layers} in one cached generation; use adapters of one prompt "
            "layer, or use_cache=False"
        )
    call["use_cache"] = False if layer.family.causal else call.get("use_cache")
    order: list[torch.Tensor] = []
    outputs: list[Any] = []
    device = text_of(call, trunk_states).device
    for p in layers:
        rows = torch.tensor(groups[p], device=device)
        part = {key: select_rows(value, rows, batch) for key, value in call.items()}
        places = select_rows(read, rows, batch)
        if p is None:
            bare = layer.run_base({**part, "return_dict": True})
            outputs.append(bare if read is None else gathered(bare, places))
        else:
            own = [names[i] for i in groups[p]]
            mask = select_rows(source_mask, rows, batch)
            outputs.append(layer.forward_group(sorted(set(own)), own, part, mask, None, places))
        order.append(rows)
    back = torch.cat(order).argsort()
    merged = torch.cat([output.last_hidden_state for output in outputs])[back]
    result = replace_hidden(outputs[-1], merged, layer.pooled(merged, read))
    if result.get("hidden_states") is not None:
        layers_of_rows = zip(*(output.hidden_states for output in outputs), strict=True)
        result["hidden_states"] = tuple(torch.cat(states)[back] for states in layers_of_rows)
    if result.get("attentions") is not None:
        raise LatePromptError(
            f"output_attentions differ in shape between prompt layers {layers}; ask for them one at a time"
        )
    return result  # type: ignore[no-any-return]


def prompts_of(
    layer: LateBackbone,
    adapters: list[str],
    names: list[str] | None,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    k: int,
) -> torch.Tensor:
    """Each row's prompt (batch, k, hidden); shorter prompts stand at the right end of their k slots."""
    if mask is not None and mask.shape != states.shape[:2]:
        raise LatePromptError(
            f"source_mask has shape {tuple(mask.shape)}, the text {tuple(states.shape[:2])}; give (batch, length)"
        )
    if names is None:
        return layer.generate_prompt(adapters[0], states, mask)
    prompt = states.new_zeros(states.shape[0], k, states.shape[-1])
    for adapter in adapters:
        length = layer.prompt_length(adapter)
        if length:
            rows = torch.tensor([i for i, name in enumerate(names) if name == adapter], device=states.device)
            own = layer.generate_prompt(adapter, states[rows], None if mask is None else mask[rows])
            prompt = prompt.index_put((rows[:, None], torch.arange(k - length, k, device=rows.device)), own)
    return prompt
