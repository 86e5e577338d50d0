"""Several continuations of one source in one pass: the source once, every label's words packed behind it.

A word sees the prompt, its source, and the earlier words of its own label; its position goes on from its own source's
end. That is exactly what a whole pass for each label computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.call_context import LateCall, States, TextKeys
from lateprompt.backbone.families import Family
from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.late_pass import run_trunk
from lateprompt.backbone.masks import has_window
from lateprompt.backbone.read_only.rows import Behind
from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.randomness import in_turn


def can_pack(layer: LateBackbone) -> bool:
    """Whether the architecture takes packed words' masks and positions, and the active adapter is a late prompt's.

    GPT-Neo cuts its windows by place in the sequence, OPT counts positions in the mask: their labels take a pass each.
    """
    family, name = layer.family, layer.selected_adapter()
    return (
        layer.config._attn_implementation in ("eager", "sdpa")
        and family.causal
        and family.window != "buffer"
        and not family.counts_in_mask
        and name is not None
        and name not in layer.input_prompts
    )


def packed_hidden(
    layer: LateBackbone,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor,
    tokens: torch.Tensor,
    states: States | None = None,
    word_states: torch.Tensor | None = None,
    text_keys: TextKeys | None = None,
) -> torch.Tensor:
    """The tail's output (batch, 1 + labels · width, hidden) at the source's end and at each label's words.

    The generator reads the source alone.

    Args:
        layer, input_ids, mask, ends, tokens: as in `packed_trunk`.
        states: (batch, n, hidden), the trunk's states of the sources, where they are kept; for a read-only prompt
            perhaps several such by layer.
        word_states: (batch, labels · width, hidden), the trunk's states of the words, where they are kept.
        text_keys: the sources' keys and values, where they are kept (`LateCall`).

    Raises:
        LatePromptError: states of sources without those of the words.
    """
    if states is None:
        layer.check_trunk()
    elif word_states is None:
        raise LatePromptError(
            f"trunk_states were given without those of the label words; use {option('states', 'off')}"
        )
    name = layer.selected_adapter()
    assert name is not None
    text = PackedText(input_ids, mask, ends, tokens, layer.family)
    if layer.slots[name].read_only:
        return _read_hidden(layer, name, text, states, word_states, text_keys)
    if states is not None:
        states = LateCall({}, trunk_states=states).states_after(layer.slots[name].prompt_layer)
        assert states is not None
        assert word_states is not None
        states = torch.cat([states, word_states.to(states.dtype)], 1)
    with layer.kernels():
        output: Any = layer.run_text(name, text, states, text.read)
    return output.last_hidden_state  # type: ignore[no-any-return]


def _read_hidden(
    layer: LateBackbone,
    name: str,
    text: PackedText,
    states: States | None,
    word_states: torch.Tensor | None,
    text_keys: TextKeys | None,
) -> torch.Tensor:
    """`packed_hidden` of a read-only prompt: the words are queries behind it, the source is the frozen text."""
    length = text.input_ids.shape[1]
    if states is None or word_states is None:
        with torch.no_grad(), layer.kernels():
            together = run_trunk(layer.late_mode(layer.slots[name].prompt_layer), text)[0]
        states, word_states = together[:, :length], together[:, length:]
    _, labels, width = text.tokens.shape
    places = positions_of(length, text.ends, labels, width)[:, length:]
    read = layer.read_call(
        name,
        behind=Behind(word_states, places, among(labels, width, places.device)[None]),
        input_ids=text.input_ids,
        attention_mask=text.mask,
        anchor=text.ends,
        trunk_states=states,
        text_keys=text_keys,
    )
    assert read.written is not None
    return torch.cat([read.mean[:, None], read.written], 1)


@in_turn
def packed_trunk(
    layer: LateBackbone,
    prompt_layer: int,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    ends: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """The trunk's states (batch, n + labels · width, hidden) of sources and words.

    Args:
        layer: the late backbone.
        prompt_layer: p.
        input_ids, mask: (batch, n), right padded.
        ends: (batch,) the source's last position.
        tokens: (batch, labels, width), filled up with any token.
    """
    text = PackedText(input_ids, mask, ends, tokens, layer.family)
    with layer.kernels():
        return run_trunk(layer.split_at(prompt_layer), text)[0]


@dataclass(frozen=True)
class PackedText:
    """Sources and their labels' words, for `lateprompt.backbone.late_pass.late_pass`.

    Args:
        input_ids, mask, ends, tokens: as in `packed_trunk`.
        family: the backbone's.
    """

    input_ids: torch.Tensor
    mask: torch.Tensor
    ends: torch.Tensor
    tokens: torch.Tensor
    family: Family
    cache: None = None
    cached_length: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return {"use_cache": False}

    @property
    def read(self) -> torch.Tensor:
        """Positions (batch, 1 + labels · width) of the source's end and of the words."""
        batch, labels, width = self.tokens.shape
        words = self.input_ids.shape[1] + torch.arange(labels * width, device=self.ends.device)
        return torch.cat([self.ends[:, None], words.expand(batch, -1)], 1)

    def trunk_arguments(self, trunk: nn.Module) -> dict[str, Any]:
        backbone: Any = trunk
        return {
            "input_ids": torch.cat([self.input_ids, self.tokens.flatten(1)], 1),
            "attention_mask": self._masks(trunk, backbone.get_input_embeddings().weight, 0),
            "position_ids": self._positions(),
        }

    def source(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return states[:, : self.input_ids.shape[1]], self.mask

    def tail_arguments(
        self, tail: nn.Module, tail_input: torch.Tensor, num_prompt_tokens: int, lengths: Sequence[int] | None
    ) -> dict[str, Any]:
        k = num_prompt_tokens
        arguments: dict[str, Any] = {"attention_mask": self._masks(tail, tail_input, k)}
        if hasattr(tail, "rotary_emb"):
            prompt = torch.arange(k, device=self.ends.device).expand(len(self.ends), -1)
            arguments["position_ids"] = torch.cat([prompt, self._positions() + k], 1)
        return arguments

    def _positions(self) -> torch.Tensor:
        _, labels, width = self.tokens.shape
        return positions_of(self.input_ids.shape[1], self.ends, labels, width)

    def _masks(self, view: nn.Module, like: torch.Tensor, k: int) -> Any:
        """What a view's `forward` takes as a ready mask, with k prompt positions; of the dtype of `like` if eager."""
        config: Any = view.config
        _, labels, width = self.tokens.shape

        def ready(window: int | None) -> torch.Tensor:
            seen = visible(self.mask, self.ends, labels, width, window)
            seen = (_with_prompt(seen, k) if k else seen)[:, None]
            if config._attn_implementation == "sdpa":
                return seen
            hidden = torch.finfo(like.dtype).min
            return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, hidden)

        windowed = has_window(config, self.family)
        if self.family.window == "by_type":
            masks = {"full_attention": ready(None)}
            if windowed:
                masks["sliding_attention"] = ready(int(config.sliding_window))
            return masks
        return ready(int(config.sliding_window) if windowed else None)


