"""The frozen states of a batch of texts at the layers that read-only prompts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lateprompt.backbone.call_context import LateCall, first
from lateprompt.backbone.kv_cache import cache_views
from lateprompt.backbone.read_only.views import FrozenViews
from lateprompt.backbone.text import PlainText
from lateprompt.prompts.base import read_position
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class FrozenText:
    """What the frozen model computes of a batch of texts, and what prompts may see of them.

    Args:
        states: (batch, length, hidden) by layer number: the states after so many layers.
        last: (batch, length, hidden), the frozen model's own output; None: it was not asked for.
        mask: (batch, length), true where the text is.
        source: (batch, length), true where a generator may read.
        anchor: (batch,), the position that a prompt stands for.
        positions: (batch or 1, length) of the call's `position_ids`, or None.
        output: the frozen model's own output object, where it has run as a whole.
    """

    states: Mapping[int, torch.Tensor]
    last: torch.Tensor | None
    mask: torch.Tensor
    source: torch.Tensor
    anchor: torch.Tensor
    positions: torch.Tensor | None = None
    output: Any = None

    def rows(self, rows: torch.Tensor) -> FrozenText:
        """Some rows of the batch."""
        positions = self.positions
        if positions is not None and len(positions) > 1:
            positions = positions[rows]
        return replace(
            self,
            states={layer: states[rows] for layer, states in self.states.items()},
            last=None if self.last is None else self.last[rows],
            mask=self.mask[rows],
            source=self.source[rows],
            anchor=self.anchor[rows],
            positions=positions,
            output=None,
        )

    @property
    def continuation(self) -> torch.Tensor:
        """Positions (batch, length) behind the anchor that are no source: what a decoder writes, which sees prompts."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        return self.mask & ~self.source & (places > self.anchor[:, None])


@torch.no_grad()
def frozen_text(frozen: FrozenViews, call: LateCall, prompt_layer: int, *, whole: bool) -> FrozenText:
    """Run the frozen model on a call's texts, from the deepest states that the call brings along.

    Args:
        frozen: the frozen model.
        call: the call; its `trunk_states` are those at `prompt_layer`, or several by layer.
        prompt_layer: p, the first layer whose states are wanted; those of all later ones are too.
        whole: whether the frozen model's output is wanted.
    """
    given = call.trunk_states
    wanted = range(prompt_layer, frozen.num_layers)
    mask, source, anchor = _marks(call, causal=frozen.family.causal)
    positions = call.arguments.get("position_ids")
    if given is None:
        output = _run_whole(frozen, call, prompt_layer)
        hidden = output.hidden_states
        if len(hidden) != frozen.num_layers + 1:
            raise LatePromptError(
                f"{type(frozen.backbone).__name__} gives {len(hidden)} hidden states for {frozen.num_layers} layers, so "
                "a read-only prompt cannot tell which are which; use an ordinary late prompt"
            )
        states = {layer: hidden[layer] for layer in wanted}
        return FrozenText(states, output.last_hidden_state, mask, source, anchor, positions, output)
    kept = dict(given) if isinstance(given, Mapping) else {prompt_layer: given}
    weight = next(frozen.above(wanted[-1]).parameters())
    kept = {layer: states.to(device=weight.device, dtype=weight.dtype) for layer, states in kept.items()}
    missing = next((layer for layer in wanted if layer not in kept), frozen.num_layers)
    last = None
    if missing < frozen.num_layers or whole:
        start = missing - 1
        if start not in kept:
            raise LatePromptError(
                f"trunk_states have layers {sorted(kept)}, but {prompt_layer} is read: give its states"
            )
        above = frozen.above(start)
        plain = PlainText(replace(call, trunk_states=None), frozen.family)
        arguments = plain.tail_arguments(above, kept[start], 0, None)
        extra = {"use_cache": False} if frozen.family.causal else {}
        output = above(inputs_embeds=kept[start], **arguments, **extra, output_hidden_states=True, return_dict=True)
        kept.update({start + i: states for i, states in enumerate(output.hidden_states[:-1])})
        last = output.last_hidden_state
    return FrozenText({layer: kept[layer] for layer in wanted}, last, mask, source, anchor, positions)


def _run_whole(frozen: FrozenViews, call: LateCall, prompt_layer: int) -> Any:
    """The frozen model on the call's own arguments; a KV cache gets its keys and values."""
    arguments = {**call.arguments, "output_hidden_states": True, "return_dict": True}
    if frozen.family.causal:
        cache = arguments.get("past_key_values")
        arguments["use_cache"] = cache is not None
        if cache is not None:
            cache_views(cache, prompt_layer, frozen.num_layers)  # a sliding layer would forget the prompt
    return frozen.above(0)(**arguments)


def _marks(call: LateCall, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask, source (batch, length) and anchor (batch,) of a call's texts."""
    text = call.text
    given = call.arguments.get("attention_mask")
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if given is None else given.bool()
    source = first(call.source_mask, given)
    source = mask if source is None else source.bool()
    if source.shape != mask.shape:
        raise LatePromptError(
            f"source_mask has shape {tuple(source.shape)}, the text {tuple(mask.shape)}; give (batch, length)"
        )
    if call.anchor is not None:
        anchor = call.anchor.reshape(-1).to(text.device)
        if len(anchor) != len(text):
            raise LatePromptError(f"anchor has {len(anchor)} positions for a batch of {len(text)} rows; give one a row")
    else:
        anchor = read_position(source if causal else mask, last=causal)
    return mask, source, anchor
