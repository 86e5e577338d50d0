"""One generating batch whose rows belong to adapters with prompts after different layers: layer by layer, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from lateprompt.calls import CallExtras, call_extras, first, select_rows


def generate_groups(
    model: Any,
    groups: Iterable[list[int]],
    extras: CallExtras,
    source: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """`model.generate` for each group, the texts together in the rows' order, padded on the right.

    Args:
        model: the Hugging Face model.
        groups: row numbers of `extras.adapter_names`, which names each row as often as it has beams or samples.
        extras: the call's adapters and source mask.
        source: the sources, (batch, length, …).
        args, kwargs: what `generate` was called with, and nothing of ours.

    Returns:
        Token ids (batch · returned sequences, longest).

    Raises:
        ValueError: a stream or a dictionary of scores is wanted, which cannot be put together again.
    """
    if kwargs.get("streamer") is not None or kwargs.get("return_dict_in_generate"):
        raise ValueError("adapter_names mixes prompt layers: leave out streamer and return_dict_in_generate")
    names = extras.adapter_names or []
    batch, copies = len(source), len(names) // len(source)
    texts: dict[int, torch.Tensor] = {}
    for group in groups:
        rows = torch.tensor(group[::copies], device=source.device) // copies
        mask = select_rows(extras.source_mask, rows, batch)
        with call_extras(replace(extras, adapter_names=[names[row] for row in group], source_mask=mask)):
            written = model.generate(
                *(select_rows(value, rows, batch) for value in args),
                **{key: select_rows(value, rows, batch) for key, value in kwargs.items()},
            )
        for row, text in zip(rows.tolist(), written.chunk(len(rows)), strict=True):
            texts[row] = text
    longest = max(text.shape[1] for text in texts.values())
    own = model.generation_config
    end = first(kwargs.get("eos_token_id"), own.eos_token_id)
    pad = first(kwargs.get("pad_token_id"), own.pad_token_id, end[0] if isinstance(end, list) else end, 0)
    padded = [F.pad(texts[row], (0, longest - texts[row].shape[1]), value=pad) for row in range(batch)]
    return torch.cat(padded)
