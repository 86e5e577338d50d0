"""What trunk and tail are told of a text: which position sees which, and where each stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from lateprompt.backbone.call_context import LateCall, first
from lateprompt.backbone.families import Family
from lateprompt.backbone.kv_cache import cache_views
from lateprompt.backbone.masks import tail_masks, tail_positions, with_prompt
from lateprompt.backbone.views import Views
from lateprompt.utils.errors import LatePromptError


class Text(Protocol):
    """A batch of texts for `late_pass`: `PlainText`, or `lateprompt.backbone.packed.PackedText`."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that trunk and tail take alike."""

    @property
    def cache(self) -> Cache | None:
        """The KV cache of trunk and tail."""

    @property
    def cached_length(self) -> int:
        """How many positions the tail has in the cache; with some, the prompt is among them."""

    def trunk_arguments(self, trunk: nn.Module) -> dict[str, Any]:
        """The text itself, its mask and positions."""

    def source(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The trunk's states (batch, length, hidden) that a generator is given, and the mask of what it may read."""

    def tail_arguments(
        self, tail: nn.Module, tail_input: torch.Tensor, num_prompt_tokens: int, lengths: Sequence[int] | None
    ) -> dict[str, Any]:
        """Mask and positions of the prompt and the text behind it.

        Args:
            tail: the tail.
            tail_input: (batch, k + length, hidden), or (batch, length, hidden) if the prompt is in the cache.
            num_prompt_tokens: k.
            lengths: each row's prompt length where they differ.
        """


@dataclass(frozen=True)
class PlainText:
    """A text as Hugging Face models take it, with a 2-D mask.

    Args:
        call: the call.
        family: the backbone's.
        cache: the KV cache.
        parts: the trunk's and the tail's part of it.
        cached_length: see `Text`.
    """

    call: LateCall
    family: Family
    cache: Cache | None = None
    parts: tuple[Cache | None, Cache | None] = (None, None)
    cached_length: int = 0

    @classmethod
    def of(cls, call: LateCall, views: Views, prompt_layer: int, *, training: bool) -> PlainText:
        """With the call's KV cache cut in two, or with a new one if the backbone is to keep one.

        Raises:
            LatePromptError: a cache is asked for with trunk states, or is not a dynamic one.
        """
        use, cache = call.arguments.get("use_cache"), call.arguments.get("past_key_values")
        has_states, config = call.trunk_states is not None, views.backbone.config
        if has_states and (use or cache is not None):
            raise LatePromptError("trunk_states skip the trunk, which then has no keys to cache; use use_cache=False")
        if use is None:
            use = bool(getattr(config, "use_cache", False)) and not (training or has_states)
        if not views.family.causal or not (use or cache is not None):
            return cls(call, views.family)
        cache = DynamicCache(config=config) if cache is None else cache
        trunk, tail = cache_views(cache, prompt_layer, views.num_layers)
        return cls(call, views.family, cache, (trunk, tail), int(tail.get_seq_length()))

    @property
    def options(self) -> dict[str, Any]:
        shared = {key: value for key, value in self.call.arguments.items() if key not in _OF_THE_TEXT}
        return {**shared, "use_cache": self.cache is not None} if self.family.causal else shared

    def trunk_arguments(self, trunk: nn.Module) -> dict[str, Any]:
        arguments = {key: value for key in _OF_THE_TEXT if (value := self.call.arguments.get(key)) is not None}
        return arguments if self.cache is None else {**arguments, "past_key_values": self.parts[0]}

    def source(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return states, first(self.call.source_mask, self.call.arguments.get("attention_mask"))

    def tail_arguments(
        self, tail: nn.Module, tail_input: torch.Tensor, num_prompt_tokens: int, lengths: Sequence[int] | None
    ) -> dict[str, Any]:
        k, decoding = num_prompt_tokens, self.cached_length > 0
        mask, (below, cache) = self.call.arguments.get("attention_mask"), self.parts
        length = tail_input.shape[1] - (0 if decoding else k)
        arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if hasattr(tail, "rotary_emb"):
            positions = tail_positions(self.call.arguments.get("position_ids"), mask, length, k, decoding)
            if positions is not None:
                arguments["position_ids"] = positions
        if k and (mask is not None or lengths is not None):
            seen = length if below is None else int(below.get_seq_length())
            mask = with_prompt(mask, lengths, tail_input, seen, k)
        return {**arguments, "attention_mask": tail_masks(tail, self.family, tail_input, mask, cache, k)}


_OF_THE_TEXT = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids", "past_key_values", "attention_mask")
"""Arguments that the trunk gets as they are, and the tail gets others for, or none."""
