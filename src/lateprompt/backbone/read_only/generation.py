"""Read-only prompts while a decoder writes: they lie in the KV cache of the layers above them.

The cache has the frozen text's own keys and values, and in front of them, in the layers above p, the prompts'. What is
written sees both, but for the anchor's own key: the prompt stands in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from lateprompt.backbone.call_context import LateCall
from lateprompt.backbone.late_pass import Prompts, late_pass
from lateprompt.backbone.masks import tail_masks, with_prompt
from lateprompt.backbone.read_only.rows import Read
from lateprompt.backbone.text import PlainText
from lateprompt.backbone.views import PromptSlot, Views
from lateprompt.utils.errors import LatePromptError

_ANCHOR = "lateprompt_anchor"
ONE_CACHE = "a KV cache takes rows with read-only prompts of one layer: use use_cache=False"


def with_cache(call: LateCall, views: Views, *, training: bool) -> tuple[LateCall, Cache | None]:
    """The call with a KV cache of its own if the backbone is to keep one, and the cache."""
    if not views.family.causal:
        return call, None
    use, cache = call.arguments.get("use_cache"), call.arguments.get("past_key_values")
    if call.trunk_states is not None and (use or cache is not None):
        raise LatePromptError("trunk_states skip the trunk, which then has no keys to cache; use use_cache=False")
    if use is None:
        use = bool(getattr(views.backbone.config, "use_cache", False)) and not (
            training or call.trunk_states is not None
        )
    if not (use or cache is not None):
        return call, None
    cache = DynamicCache(config=views.backbone.config) if cache is None else cache
    return replace(call, arguments={**call.arguments, "past_key_values": cache}), cache


def keep_prompts(cache: Any, read: Read) -> bool:
    """Put the prompts' keys and values in front of the text's in the layers that they went through.

    What is written behind the sources has seen the prompts: its own take the place of the frozen model's.

    Returns:
        Whether they are there: not where the rows' prompts enter after different layers, or some rows have none.
    """
    rows = len(read.text.mask)
    if any(len(keys) != rows for keys, _ in read.own_keys):
        return False
    layers = cache.layers[len(cache.layers) - len(read.own_keys) :]
    for layer, (keys, values) in zip(layers, read.own_keys, strict=True):
        layer.keys = _with_own(layer.keys, keys, read)
        layer.values = _with_own(layer.values, values, read)
    setattr(cache, _ANCHOR, read.text.anchor)
    return True


def _with_own(cached: torch.Tensor, own: torch.Tensor, read: Read) -> torch.Tensor:
    """Keys or values (batch, heads for keys, k + length, width) of prompts and texts; `own` are the queries'."""
    own, k, behind = read.by_row(own).to(cached.dtype), read.prompt.shape[1], read.behind
    if behind is not None and behind.is_written is not None:
        is_written = read.by_row(behind.is_written)
        row, _ = is_written.nonzero(as_tuple=True)
        at = row, read.by_row(behind.places)[is_written]
        written = own[:, :, k:].transpose(1, 2)[is_written]
        cached = cached.transpose(1, 2).index_put(at, written).transpose(1, 2)
    return torch.cat([own[:, :, :k], cached], 2)


def decode_behind(
    views: Views,
    slots: Mapping[str, PromptSlot],
    generators: Mapping[str, nn.Module],
    names: str | Sequence[str],
    call: LateCall,
    training: bool,
) -> ModelOutput:
    """The output for tokens behind a text that is in the KV cache with its prompt."""
    cache = call.arguments["past_key_values"]
    anchor = getattr(cache, _ANCHOR, None)
    if anchor is None:
        raise LatePromptError("past_key_values have no read-only prompt; begin with the whole text")
    own = [names] if isinstance(names, str) else list(names)
    slot = slots.get(own[0])
    if slot is None or any(slots.get(name, slot).prompt_layer != slot.prompt_layer for name in own):
        raise LatePromptError(f"adapter_names {own} cannot go on from one KV cache; {ONE_CACHE}")
    text = PlainText.of(call, views, slot.prompt_layer, training=training)
    behind = BehindPrompt(**{**vars(text), "anchor": anchor.expand(len(call.text)) if len(anchor) == 1 else anchor})
    used = {name: generators[name] for name in dict.fromkeys(own) if name in generators}
    prompts = Prompts(used, None if isinstance(names, str) else own)
    return late_pass(views, slot, prompts, behind, read=call.read, training=training)


@dataclass(frozen=True)
class BehindPrompt(PlainText):
    """Tokens behind a text whose prompt is in the cache, for `lateprompt.backbone.late_pass.late_pass`.

    Args:
        anchor: (batch,), the position that the prompt stands for.
    """

    anchor: torch.Tensor | None = None

    def tail_arguments(
        self, tail: nn.Module, tail_input: torch.Tensor, num_prompt_tokens: int, lengths: Sequence[int] | None
    ) -> dict[str, Any]:
        below, cache = self.parts
        assert below is not None
        length, seen = tail_input.shape[1], int(below.get_seq_length())
        mask = self.call.arguments.get("attention_mask")
        if mask is None:
            mask = torch.ones(len(tail_input), seen, dtype=torch.long, device=tail_input.device)
        assert self.anchor is not None
        mask = mask.scatter(1, self.anchor[:, None], 0)
        mask = with_prompt(mask, lengths, tail_input, seen, num_prompt_tokens)
        arguments: dict[str, Any] = {"past_key_values": cache}
        if hasattr(tail, "rotary_emb"):
            positions = self.call.arguments.get("position_ids")
            if positions is None:
                positions = torch.arange(seen - length, seen, device=tail_input.device)[None]
            arguments["position_ids"] = positions
        masks = tail_masks(tail, self.family, tail_input, mask, cache, num_prompt_tokens)
        return {**arguments, "attention_mask": masks}
