"""Attention of a few queries that needs no keys and no values: their projections are absorbed by query and output.

With keys W_k x + b_k and values W_v x + b_v of the attention's input x (batch, keys, hidden), a query's scores are
q·(W_k x_j + b_k) = (W_kᵀ q)·x_j + q·b_k, whose last term is the same for every j and moves no softmax. Its output is
Σ_j a_j (W_v x_j + b_v) = W_v (Σ_j a_j x_j) + (Σ_j a_j) b_v. Both are exact. For one query of H heads those are H
products with each x_j, in the place of two projections of it to the full width: worth it where few positions are read.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from lateprompt.backbone.families import Family
from lateprompt.backbone.split import own_module, shallow_copy

NAME = "lateprompt_absorbed"
_WORTH = 4
"""Absorbed while heads × reads are at most the width divided by this: small products run further from the ceiling."""


def absorbed_attention(
    module: Any,
    query: torch.Tensor,
    hidden: torch.Tensor,
    _: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface, with the attention's input in the place of keys and of values.

    Args:
        module: the attention module; its `key` and `value` are plain linear maps.
        query: (batch, heads, reads, width).
        hidden: (batch, keys, hidden).
        mask: (batch, 1, reads or 1, keys), true (or 0) where a query may look; or None.
        dropout: rate on the weights.
        scaling: what scores are multiplied with; default width^-1/2.

    Returns:
        (batch, reads, heads, width), and None for the weights.
    """
    batch, heads, reads, width = query.shape
    size = hidden.shape[-1]
    # (heads, batch · reads, …): one product per head with its own rows of a projection.
    by_head = (query * (width**-0.5 if scaling is None else scaling)).transpose(0, 1).reshape(heads, -1, width)
    absorbed = by_head @ module.key.weight.view(heads, width, size)
    absorbed = absorbed.view(heads, batch, reads, size).transpose(0, 1).reshape(batch, heads * reads, size)
    scores = (absorbed @ hidden.transpose(1, 2)).view(batch, heads, reads, -1)
    if mask is not None:
        hides = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2) if hides else scores + mask
    weights = F.dropout(scores.softmax(-1), dropout, module.training)
    mixed = (weights.flatten(1, 2) @ hidden).view(batch, heads, reads, size).transpose(0, 1).reshape(heads, -1, size)
    output = mixed @ module.value.weight.view(heads, width, size).transpose(1, 2)
    output = output.view(heads, batch, reads, width).permute(1, 2, 0, 3)
    if module.value.bias is not None:
        output = output + weights.sum(-1).transpose(1, 2)[..., None] * module.value.bias.view(heads, width)
    return output, None


AttentionInterface.register(NAME, absorbed_attention)


def absorbing_view(layer: nn.Module, family: Family) -> nn.Module | None:
    """A view of a layer whose attention is `absorbed_attention`; None for families that rotate or norm their keys."""
    if not family.absorbs:
        return None
    view = shallow_copy(layer)
    attention: Any = own_module(view, _attention(family), {})
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = NAME
    return view


def is_worth_it(view: nn.Module, family: Family, hidden: torch.Tensor, reads: int) -> bool:
    """Whether a layer has what absorbing asks for: frozen linear maps, in place, and few positions to read."""
    attention: Any = view.get_submodule(_attention(family))
    maps = attention.key, attention.value
    plain = all(type(part) is nn.Linear and part.weight.device == hidden.device for part in maps)
    if not plain or any(parameter.requires_grad for part in maps for parameter in part.parameters()):
        return False
    return bool(_WORTH * attention.num_attention_heads * reads <= hidden.shape[-1])


def _attention(family: Family) -> str:
    return family.projections[0].rpartition(".")[0]
