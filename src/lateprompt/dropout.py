"""Dropout on a CPU at a seventh of its price.

`torch.nn.functional.dropout` draws one Bernoulli number per element, one after the other: on a CPU that is a tenth of a
training step in fp32 and a fifth in bf16. Here one 64-bit draw of the same default generator decides four elements, and
the mask that autograd keeps has one byte per element instead of four.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LEVELS = 1 << 16


def keep_mask(shape: torch.Size, rate: float) -> tuple[torch.Tensor, float]:
    """A mask on the CPU, False with probability `rate` rounded to 1/65536, and what to scale the kept elements by."""
    dropped = round(rate * _LEVELS)
    size = math.prod(shape)
    words = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    mask = words.view(torch.int16)[:size].view(shape) >= dropped - _LEVELS // 2
    return mask, _LEVELS / (_LEVELS - dropped)


class _Dropout(torch.autograd.Function):
    """Input times mask, kept as one byte per element: a product with bools takes thrice as long as with floats."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, kept: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return hidden * kept.to(hidden.dtype).mul_(factor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept.to(gradients[0].dtype).mul_(ctx.factor), None, None


def fast_dropout(input: torch.Tensor, rate: float) -> torch.Tensor:
    """`F.dropout` of a CPU tensor while training."""
    return _Dropout.apply(input, *keep_mask(input.shape, rate))  # type: ignore[no-any-return, no-untyped-call]


_SHORT = 2
"""Weights are kept for the backward pass while there are at most so many of them per entry of a query."""


class _DropoutAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ + mask), dropped out, times V.

    Torch keeps the weights before and after dropout and what it dropped: (batch, heads, length, length) three times.
    This keeps what was dropped, one byte per weight; of long texts the weights are made anew in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        rate: float,
        scale: float,
    ) -> torch.Tensor:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        # Copied to (batch · heads, length, width) once, here: each product would do so for itself.
        query, key, value = (part.reshape(-1, *part.shape[-2:]) for part in (query, key, value))
        weights = _weights(query, key, mask, scale, shape)
        kept, factor = keep_mask(weights.shape, rate)
        short = key.shape[1] <= _SHORT * query.shape[-1]
        ctx.save_for_backward(query, key, value, mask, kept, weights if short else None)
        ctx.scale, ctx.factor, ctx.shape = scale, factor, shape
        noise = kept.to(weights.dtype).mul_(factor)
        dropped = noise.mul_(weights) if short else weights.mul_(noise)
        return (dropped.to(value.dtype) @ value).view(*shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, mask, kept, weights = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, *gradients[0].shape[-2:])
        if weights is None:
            weights = _weights(query, key, mask, ctx.scale, ctx.shape)
        noise = kept.to(weights.dtype).mul_(ctx.factor)
        heads = ctx.shape[:-2]
        to_value = to_query = to_key = None
        if ctx.needs_input_grad[2]:
            to_value = ((weights * noise).transpose(1, 2) @ gradient).unflatten(0, heads)
        to_weights = (gradient @ value.transpose(1, 2)).mul_(noise)
        # The softmax's own backward pass: w · (g − Σ w g).
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            to_query = (to_scores @ key).unflatten(0, heads)
        if ctx.needs_input_grad[1]:
            to_key = (to_scores.transpose(1, 2) @ query).unflatten(0, heads)
        return to_query, to_key, to_value, None, None, None


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float, shape: torch.Size
) -> torch.Tensor:
    """Attention weights (batch · heads, queries, keys); a row that may attend to nothing has none, as torch's has."""
    scores = (query @ key.transpose(1, 2)).mul_(scale)
    if mask is None:
        return scores.softmax(-1)
    grid = scores.view(shape)
    if mask.dtype != torch.bool:
        return grid.add_(mask).softmax(-1).view_as(scores)
    weights = grid.masked_fill_(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.mul_(mask.any(-1, keepdim=True).to(weights.dtype)).view_as(scores)


def dropout_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    rate: float,
    scale: float | None = None,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` with dropout, for (batch, heads, length, width) on a CPU.

    Torch has no fused kernel for it there either. The mask gets no gradient.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _DropoutAttention.apply(query, key, value, mask, rate, scale)  # type: ignore[no-any-return, no-untyped-call]


class FastDropout(TorchFunctionMode):
    """While open, dropout and attention with dropout on CPU tensors take the fast way; all else is untouched."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if training and 0.0 < p < 1.0 and not inplace and input.device.type == "cpu":
        return fast_dropout(input, p)
    return F.dropout(input, p, training, inplace)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    trained_mask = attn_mask is not None and (attn_mask.requires_grad or is_causal)
    if not 0.0 < dropout_p < 1.0 or query.device.type != "cpu" or enable_gqa or trained_mask:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    return dropout_attention(query, key, value, attn_mask, dropout_p, scale)
