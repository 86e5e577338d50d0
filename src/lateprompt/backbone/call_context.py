"""The arguments of a call: those that a head would not pass on, and what they must look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from lateprompt.utils.errors import LatePromptError

BASE = "__base__"
"""The adapter name of rows that get no prompt (PEFT's own convention)."""


States = torch.Tensor | Mapping[int, torch.Tensor]
"""States (batch, length, hidden) at the prompt layer, or several such by layer."""
TextKeys = Mapping[int, tuple[torch.Tensor, torch.Tensor]]
"""A text's keys and values (batch, heads for keys, length, width) by the number of layers below the one that reads."""


@dataclass(frozen=True)
class CallExtras:
    """Arguments of ours that a head's `forward` would not pass on to its backbone.

    Args:
        source_mask: (batch, length), positions the generator may read; None: all attended ones.
        trunk_states: (batch, length, hidden), hidden states at the prompt layer: the trunk is skipped. Or several such
            by the number of layers below them.
        anchor: (batch,), the position that a prompt stands for; None: the first one of an encoder, the last source
            position of a decoder.
        adapter_names: one adapter a row (`__base__`: no prompt).
        source_length: while generating, how many positions the source has, padding included: what follows was
            generated, and is not read by the generator.
    """

    source_mask: torch.Tensor | None = None
    trunk_states: States | None = None
    anchor: torch.Tensor | None = None
    adapter_names: Sequence[str] | None = None
    source_length: int | None = None


_EXTRAS: ContextVar[CallExtras] = ContextVar("lateprompt_extras", default=CallExtras())  # noqa: B039 (frozen)


@contextmanager
def call_extras(extras: CallExtras) -> Iterator[None]:
    """While open, every `LateBackbone` of this thread sees `extras`."""
    token = _EXTRAS.set(extras)
    try:
        yield
    finally:
        _EXTRAS.reset(token)


def current_extras() -> CallExtras:
    """What is in force here."""
    return _EXTRAS.get()


def first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True)
class LateCall:
    """A call of the late backbone.

    Args:
        arguments: the Hugging Face backbone's own (`input_ids`, `attention_mask`, …).
        source_mask: (batch, length), what the generator may read; None: what is attended to.
        trunk_states: (batch, length, hidden): the trunk is skipped; or several such by layer.
        read: (batch, reads), the positions that are looked at; None: all.
        anchor: (batch, 1), the position that a prompt stands for, or None.
        text_keys: the text's keys and values (batch, heads for keys, length, width) by the number of layers below the
            layer that reads them, for read-only prompts: of all layers above the prompt, or None.
    """

    arguments: dict[str, Any]
    source_mask: torch.Tensor | None = None
    trunk_states: States | None = None
    read: torch.Tensor | None = None
    anchor: torch.Tensor | None = None
    text_keys: TextKeys | None = None

    @property
    def some_states(self) -> torch.Tensor | None:
        """States (batch, length, hidden) that the call brings along, at whatever layer."""
        states = self.trunk_states
        return next(iter(states.values()), None) if isinstance(states, Mapping) else states

    def states_after(self, layer: int) -> torch.Tensor | None:
        """The states after so many layers, if the call has some.

        Raises:
            LatePromptError: it has states, but not these.
        """
        states = self.trunk_states
        if not isinstance(states, Mapping):
            return states
        if layer not in states:
            raise LatePromptError(f"trunk_states have layers {sorted(states)}; give those of layer {layer}")
        return states[layer]

    @property
    def text(self) -> torch.Tensor:
        """Whatever stands for the text: (batch, length, …)."""
        value = first(self.arguments.get("input_ids"), self.arguments.get("inputs_embeds"), self.some_states)
        if value is None:
            raise LatePromptError("give input_ids, inputs_embeds or trunk_states")
        return value  # type: ignore[no-any-return]

    @property
    def cached_length(self) -> int:
        """How many positions of the text its KV cache has; with some, the prompt is in there too."""
        cache = self.arguments.get("past_key_values")
        return 0 if cache is None else int(cache.get_seq_length())

    def rows(self, rows: torch.Tensor) -> LateCall:
        """The call for some rows of the batch."""
        batch = len(self.text)
        return replace(
            self,
            arguments={key: select_rows(value, rows, batch) for key, value in self.arguments.items()},
            source_mask=select_rows(self.source_mask, rows, batch),
            trunk_states=self._states_of(rows, batch),
            read=select_rows(self.read, rows, batch),
            anchor=select_rows(self.anchor, rows, batch),
            text_keys=None,
        )

    def _states_of(self, rows: torch.Tensor, batch: int) -> States | None:
        states = self.trunk_states
        if not isinstance(states, Mapping):
            return select_rows(states, rows, batch)  # type: ignore[no-any-return]
        return {layer: select_rows(own, rows, batch) for layer, own in states.items()}

    def check(self, width: int) -> None:
        """Raise LatePromptError where mask or states do not fit the rows and positions of the text.

        Args:
            width: the backbone's hidden size.
        """
        mask, states, ids = self.arguments.get("attention_mask"), self.some_states, self.arguments.get("input_ids")
        if mask is not None:
            if not (isinstance(mask, torch.Tensor) and mask.ndim == 2):
                shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
                raise LatePromptError(f"attention_mask is {shape}; a late prompt needs the 2-D mask (batch, length)")
            batch, length = self.text.shape[0], self.text.shape[1] + self.cached_length
            if states is None and mask.shape != (batch, length):
                raise LatePromptError(f"attention_mask has shape {tuple(mask.shape)}, expected ({batch}, {length})")
        if states is not None:
            like = first(mask, ids)
            if states.ndim != 3 or states.shape[-1] != width or (like is not None and like.shape != states.shape[:2]):
                rows = "batch, length" if like is None else f"{like.shape[0]}, {like.shape[1]}"
                raise LatePromptError(f"trunk_states has shape {tuple(states.shape)}, expected ({rows}, {width})")


