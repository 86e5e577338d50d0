"""Attention of a few queries to a frozen text and to each other.

The queries stand in groups: every query sees what its mask shows of the text, and of the queries those of its own group
alone. One softmax runs over both. The text comes as keys and values, or as the attention's own input, whose projections
are absorbed: with keys W_k x + b_k a query's score is (W_kᵀ q)·x + q·b_k, and its output is W_v (Σ a x) + b_v Σ a. So
where the text's states are kept no projection of them is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

READING = "lateprompt_read_only"
CAPTURING = "lateprompt_capture"
RECORDING = "lateprompt_record"


@dataclass(frozen=True)
class TextKeys:
    """What the queries of a layer read of the text: keys and values, or the input that they would be made from.

    Args:
        keys, values: (batch, heads for keys, length, width); None: absorbed.
        hidden: (batch, length, hidden), the attention's input.
        key_weight, value_weight: (hidden, hidden) of the projections that are absorbed.
        key_bias, value_bias: (hidden,) or None.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    key_weight: torch.Tensor | None = None
    value_weight: torch.Tensor | None = None
    key_bias: torch.Tensor | None = None
    value_bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """What the queries (batch, groups · size) of one layer attend to.

    Args:
        text: the text's part.
        sees_text: (batch, queries or 1, length), true where a query may look.
        sees_own: (batch or 1, groups or 1, size, size), true where a query may look within its group; None: everywhere.
        groups: how many groups the queries form.
        text_bias: (batch, heads, queries or 1, length), added to the scores (relative positions), or None.
        own_bias: (1, heads, 1, 1), the same between queries, which all stand at one position, or None.
    """

    text: TextKeys
    sees_text: torch.Tensor
    sees_own: torch.Tensor | None
    groups: int
    text_bias: torch.Tensor | None = None
    own_bias: torch.Tensor | None = None


class Captured(Exception):
    """Keys and values of a layer are there; the rest of it is not wanted."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


def capture_keys(module: Any, query: Any, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """transformers' attention interface: stops the layer with its keys and values (`Captured`)."""
    raise Captured(key, value)


def record_keys(module: Any, query: Any, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """transformers' attention interface: the model's own kernel, having kept keys and values."""
    module.__dict__["recorded"].append((key, value))
    return ALL_ATTENTION_FUNCTIONS[module.__dict__["kernel"]](module, query, key, value, *args, **kwargs)


def read_only_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; what is attended to is the `Reading` that `module` carries.

    Args:
        module: the attention module, of a view for one call.
        query: (batch, heads, queries, width).
        key, value: (batch, heads for keys, queries, width), of the queries themselves.
        mask: not used.
        dropout: rate on the weights.
        scaling: what scores are multiplied with; default width^-1/2.
        softcap: bound of the scores (Gemma 2), or None.

    Returns:
        (batch, queries, heads, width), and None for the weights.
    """
    reading: Reading = module.__dict__["reading"]
    module.__dict__["own_keys"].append((key, value))
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = _weights(reading, query, key, softcap)
    weights = F.dropout(weights, dropout, module.training)
    length = reading.sees_text.shape[-1]
    output = _text_output(reading.text, weights[..., :length])
    return (output + _own_output(weights[..., length:], value, reading.groups)).transpose(1, 2), None


AttentionInterface.register(READING, read_only_attention)
AttentionInterface.register(CAPTURING, capture_keys)
AttentionInterface.register(RECORDING, record_keys)


def _weights(reading: Reading, query: torch.Tensor, key: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Attention weights (batch, heads, queries, length + size): of the text, then of the query's own group."""
    to_text = _text_scores(reading.text, query)
    to_own = _own_scores(query, key, reading.groups)
    if softcap is not None:
        to_text, to_own = (torch.tanh(part / softcap) * softcap for part in (to_text, to_own))
    if reading.text_bias is not None:
        to_text = to_text + reading.text_bias
    if reading.own_bias is not None:
        to_own = to_own + reading.own_bias
    least = torch.finfo(to_text.dtype).min
    to_text = to_text.masked_fill(~reading.sees_text[:, None], least)
    if reading.sees_own is not None:
        sees = reading.sees_own
        sees = sees.expand(-1, reading.groups, -1, -1).flatten(1, 2)[:, None]
        to_own = to_own.masked_fill(~sees, least)
    scores = torch.cat([to_text, to_own], -1)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype)


def _grouped(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Queries (batch, heads, queries, width) as (batch, heads for keys, heads each · queries, width)."""
    return query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])


def _text_scores(text: TextKeys, query: torch.Tensor) -> torch.Tensor:
    batch, heads, queries, width = query.shape
    if text.keys is not None:
        scores = _grouped(query, text.keys) @ text.keys.transpose(-1, -2)
        return scores.view(batch, heads, queries, -1)
    assert text.hidden is not None
    assert text.key_weight is not None
    size = text.hidden.shape[-1]
    # (heads, batch · queries, …): one product per head with its own rows of the projection.
    by_head = query.transpose(0, 1).reshape(heads, -1, width) @ text.key_weight.view(heads, width, size)
    absorbed = by_head.view(heads, batch, queries, size).transpose(0, 1).reshape(batch, heads * queries, size)
    scores = (absorbed @ text.hidden.transpose(1, 2)).view(batch, heads, queries, -1)
    if text.key_bias is not None:  # the same for all of the text, but the queries' own keys have it too
        scores = scores + query @ text.key_bias.view(heads, width, 1)
    return scores


def _text_output(text: TextKeys, weights: torch.Tensor) -> torch.Tensor:
    batch, heads, queries, length = weights.shape
    if text.values is not None:
        mixed = weights.reshape(batch, text.values.shape[1], -1, length) @ text.values
        return mixed.view(batch, heads, queries, -1)
    assert text.hidden is not None
    assert text.value_weight is not None
    size = text.hidden.shape[-1]
    mixed = (weights.flatten(1, 2) @ text.hidden).view(batch, heads, queries, size)
    by_head = mixed.transpose(0, 1).reshape(heads, -1, size)
    output = by_head @ text.value_weight.view(heads, -1, size).transpose(1, 2)
    output = output.view(heads, batch, queries, -1).transpose(0, 1)
    if text.value_bias is not None:
        output = output + weights.sum(-1, keepdim=True) * text.value_bias.view(heads, 1, -1)
    return output


def _own_scores(query: torch.Tensor, key: torch.Tensor, groups: int) -> torch.Tensor:
    """Scores (batch, heads, queries, size) between the queries of a group."""
    batch, heads, queries, width = query.shape
    keys = key.repeat_interleave(heads // key.shape[1], 1) if key.shape[1] != heads else key
    shape = (batch, heads, groups, -1, width)
    scores = query.reshape(shape) @ keys.reshape(shape).transpose(-1, -2)
    return scores.view(batch, heads, queries, -1)


def _own_output(weights: torch.Tensor, value: torch.Tensor, groups: int) -> torch.Tensor:
    batch, heads, queries, size = weights.shape
    values = value.repeat_interleave(heads // value.shape[1], 1) if value.shape[1] != heads else value
    values = values.reshape(batch, heads, groups, size, -1)
    return (weights.view(batch, heads, groups, size, size) @ values).view(batch, heads, queries, -1)
