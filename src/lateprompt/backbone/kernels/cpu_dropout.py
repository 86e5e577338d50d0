"""Dropout on a CPU at a seventh of its price.

`torch.nn.functional.dropout` draws one Bernoulli number per element, one after the other: on a CPU that is a tenth of a
training step in fp32 and a fifth in bf16. Here 64 random bits decide four elements, from numpy's SFC64 seeded by a draw
of the run's generator, or of torch's outside of a run (which takes twice as long for the same bits), and autograd
keeps the two bytes that decided an element instead of a float. Masks are never made of bools: a CPU converts those one
by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lateprompt.backbone.kernels.half_matmul import is_lacking
from lateprompt.utils.randomness import own_generator

_LEVELS = 1 << 16


@dataclass(frozen=True)
class Draw:
    """What decides which elements stay: those whose int16 word is at least `threshold`, times `factor`."""

    words: torch.Tensor
    threshold: int
    factor: float

    @classmethod
    def of(cls, shape: torch.Size, rate: float) -> Draw:
        """Repeatable in a run, and under `torch.manual_seed` elsewhere; `rate` is rounded to 1/65536."""
        dropped = round(rate * _LEVELS)
        size = math.prod(shape)
        seed = torch.empty(1, dtype=torch.int64, device="cpu").random_(generator=own_generator()).numpy()[0]
        words = torch.from_numpy(np.random.SFC64(seed).random_raw((size + 3) // 4).view(np.int16))
        factor = _LEVELS / (_LEVELS - dropped)
        return cls(words[:size].view(shape), dropped - _LEVELS // 2, factor)

    def noise(self, dtype: torch.dtype) -> torch.Tensor:
        """What to multiply with: 0 where dropped, `factor` elsewhere."""
        return self.words.to(torch.float32).ge_(self.threshold).to(dtype).mul_(self.factor)


class _Dropout(torch.autograd.Function):
    """Input times noise, which the backward pass makes anew from the draw."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, words: torch.Tensor, threshold: int, factor: float) -> torch.Tensor:
        ctx.save_for_backward(words)
        ctx.threshold, ctx.factor = threshold, factor
        return Draw(words, threshold, factor).noise(hidden.dtype).mul_(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (words,) = ctx.saved_tensors
        noise = Draw(words, ctx.threshold, ctx.factor).noise(gradients[0].dtype)
        return noise.mul_(gradients[0]), None, None, None


def fast_dropout(input: torch.Tensor, rate: float) -> torch.Tensor:
    """`F.dropout` of a CPU tensor while training."""
    draw = Draw.of(input.shape, rate)
    return _Dropout.apply(input, draw.words, draw.threshold, draw.factor)  # type: ignore[no-any-return, no-untyped-call]


def fast_dropout_(input: torch.Tensor, rate: float) -> torch.Tensor:
    """The same in place."""
    return input.mul_(Draw.of(input.shape, rate).noise(input.dtype))


_SHORT = 2
"""Weights are kept for the backward pass while there are at most so many of them per entry of a query."""


@dataclass(frozen=True)
class Visible:
    """An attention mask as what is added to the scores, and which rows see anything (None: all do)."""

    bias: torch.Tensor
    alive: torch.Tensor | None = None

    @classmethod
    def of(cls, mask: torch.Tensor, dtype: torch.dtype) -> Visible:
        """From a mask of bools, or one that is added already."""
        if mask.dtype != torch.bool:
            return cls(mask)
        hidden = torch.finfo(dtype).min / 2  # finite after a score is added
        bias = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, hidden)
        alive = mask.any(-1, keepdim=True)
        return cls(bias, None if alive.numpy().all() else alive.to(dtype))


class _DropoutAttention(torch.autograd.Function):
    """softmax(scale · Q Kᵀ + mask), dropped out, times V.

    Torch keeps the weights before and after dropout and what it dropped: (batch, heads, length, length) three times.
    This keeps the weights before and after; of long texts only the draw, and the backward pass makes the weights anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        visible: Visible | None,
        rate: float,
        scale: float,
    ) -> torch.Tensor:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        # Copied to (batch · heads, length, width) once, here: each product would do so for itself.
        query = torch.mul(query, scale, out=query.new_empty(query.shape)).flatten(0, -3)
        key, value = (part.reshape(-1, *part.shape[-2:]) for part in (key, value))
        weights = _weights(query, key, visible, shape)
        draw = Draw.of(weights.shape, rate)
        dropped = draw.noise(weights.dtype).mul_(weights)
        short = key.shape[1] <= _SHORT * query.shape[-1]
        ctx.save_for_backward(query, key, value, *((weights, dropped) if short else (draw.words,)))
        ctx.scale, ctx.shape, ctx.visible = scale, shape, visible
        ctx.threshold, ctx.factor = draw.threshold, draw.factor
        return (dropped @ value).view(*shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, *kept = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, *gradients[0].shape[-2:])
        if len(kept) == 2:
            weights, dropped = kept
        else:
            weights = _weights(query, key, ctx.visible, ctx.shape)
            dropped = Draw(kept[0], ctx.threshold, ctx.factor).noise(weights.dtype).mul_(weights)
        heads = ctx.shape[:-2]
        to_value = to_query = to_key = None
        if ctx.needs_input_grad[2]:
            to_value = (dropped.transpose(1, 2) @ gradient).unflatten(0, heads)
        # The softmax's backward pass, w · (g − Σ w g), of g times the noise: w times the noise is what was kept.
        to_scores = (gradient @ value.transpose(1, 2)).mul_(dropped)
        to_scores.addcmul_(weights, to_scores.sum(-1, keepdim=True), value=-1)
        if ctx.needs_input_grad[0]:
            to_query = (to_scores @ key).mul_(ctx.scale).unflatten(0, heads)
        if ctx.needs_input_grad[1]:
            to_key = (to_scores.transpose(1, 2) @ query).unflatten(0, heads)  # the query is scaled already
        return to_query, to_key, to_value, None, None, None


def _weights(query: torch.Tensor, key: torch.Tensor, visible: Visible | None, shape: torch.Size) -> torch.Tensor:
    """Attention weights (batch · heads, queries, keys); a row that may attend to nothing has none, as torch's has."""
    scores = query @ key.transpose(1, 2)
    if visible is None:
        return scores.softmax(-1)
    scores.view(shape).add_(visible.bias)
    weights = scores.softmax(-1)
    if visible.alive is not None:
        weights.view(shape).mul_(visible.alive)
    return weights


def dropout_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: Visible | None,
    rate: float,
    scale: float | None = None,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` with dropout, for (batch, heads, length, width) on a CPU.

    Torch has no fused kernel for it there either. The mask gets no gradient.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if torch.is_autocast_enabled("cpu"):  # once, here: the backward pass runs outside of it and must find one type
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            return dropout_attention(query.to(dtype), key.to(dtype), value.to(dtype), visible, rate, scale)
    if is_lacking(query):
        bias = None if visible is None else replace(visible, bias=visible.bias.float())
        wide = dropout_attention(query.float(), key.float(), value.float(), bias, rate, scale)
        return wide.to(query.dtype)
    return _DropoutAttention.apply(query, key, value, visible, rate, scale)  # type: ignore[no-any-return, no-untyped-call]