def visible(mask: torch.Tensor, ends: torch.Tensor, labels: int, width: int, window: int | None) -> torch.Tensor:
    """Which keys each query may see (batch, n + labels · width, the same).

    Args:
        mask: (batch, n), 1 for the source's own tokens; padding is on the right.
        ends: (batch,) the source's last position.
        labels: how many labels' words each row has.
        width: the longest label's words.
        window: how far back a layer looks, or None.
    """
    batch, length = mask.shape
    device = mask.device
    places = torch.arange(length, device=device)
    source = (places <= places[:, None]) & mask.bool()[:, None]
    to_source = mask.bool()[:, None].expand(-1, labels * width, -1)
    step = torch.arange(width, device=device).repeat(labels)
    words = among(labels, width, device)
    if window is not None:
        source = source & (places[:, None] - places < window)
        positions = ends[:, None] + 1 + step
        to_source = to_source & (positions[..., None] - places < window)
        words = words & (step[:, None] - step < window)
    nothing = source.new_zeros(batch, length, labels * width)
    below = torch.cat([to_source, words.expand(batch, -1, -1)], 2)
    return torch.cat([torch.cat([source, nothing], 2), below], 1)


def among(labels: int, width: int, device: torch.device) -> torch.Tensor:
    """Which words see each other (labels · width, the same): the earlier ones of their own label."""
    step = torch.arange(width, device=device).repeat(labels)
    which = torch.arange(labels, device=device).repeat_interleave(width)
    return (which == which[:, None]) & (step <= step[:, None])


def positions_of(length: int, ends: torch.Tensor, labels: int, width: int) -> torch.Tensor:
    """Positions (batch, n + labels · width) of source and words.

    `width` is the longest label's less one: what fills up shorter ones has no place that the longest has not.
    """
    source = torch.arange(length, device=ends.device).expand(len(ends), -1)
    steps = torch.arange(width, device=ends.device).repeat(labels)
    return torch.cat([source, ends[:, None] + 1 + steps], 1)


def _with_prompt(seen: torch.Tensor, k: int) -> torch.Tensor:
    """The same with k prompt positions in front, which all that follows sees."""
    wide = F.pad(seen, (k, 0, k, 0))
    wide[:, k:, :k] = True
    wide[:, :k, :k] = torch.ones(k, k, dtype=torch.bool, device=seen.device).tril()
    return wide


can_branch, branch_hidden, branch_trunk = can_pack, packed_hidden, packed_trunk
"""Names of earlier releases."""