def generation_source(
    source_mask: torch.Tensor | None, mask: torch.Tensor | None, text: torch.Tensor, source_length: int
) -> torch.Tensor:
    """What the generator may read (batch, length) while more and more positions are generated behind the source.

    Args:
        source_mask: (rows, source_length), given by the caller, or None: what is attended to.
        mask: (batch, length) of this call, or None.
        text: (batch, length, …); the batch may hold each row several times (beams).
        source_length: positions of the source.
    """
    batch, length = text.shape[:2]
    if source_mask is None:
        source = torch.ones(batch, length, dtype=torch.long, device=text.device) if mask is None else mask
    else:
        source = source_mask.repeat_interleave(batch // len(source_mask), 0)
        source = F.pad(source, (0, max(0, length - source.shape[1])))
    if source.shape[1] != length:
        return source  # a cached step: the prompt is there already
    return source * (torch.arange(length, device=source.device) < source_length)


def select_rows(value: Any, rows: torch.Tensor, batch: int) -> Any:
    """Some rows of an argument that has one entry per row; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == batch:
        return value.index_select(0, rows.to(value.device))
    return value


def states_at(hidden: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Hidden states (batch, reads, hidden) at the read positions (batch, reads)."""
    return hidden[torch.arange(len(read), device=read.device)[:, None], read]


def replace_hidden(output: Any, hidden: torch.Tensor, pooled: torch.Tensor | None) -> Any:
    """A backbone's output with other hidden states, and what its pooler makes of them."""
    output["last_hidden_state"] = hidden
    if pooled is not None and hasattr(output, "pooler_output"):
        output["pooler_output"] = pooled
    return output


def gathered(output: Any, read: torch.Tensor) -> Any:
    """A backbone's output with its hidden states at the read positions (batch, reads) alone."""
    if isinstance(output, tuple):
        return (states_at(output[0], read), *output[1:])
    return replace_hidden(output, states_at(output.last_hidden_state, read), None)
