"""`generate` under late prompts: what its settings come to, and one batch with prompts after different layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from lateprompt.backbone.call_context import CallExtras, call_extras, first, select_rows
from lateprompt.backbone.views import PromptSlot
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class GenerationWishes:
    """The settings that a late prompt must know, from wherever `generate` takes them.

    Args:
        kwargs: what `generate` was called with.
        own: the model's own generation config, if it has one.
    """

    kwargs: dict[str, Any]
    own: Any

    def asked(self, name: str) -> Any:
        """A setting of this call: among its arguments or in the `generation_config` given."""
        return first(self.kwargs.get(name), getattr(self.kwargs.get("generation_config"), name, None))

    def setting(self, name: str) -> Any:
        """A setting, the model's own where the call says nothing."""
        return first(self.asked(name), getattr(self.own, name, None))

    def check(self) -> None:
        """Raise LatePromptError for ways to generate that know nothing of a prompt within the layers."""
        cache = self.asked("cache_implementation")
        if cache is not None and cache not in _GROWING:
            raise LatePromptError(
                f"cache_implementation {cache!r} has no room for a late prompt; choose one of {', '.join(_GROWING)}"
            )
        chunk = self.setting("prefill_chunk_size")
        if chunk is not None:
            raise LatePromptError(
                f"prefill_chunk_size {chunk!r} would make the late prompt from the first chunk; leave it out"
            )

    @property
    def changes(self) -> dict[str, Any]:
        """Arguments to add: a model whose own config asks for a cache of fixed size (Gemma's) gets one that grows."""
        given = self.asked("cache_implementation") is not None or self.kwargs.get("past_key_values") is not None
        fixed = getattr(self.own, "cache_implementation", None) not in (None, *_GROWING)
        return {"cache_implementation": "dynamic"} if fixed and not given else {}

    @property
    def copies(self) -> int:
        """How often each row is in the batch: once for each beam or sample."""
        return max(self.setting("num_beams") or 1, self.setting("num_return_sequences") or 1)

    @property
    def pad(self) -> int:
        """The token that fills up shorter texts."""
        end = self.setting("eos_token_id")
        return int(first(self.setting("pad_token_id"), end[0] if isinstance(end, list) else end, 0))


_GROWING = ("dynamic", "offloaded", "quantized")


def rows_of_one_cache(names: Sequence[str], slots: Mapping[str, PromptSlot]) -> list[list[int]]:
    """The rows of `adapter_names` in groups that can share a KV cache: prompts of one layer and one kind, or none."""
    groups: dict[tuple[int, bool] | None, list[int]] = {}
    for row, name in enumerate(names):
        slot = slots.get(name)
        groups.setdefault(None if slot is None else (slot.prompt_layer, slot.read_only), []).append(row)
    return list(groups.values())


def generate_groups(
    write: Callable[..., torch.Tensor],
    groups: Iterable[list[int]],
    extras: CallExtras,
    source: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pad: int,
) -> torch.Tensor:
    """The model's `generate` for each group, the texts together in the rows' order, padded on the right.

    Args:
        write: the Hugging Face model's `generate`.
        groups: row numbers of `extras.adapter_names`, which names each row as often as it has beams or samples.
        extras: the call's adapters and source mask.
        source: the sources, (batch, length, …).
        args, kwargs: what `generate` was called with, and nothing of ours.
        pad: the token that fills up shorter texts.

    Returns:
        Token ids (batch · returned sequences, longest).

    Raises:
        LatePromptError: a stream or a dictionary of scores is wanted, which cannot be put together again.
    """
    if kwargs.get("streamer") is not None or kwargs.get("return_dict_in_generate"):
        raise LatePromptError("adapter_names mixes prompt layers: leave out streamer and return_dict_in_generate")
    names = extras.adapter_names or []
    batch, copies = len(source), len(names) // len(source)
    texts: dict[int, torch.Tensor] = {}
    for group in groups:
        rows = torch.tensor(group[::copies], device=source.device) // copies
        mask = select_rows(extras.source_mask, rows, batch)
        with call_extras(replace(extras, adapter_names=[names[row] for row in group], source_mask=mask)):
            written = write(
                *(select_rows(value, rows, batch) for value in args),
                **{key: select_rows(value, rows, batch) for key, value in kwargs.items()},
            )
        for row, text in zip(rows.tolist(), written.chunk(len(rows)), strict=True):
            texts[row] = text
    longest = max(text.shape[1] for text in texts.values())
    padded = [F.pad(texts[row], (0, longest - texts[row].shape[1]), value=pad) for row in range(batch)]
    return torch.cat(padded)
