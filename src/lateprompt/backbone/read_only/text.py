"""The frozen states of a batch of texts at the layers that read-only prompts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lateprompt.backbone.call_context import LateCall
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
        keys: keys and values by layer, where the call brings them along (the states of the layers that only read them
            may then be missing), or the frozen model has left them.
    """

    states: Mapping[int, torch.Tensor]
    last: torch.Tensor | None
    mask: torch.Tensor
    source: torch.Tensor
    anchor: torch.Tensor
    positions: torch.Tensor | None = None
    output: Any = None
    keys: Mapping[int, tuple[torch.Tensor, torch.Tensor]] | None = None

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
            keys=None
            if self.keys is None
            else {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.keys.items()},
        )

    @property
    def continuation(self) -> torch.Tensor | None:
        """Positions (batch, length) behind the anchor that are no source: what a decoder writes, which sees prompts.

        None: there cannot be any.
        """
        if self.source is self.mask:
            return None
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        return self.mask & ~self.source & (places > self.anchor[:, None])


@torch.no_grad()
def frozen_text(
    frozen: FrozenViews, call: LateCall, prompt_layer: int, *, whole: bool, keys: bool = False
) -> FrozenText:
    """Run the frozen model on a call's texts, from the deepest states that the call brings along.

    Args:
        frozen: the frozen model.
        call: the call; its `trunk_states` are those at `prompt_layer`, or several by layer.
        prompt_layer: p, the first layer whose states are wanted; those of all later ones are too.
        whole: whether the frozen model's output is wanted.
        keys: whether to keep keys and values that the frozen model computes on its way, for a great many queries.
    """
    given = call.trunk_states
    wanted = range(prompt_layer, frozen.num_layers)
    mask, source, anchor = _marks(call, causal=frozen.family.causal)
    positions = call.arguments.get("position_ids")
    if given is None:
        if not (whole or keys) and call.arguments.get("past_key_values") is None:
            return FrozenText(_run_below(frozen, call, prompt_layer), None, mask, source, anchor, positions)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        output = _run_whole(frozen, call, prompt_layer, found if keys else None)
        hidden = _hidden_states(frozen, output, frozen.num_layers)
        states = {layer: hidden[layer] for layer in wanted}
        kept_keys = dict(zip(wanted, found, strict=True)) if found else None
        return FrozenText(states, output.last_hidden_state, mask, source, anchor, positions, output, kept_keys)
    kept = dict(given) if isinstance(given, Mapping) else {prompt_layer: given}
    weight = next(frozen.above(wanted[-1]).parameters())
    kept = {layer: states.to(device=weight.device, dtype=weight.dtype) for layer, states in kept.items()}
    if call.text_keys is not None and not whole:
        return FrozenText(kept, None, mask, source, anchor, positions, keys=call.text_keys)
    missing = next((layer for layer in wanted if layer not in kept), frozen.num_layers)
    if missing - 1 not in kept:
        raise LatePromptError(f"trunk_states have layers {sorted(kept)}, but {prompt_layer} is read: give its states")
    last = None
    if whole:
        more, last = _run_above(frozen, call, kept[missing - 1], missing - 1, frozen.num_layers)
        kept |= more
    elif missing < frozen.num_layers:
        more, top = _run_above(frozen, call, kept[missing - 1], missing - 1, wanted[-1])
        kept |= {**more, wanted[-1]: top}
    return FrozenText({layer: kept[layer] for layer in wanted}, last, mask, source, anchor, positions)


def _run_above(
    frozen: FrozenViews, call: LateCall, states: torch.Tensor, low: int, high: int
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """The states after the layers above `low`, up to `high`: of all but the last by layer, and the output."""
    view = frozen.part(low, high)
    arguments = PlainText(replace(call, trunk_states=None), frozen.family).tail_arguments(view, states, 0, None)
    extra = {"use_cache": False} if frozen.family.causal else {}
    output: Any = view(inputs_embeds=states, **arguments, **extra, output_hidden_states=True, return_dict=True)
    return {low + i: hidden for i, hidden in enumerate(output.hidden_states[:-1])}, output.last_hidden_state


def _run_below(frozen: FrozenViews, call: LateCall, prompt_layer: int) -> dict[int, torch.Tensor]:
    """The states by layer, where nobody asks for the last layer's output: it is not computed."""
    top = frozen.num_layers - 1
    arguments = {**call.arguments, "output_hidden_states": top > prompt_layer, "return_dict": True}
    if frozen.family.causal:
        arguments["use_cache"] = False
    output: Any = frozen.below(top)(**arguments)
    hidden = () if top == prompt_layer else _hidden_states(frozen, output, top)
    return {**{layer: hidden[layer] for layer in range(prompt_layer, top)}, top: output.last_hidden_state}


def _hidden_states(frozen: FrozenViews, output: Any, layers: int) -> tuple[torch.Tensor, ...]:
    hidden: tuple[torch.Tensor, ...] = output.hidden_states
    if len(hidden) != layers + 1:
        raise LatePromptError(
            f"{type(frozen.backbone).__name__} gives {len(hidden)} hidden states for {layers} layers, so a read-only "
            "prompt cannot tell which are which; use an ordinary late prompt"
        )
    return hidden


def _run_whole(
    frozen: FrozenViews, call: LateCall, prompt_layer: int, found: list[tuple[torch.Tensor, torch.Tensor]] | None
) -> Any:
    """The frozen model on the call's own arguments; a KV cache gets its keys and values, and `found` those above p."""
    arguments = {**call.arguments, "output_hidden_states": True, "return_dict": True}
    if frozen.family.causal:
        cache = arguments.get("past_key_values")
        arguments["use_cache"] = cache is not None
        if cache is not None:
            cache_views(cache, prompt_layer, frozen.num_layers)  # a sliding layer would forget the prompt
    recording = None if found is None else frozen.recording(prompt_layer, found)
    return (frozen.above(0) if recording is None else recording)(**arguments)


def _marks(call: LateCall, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask, source (batch, length) and anchor (batch,) of a call's texts."""
    text = call.text
    given = call.arguments.get("attention_mask")
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if given is None else given.bool()
    source = mask if call.source_mask is None else call.source_mask.bool()
    if source.shape != mask.shape:
        raise LatePromptError(
            f"source_mask has shape {tuple(source.shape)}, the text {tuple(mask.shape)}; give (batch, length)"
        )
    if call.anchor is not None:
        anchor = call.anchor.reshape(-1).to(text.device)
        if len(anchor) != len(text):
            raise LatePromptError(f"anchor has {len(anchor)} positions for a batch of {len(text)} rows; give one a row")
        if anchor.device.type == "cpu" and bool(((anchor < 0) | (anchor >= mask.shape[1])).any()):
            raise LatePromptError(
                f"anchor {anchor.tolist()} is not within the text's {mask.shape[1]} positions; count from 0"
            )
    else:
        anchor = read_position(source if causal else mask, last=causal)
    return mask, source, anchor
