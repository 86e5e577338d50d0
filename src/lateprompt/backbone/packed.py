"""Several continuations of one source in one pass: the source once, every label's words as a branch of it.

The branches stand behind the source in one sequence. A word sees the prompt, its source, and the earlier words of its
own branch; its position goes on from its own source's end. That is exactly what a whole pass for each branch computes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.families import Family
from lateprompt.backbone.kernels.half_matmul import wide_products
from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.masks import has_window
from lateprompt.utils.randomness import in_turn


def can_branch(layer: LateBackbone) -> bool:
    """Whether the architecture takes the masks and positions of branches, and the active adapter is a late prompt's.

    GPT-Neo cuts its windows by place in the sequence, OPT counts positions in the mask: their branches are passes of
    their own.
    """
    family, name = layer.family, layer.selected_adapter()
    ready = layer.config._attn_implementation in ("eager", "sdpa")
    return (
        ready
        and family.causal
        and family.window != "buffer"
        and not family.counts_in_mask
        and name is not None
        and name not in layer.detours
    )


def visible(mask: torch.Tensor, ends: torch.Tensor, branches: int, width: int, window: int | None) -> torch.Tensor:
    """Which keys each query may see (batch, n + branches · width, the same).

    Args:
        mask: (batch, n), 1 for the source's own tokens; padding is on the right.
        ends: (batch,) the source's last position.
        branches: how many branches each row has.
        width: the longest branch.
        window: how far back a layer looks, or None.
    """
    batch, length = mask.shape
    device = mask.device
    places = torch.arange(length, device=device)
    source = (places <= places[:, None]) & mask.bool()[:, None]
    to_source = mask.bool()[:, None].expand(-1, branches * width, -1)
    step = torch.arange(width, device=device).repeat(branches)
    which = torch.arange(branches, device=device).repeat_interleave(width)
    among = (which == which[:, None]) & (step <= step[:, None])
    if window is not None:
        source = source & (places[:, None] - places < window)
        positions = ends[:, None] + 1 + step
        to_source = to_source & (positions[..., None] - places < window)
        among = among & (step[:, None] - step < window)
    nothing = source.new_zeros(batch, length, branches * width)
    below = torch.cat([to_source, among.expand(batch, -1, -1)], 2)
    return torch.cat([torch.cat([source, nothing], 2), below], 1)


def positions_of(length: int, ends: torch.Tensor, branches: int, width: int) -> torch.Tensor:
    """Positions (batch, n + branches · width) of source and branches.

    `width` is the longest label's less one: what fills up shorter ones has no place that the longest has not.
    """
    source = torch.arange(length, device=ends.device).expand(len(ends), -1)
    steps = torch.arange(width, device=ends.device).repeat(branches)
    return torch.cat([source, ends[:, None] + 1 + steps], 1)


def _with_prompt(seen: torch.Tensor, k: int) -> torch.Tensor:
    """The same with k prompt positions in front, which all that follows sees."""
    wide = F.pad(seen, (k, 0, k, 0))
    wide[:, k:, :k] = True
    wide[:, :k, :k] = torch.ones(k, k, dtype=torch.bool, device=seen.device).tril()
    return wide


def _masks(
    view: nn.Module, family: Family, like: torch.Tensor, mask: torch.Tensor, ends: torch.Tensor, shape: Any, k: int
) -> Any:
    """What a view's `forward` takes as a ready mask."""
    config: Any = view.config
    branches, width = shape

    def ready(window: int | None) -> torch.Tensor:
        seen = visible(mask, ends, branches, width, window)
        seen = (_with_prompt(seen, k) if k else seen)[:, None]
        if config._attn_implementation == "sdpa":
            return seen
        return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(
            ~seen, torch.finfo(like.dtype).min
        )

    windowed = has_window(config, family)
    if family.window == "by_type":
        masks = {"full_attention": ready(None)}
        if windowed:
            masks["sliding_attention"] = ready(int(config.sliding_window))
        return masks
    return ready(int(config.sliding_window) if windowed else None)


@in_turn
def branch_trunk(
    layer: LateBackbone,
    prompt_layer: int,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """The trunk's states (batch, n + branches · width, hidden) of sources and branches.

    Args:
        layer: the late backbone.
        prompt_layer: p.
        input_ids, mask: (batch, n), right padded.
        ends: (batch,) the source's last position.
        tokens: (batch, branches, width), filled up with any token.
    """
    batch, branches, width = tokens.shape
    trunk: Any = layer.split_at(prompt_layer).trunk
    ids = torch.cat([input_ids, tokens.reshape(batch, -1)], 1)
    backbone: Any = layer.base_layer
    masks = _masks(trunk, layer.family, backbone.get_input_embeddings().weight, mask, ends, (branches, width), 0)
    positions = positions_of(input_ids.shape[1], ends, branches, width)
    with wide_products(*layer.placement):
        output = trunk(input_ids=ids, attention_mask=masks, position_ids=positions, use_cache=False, return_dict=True)
    return output.last_hidden_state  # type: ignore[no-any-return]


def branch_hidden(
    layer: LateBackbone,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor,
    tokens: torch.Tensor,
    states: torch.Tensor | None = None,
) -> torch.Tensor:
    """The tail's output (batch, 1 + branches · width, hidden) at the source's end and at each branch's words.

    The generator reads the source alone.

    Args:
        layer, input_ids, mask, ends, tokens: as in `branch_trunk`.
        states: the trunk's states of sources and branches, where they are kept.
    """
    batch, branches, width = tokens.shape
    length = input_ids.shape[1]
    name = layer.selected_adapter()
    assert name is not None
    slot = layer.slots[name]
    split = layer.split_at(slot.prompt_layer)
    trains_trunk = layer.set_mode(slot, split)
    if states is None:
        layer.check_trunk()
        with layer.quick_dropout() if trains_trunk else nullcontext(), torch.set_grad_enabled(trains_trunk):
            states = branch_trunk(layer, slot.prompt_layer, input_ids, mask, ends, tokens)
    else:
        device, dtype = layer.placement
        states = states.to(device=device, dtype=dtype)
    k = layer.prompt_length(name)
    tail_input = states
    if k:
        with layer.quick_dropout():
            tail_input = torch.cat([layer.generate_prompt(name, states[:, :length], mask), states], 1)
    arguments: dict[str, Any] = {"use_cache": False}
    if hasattr(layer.base_layer, "rotary_emb"):
        positions = positions_of(length, ends, branches, width) + k
        arguments["position_ids"] = torch.cat([torch.arange(k, device=ends.device).expand(batch, -1), positions], 1)
    arguments["attention_mask"] = _masks(split.tail, layer.family, tail_input, mask, ends, (branches, width), k)
    words = length + torch.arange(branches * width, device=ends.device)
    read = torch.cat([ends[:, None], words.expand(batch, -1)], 1)
    front = k if layer.trains_prompt_alone(states, split) else 0
    lean = layer.can_be_lean({})
    with wide_products(*layer.placement):
        _, hidden = layer.run_tail(slot.prompt_layer, tail_input, arguments, read, k, k, front, lean=lean)
    return hidden
