"""Masks and positions of a tail with a prompt at the front, which every position that follows must see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import masking_utils

from lateprompt.backbone.families import Family
from lateprompt.utils.errors import LatePromptError


def has_window(config: Any, family: Family) -> bool:
    """Whether some layer of this (already cut) config attends within a window only."""
    if family.window == "by_type":
        return "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if family.window == "single":
        return getattr(config, "sliding_window", None) is not None
    return False


def tail_masks(
    tail: nn.Module, family: Family, states: torch.Tensor, mask: torch.Tensor | None, cache: Any, num_prompt_tokens: int
) -> Any:
    """The tail's attention mask, with the first k key positions visible where a window would hide them.

    Args:
        tail: the tail view; its config says which layers have a window.
        states: (batch, k + length, hidden), what the tail is fed.
        mask: (batch, k + seen + length), 1 for positions to attend to, or None.
        cache: the tail's cache view, or None.
        num_prompt_tokens: k.

    Returns:
        What the family's `forward` takes as a ready mask, or `mask` itself where no layer has a window and its own code
        makes no detour.

    Raises:
        LatePromptError: an attention kernel that cannot take such a mask (flash attention).
    """
    config: Any = tail.config
    k = num_prompt_tokens
    windowed = k > 0 and has_window(config, family)
    # Left to itself transformers asks the device whether the mask hides anything (or a text is packed), and waits.
    asks = (mask is not None or family.causal) and not family.counts_in_mask
    ready = cache is None and asks and config._attn_implementation == "sdpa"
    if not windowed and not ready:
        return mask
    if "flash" in str(config._attn_implementation):
        raise LatePromptError(
            f"attention kernel {config._attn_implementation!r} cannot keep a late prompt visible in sliding-window "
            "layers; load the model with attn_implementation='sdpa'"
        )

    def prompt_rule(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key < k) & (key <= query) if family.causal else key < k

    arguments = {"config": config, "inputs_embeds": states, "attention_mask": mask}
    skip = {"allow_is_causal_skip" if family.causal else "allow_is_bidirectional_skip": False}
    full: Any
    sliding: Any
    if family.causal:
        arguments["past_key_values"] = cache
        full, sliding = masking_utils.create_causal_mask, masking_utils.create_sliding_window_causal_mask
    else:
        full, sliding = masking_utils.create_bidirectional_mask, masking_utils.create_bidirectional_sliding_window_mask
    rule = {"or_mask_function": prompt_rule} if k else skip  # with a rule of ours it does not ask either
    if family.window == "by_type":
        masks = {"full_attention": full(**arguments, **skip)}
        if has_window(config, family):
            masks["sliding_attention"] = sliding(**arguments, **rule)
        return masks
    return sliding(**arguments, **rule) if has_window(config, family) else full(**arguments, **skip)


def widen_buffers(tail: nn.Module, family: Family, num_prompt_tokens: int) -> None:
    """GPT-Neo keeps its mask as a buffer in the attention: the tail's own copies get k more rows and columns (a text of
    full length keeps its room), and their windows show the first k keys.

    The buffer is shared with the model; each copy gets its own dict with a wider mask, made anew when k or the device
    changes.
    """
    if family.window != "buffer":
        return
    k = num_prompt_tokens
    for module in tail.modules():
        if "attention_type" not in module.__dict__ or "bias" not in module._buffers:
            continue
        shared = module.__dict__.setdefault("_shared_buffers", module._buffers)
        narrow = shared["bias"]
        key = (k, narrow.device)
        if module.__dict__.get("_widened") == key:
            continue
        size = narrow.shape[-1] + k
        wide = torch.ones(1, 1, size, size, dtype=torch.bool, device=narrow.device).tril()
        if module.__dict__["attention_type"] == "local":
            attention: Any = module
            hidden = wide.tril(-attention.config.window_size)
            hidden[..., :k] = False
            wide ^= hidden
        module.__dict__["_buffers"] = {**shared, "bias": wide}
        module.__dict__["_widened"] = key


def with_prompt(
    mask: torch.Tensor | None, lengths: Sequence[int] | None, states: torch.Tensor, seen: int, num_prompt_tokens: int
) -> torch.Tensor:
    """The mask (batch, k + seen): the prompt is always attended to, the empty slots of shorter ones never.

    Args:
        mask: (batch, seen), or None: all.
        lengths: each row's prompt length where they differ; shorter prompts stand at the right end of the k slots.
        states: (batch, length, hidden), for the batch's size and device.
        seen: positions of the text, those in the cache included.
        num_prompt_tokens: k.
    """
    batch, k = states.shape[0], num_prompt_tokens
    if mask is None:
        mask = torch.ones(batch, seen, dtype=torch.long, device=states.device)
    prompt = mask.new_ones(batch, k)
    if lengths is not None:
        empty = torch.tensor([k - length for length in lengths], device=mask.device)
        prompt = (torch.arange(k, device=mask.device) >= empty[:, None]).to(mask.dtype)
    return torch.cat([prompt, mask], 1)


def tail_positions(
    positions: torch.Tensor | None, mask: torch.Tensor | None, length: int, num_prompt_tokens: int, decoding: bool
) -> torch.Tensor | None:
    """Rotary positions of the tail (batch, k + length): the text's moved by k, the prompt's right before its first.

    Only distances matter to a rotary embedding: the text keeps its own, and a left-padded row stands as far from
    its prompt as an unpadded one. The prompt itself has no position embedding.
    """
    k = num_prompt_tokens
    if positions is None:
        if mask is None or decoding:
            return None  # Hugging Face counts on from the cache, which holds the prompt
        positions = torch.arange(length, device=mask.device)[None].expand(mask.shape[0], -1)
    if decoding or k == 0:
        return positions + k
    if mask is None:
        start = positions[:, :1]
    else:
        first = mask.to(torch.long).argmax(1, keepdim=True)
        start = positions.expand(mask.shape[0], -1).gather(1, first)
    prompt = start + torch.arange(k, device=positions.device)
    return torch.cat([prompt, positions.expand(prompt.shape[0], -1) + k], 1)
