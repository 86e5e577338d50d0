"""Trunk → prompt → tail for rows whose prompts all enter after the same layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from lateprompt.backbone.call_context import replace_hidden, states_at
from lateprompt.backbone.masks import widen_buffers
from lateprompt.backbone.text import Text
from lateprompt.backbone.views import LateSplit, PromptSlot, Views
from lateprompt.prompts.base import read_state
from lateprompt.utils.errors import LatePromptError


class Prompts:
    """The prompts of a batch.

    Args:
        generators: the adapters' generators by name; adapters without one have no prompt.
        names: each row's adapter; None: all rows have the only one.
        slots: the adapters' places, which say what a prompt starts from; None: from nothing.
        anchor: (batch,), the position that a prompt stands for, where one starts from there.
    """

    def __init__(
        self,
        generators: Mapping[str, nn.Module],
        names: Sequence[str] | None = None,
        slots: Mapping[str, PromptSlot] | None = None,
        anchor: torch.Tensor | None = None,
    ) -> None:
        self.generators = generators
        self.names = names
        self.slots = slots or {}
        self.anchor = anchor
        self._lengths = {name: int(generator.num_prompt_tokens) for name, generator in generators.items()}  # type: ignore[arg-type]
        self.length = max(self._lengths.values(), default=0)
        """k, the longest prompt's."""

    @property
    def lengths(self) -> list[int] | None:
        """Each row's, where they may differ."""
        return None if self.names is None else [self._lengths.get(name, 0) for name in self.names]

    def make(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Each row's prompt (batch, k, hidden); shorter prompts stand at the right end of their k slots.

        Args:
            states: (batch, length, hidden), the trunk's.
            mask: (batch, length), what may be read, or None: all.
        """
        if mask is not None and mask.shape != states.shape[:2]:
            raise LatePromptError(
                f"source_mask has shape {tuple(mask.shape)}, the text {tuple(states.shape[:2])}; give (batch, length)"
            )
        if self.names is None:
            ((name, generator),) = self.generators.items()
            return self._make(name, generator, states, mask, self.anchor)
        prompt = states.new_zeros(len(states), self.length, states.shape[-1])
        for name, generator in self.generators.items():
            rows = torch.tensor([i for i, own in enumerate(self.names) if own == name], device=states.device)
            anchor = None if self.anchor is None else self.anchor[rows]
            own = self._make(name, generator, states[rows], None if mask is None else mask[rows], anchor)
            slots = torch.arange(self.length - self._lengths[name], self.length, device=rows.device)
            prompt = prompt.index_put((rows[:, None], slots), own)
        return prompt

    def _make(
        self,
        name: str,
        generator: nn.Module,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        anchor: torch.Tensor | None,
    ) -> torch.Tensor:
        slot = self.slots.get(name)
        if slot is None or slot.start == "none":
            return _generate(generator, states, mask)
        return prompt_of(generator, slot, states, mask, anchor)


def prompt_of(
    generator: nn.Module,
    slot: PromptSlot,
    states: torch.Tensor,
    mask: torch.Tensor | None,
    anchor: torch.Tensor | None,
) -> torch.Tensor:
    """A prompt (batch, k, hidden): what the generator makes, added to what the slot says that it starts from.

    Args:
        generator: the adapter's generator.
        slot: its place.
        states: (batch, length, hidden) at the prompt layer.
        mask: (batch, length), what may be read, or None: all.
        anchor: (batch,), the position that the prompt stands for; needed where it starts from there.
    """
    prompt = _generate(generator, states, mask)
    if slot.start == "anchor":
        if anchor is None:
            last = bool(getattr(getattr(generator, "spec", None), "reads_last", False))
            return prompt + read_state(states, mask, last=last)[:, None]
        return prompt + states[torch.arange(len(states), device=states.device), anchor][:, None]
    if slot.start == "mean":
        return prompt + mean_state(states, mask)[:, None]
    return prompt


def mean_state(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean (batch, hidden) of states (batch, length, hidden) over the marked positions."""
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _generate(generator: nn.Module, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    # fp32 over a half-precision backbone, as PEFT keeps adapters; what torch has quantised takes floats too.
    dtype = next((parameter.dtype for parameter in generator.parameters()), torch.float32)
    return generator(states.to(dtype), mask).to(states.dtype)  # type: ignore[no-any-return]


def late_pass(
    views: Views,
    slot: PromptSlot,
    prompts: Prompts,
    text: Text,
    trunk_states: torch.Tensor | None = None,
    read: torch.Tensor | None = None,
    *,
    training: bool = False,
    compiled: bool = False,
) -> ModelOutput:
    """States from the trunk, a prompt from the states, both through the tail.

    Args:
        views: of the backbone.
        slot: where the prompts enter.
        prompts: what makes them.
        text: the text for trunk and tail.
        trunk_states: (batch, length, hidden) where they are kept: the trunk is skipped.
        read: (batch, reads), the positions of the text that are looked at; None: all.
        training: the mode of the layers.
        compiled: whether the tail's layers go through `torch.compile`.

    Returns:
        The tail's output for the text, or for the read positions of it: `last_hidden_state` (batch, length or reads,
        hidden). `hidden_states` (if asked for) are the trunk's too, where it has run.
    """
    split = views.enter(slot, training)
    below: tuple[torch.Tensor, ...] = ()
    if trunk_states is None:
        states, below = run_trunk(split, text)
    else:
        device, dtype = views.placement
        states = trunk_states.to(device=device, dtype=dtype)

    in_front = 0 if text.cached_length else prompts.length  # a cache has the prompt already
    tail_input = torch.cat([prompts.make(*text.source(states)), states], 1) if in_front else states
    tail_arguments = text.tail_arguments(split.tail, tail_input, prompts.length, prompts.lengths)
    tail: nn.Module = split.tail
    gives_reads = False
    front = in_front if split.trains_prompt_alone(states) else 0
    if (read is not None or front or compiled) and can_leave_out(views, text, training):
        part = split.read_tail(front, compiled=compiled)
        gives_reads = read is not None and part.gives_reads
        tail = part.at(None if read is None else read + in_front)
    widen_buffers(tail, views.family, prompts.length)
    output = tail(inputs_embeds=tail_input, **text.options, **tail_arguments, return_dict=True)

    hidden: torch.Tensor = output.last_hidden_state
    if not gives_reads:
        hidden = hidden[:, in_front:]
        hidden = hidden if read is None else states_at(hidden, read)
    output = replace_hidden(output, hidden, pooled(views, hidden) if read is None else None)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = below + tuple(layer[:, in_front:] for layer in output.hidden_states)
    if text.cache is not None:
        output["past_key_values"] = text.cache
    return output  # type: ignore[no-any-return]


def run_trunk(split: LateSplit, text: Text) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The trunk's states (batch, length, hidden), and those below them if all hidden states are asked for.

    With a gradient only where something in the trunk, or the embeddings given, wants one.
    """
    arguments = text.trunk_arguments(split.trunk)
    embeddings = arguments.get("inputs_embeds")
    wanted = split.trains_trunk or (embeddings is not None and embeddings.requires_grad)
    with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
        output = split.trunk(**text.options, **arguments, return_dict=True)
    return output.last_hidden_state, tuple(getattr(output, "hidden_states", None) or ())[:-1]


def can_leave_out(views: Views, text: Text, training: bool) -> bool:
    """Whether nothing but the states that are read is wanted of the tail, once, by a kernel that takes any mask."""
    config: Any = views.backbone.config
    if text.cache is not None:
        return False
    asked = ("output_hidden_states", "output_attentions")
    if any(text.options.get(name) or getattr(config, name, False) for name in asked):
        return False
    return config._attn_implementation in ("eager", "sdpa") and not (training and views.checkpoints_gradients)


def pooled(views: Views, hidden: torch.Tensor) -> torch.Tensor | None:
    """What the backbone's pooler, if it has one, makes of the text's states (batch, length, hidden)."""
    return views.family.pool(views.backbone, hidden)
