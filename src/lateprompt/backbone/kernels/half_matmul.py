"""Half-precision weights on a CPU that has no arithmetic for them.

Without AVX-512 (or more) a CPU multiplies bf16 numbers at a tenth to a hundredth of its fp32 speed. There, products are
computed in fp32 and rounded; weights and what is kept for the backward pass stay halves, so memory is that of halves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

_PROBES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@cache
def cpu_lacks(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU has no fast products of a half-precision type, as oneDNN sees it."""
    probe = getattr(torch.ops.mkldnn, _PROBES[dtype], None) if dtype in _PROBES else None
    return probe is not None and not probe()


def is_lacking(tensor: Any) -> bool:
    """Whether it is a tensor of halves on a CPU that has no arithmetic for them."""
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and cpu_lacks(tensor.dtype)


def widened(value: Any) -> Any:
    """In fp32 if it lacks arithmetic; anything else as it is."""
    return value.float() if is_lacking(value) else value


class _WideLinear(torch.autograd.Function):
    """A frozen linear map in fp32; what is saved for the backward pass is the weight as it is stored."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return F.linear(input.float(), weight.float(), None if bias is None else bias.float()).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return (gradients[0].float() @ weight.float()).to(gradients[0].dtype), None, None


def wide_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` of tensors that lack arithmetic, in fp32 and rounded to the input's type."""
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return F.linear(input.float(), weight.float(), None if bias is None else bias.float()).to(input.dtype)
    return _WideLinear.apply(input, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
