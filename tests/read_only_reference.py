"""The slow form of a read-only prompt: text and prompt in one sequence, with a mask that hides the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lateprompt.backbone.families import family_of
from lateprompt.backbone.late_pass import prompt_of
from lateprompt.backbone.split import Split, own_module
from lateprompt.backbone.views import PromptSlot


def slow_read(
    core: Any,
    generator: nn.Module,
    slot: PromptSlot,
    batch: dict[str, torch.Tensor],
    anchor: torch.Tensor,
    source: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean output (batch, hidden) of a prompt behind the text, computed with the text, which cannot see it.

    Args:
        core: the bare backbone, in eval mode.
        generator: makes the prompt.
        slot: where it enters, and what it starts from.
        batch: `input_ids`, `attention_mask`, and perhaps `position_ids`.
        anchor: (batch,), the position that it stands for.
        source: (batch, length), what the generator may read.
    """
    family, p = family_of(core), slot.prompt_layer
    split = Split(core, p)
    mask = batch["attention_mask"]
    options = {"use_cache": False} if family.causal else {}
    states = split.trunk(**batch, **options).last_hidden_state.detach()
    prompt = prompt_of(generator, slot, states, mask if source is None else source, anchor)
    k, (rows, length, _) = prompt.shape[1], states.shape
    together = torch.cat([states, prompt], 1)
    at = torch.cat([torch.arange(length).expand(rows, -1), anchor[:, None].expand(-1, k)], 1)

    def sees(window: int | None) -> torch.Tensor:
        """(batch, length + k, the same), true where a position may look."""
        found = torch.zeros(rows, length + k, length + k, dtype=torch.bool)
        for row in range(rows):
            for i in range(length + k):
                for j in range(length):
                    near = window is None or (
                        at[row, i] - j < window if family.causal else abs(at[row, i] - j) <= window
                    )
                    before = not family.causal or j <= at[row, i]
                    itself = i >= length and j == anchor[row]
                    found[row, i, j] = bool(mask[row, j]) and bool(near) and bool(before) and not bool(itself)
                if i < length:
                    found[row, i, i] = True  # padding looks at itself: a row of nothing is no number
            found[row, length:, length:] = True
        return found

    def ready(window: int | None) -> torch.Tensor:
        seen = sees(window)[:, None]
        if core.config._attn_implementation == "sdpa" or core.config.model_type == "deberta-v2":
            return seen
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    arguments: dict[str, Any] = {}
    tail: Any = split.tail
    config = core.config
    if family.window == "by_type":
        arguments["attention_mask"] = {
            "full_attention": ready(None),
            "sliding_attention": ready(getattr(config, "sliding_window", None)),
        }
    elif family.window == "single":
        arguments["attention_mask"] = ready(config.sliding_window)
    elif family.window != "buffer":
        arguments["attention_mask"] = ready(None)
    if hasattr(tail, "rotary_emb"):
        positions = batch.get("position_ids")
        arguments["position_ids"] = at if positions is None else positions.expand(rows, -1).gather(1, at)
    if family.relative is not None:
        table = family.relative(core, states[:1])
        encoder: Any = own_module(tail, "encoder", {})
        if core.config.model_type == "mpnet":
            bias = torch.stack([table[0][:, one[:, None], one] for one in at])
            encoder.__dict__["compute_position_bias"] = lambda hidden: bias
        else:
            distances = table.reshape(table.shape[-2:])
            own = torch.stack([distances[one[:, None], one] for one in at]).repeat_interleave(
                config.num_attention_heads, 0
            )
            encoder.__dict__["get_rel_pos"] = lambda *args: own[None]
    if family.window == "buffer":
        full, local = ready(None), ready(config.window_size)
        layers = own_module(tail, family.layers, {})._modules
        for name in list(layers):
            owned: dict[str, nn.Module] = {}
            attention: Any = own_module(layers[name], "attn.attention", owned)  # type: ignore[arg-type]
            attention.__dict__["_buffers"] = {"bias": torch.ones(1, 1, length + k, length + k, dtype=torch.bool)}
            own_mask = local if attention.attention_type == "local" else full
            attention.__dict__["_attn"] = _with_mask(attention, own_mask)
    output = tail(inputs_embeds=together, **arguments, **options).last_hidden_state
    return output[:, length:].mean(1)  # type: ignore[no-any-return]


def _with_mask(attention: Any, mask: torch.Tensor) -> Any:
    kind = type(attention)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any = None) -> Any:
        return kind._attn(attention, query, key, value, mask)

    return attend
