"""`CpuKernels`: the one context in which a CPU computes dropout, and products of halves, the fast way.

Both are functions of torch that Hugging Face's attention kernels, PEFT's layers and the heads call wherever they like,
so they are replaced by a torch function mode and not module by module. It is opened once for a training step, or else
by the late backbone for a call (`cpu_kernels`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lateprompt.backbone.kernels.cpu_dropout import Visible, dropout_attention, fast_dropout, fast_dropout_
from lateprompt.backbone.kernels.half_matmul import cpu_lacks, is_lacking, wide_linear, widened
from lateprompt.utils.randomness import OwnNumbers, own_generator


def cpu_kernels(device: torch.device, dtype: torch.dtype, *, dropout: bool = False) -> AbstractContextManager[Any]:
    """`CpuKernels` for weights on `device` in `dtype`, where they are of use and not open in this thread already.

    Args:
        device, dtype: of the weights.
        dropout: whether dropout takes the fast way.
    """
    products = cpu_lacks(dtype)
    useful = device.type == "cpu" and (dropout or products)
    if not useful or any(mode.does(dropout, products) for mode in _open_modes()):
        return nullcontext()
    return CpuKernels(dropout=dropout, products=products)


def _open_modes() -> list[CpuKernels]:
    return [mode for mode in _get_current_function_mode_stack() if isinstance(mode, CpuKernels)]


class CpuKernels(TorchFunctionMode):
    """While open, these functions on CPU tensors take the fast way; all else is untouched.

    Args:
        dropout: dropout, and attention with dropout (`lateprompt.backbone.kernels.cpu_dropout`). In a run, whatever
            else is random takes the run's generator.
        products: products of tensors that this CPU has no arithmetic for (`lateprompt.backbone.kernels.half_matmul`).

    Example:
        >>> with CpuKernels():
        ...     torch.nn.functional.dropout(torch.ones(2, 3), 0.5).shape
        torch.Size([2, 3])
    """

    def __init__(self, *, dropout: bool = True, products: bool = True) -> None:
        super().__init__()
        self.dropout = dropout
        self.products = products
        self._seen: tuple[torch.Tensor, int, torch.dtype, Visible] | None = None

    def does(self, dropout: bool, products: bool) -> bool:
        """Whether another one for these would look at every call for nothing."""
        return self.dropout >= dropout and self.products >= products

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.products:
            if func is F.linear and is_lacking(args[0] if args else kwargs["input"]):
                return wide_linear(*args, **kwargs)
            if func in _PRODUCTS:
                halves = next((value for value in (*args, *kwargs.values()) if is_lacking(value)), None)
                if halves is not None:
                    wide = {name: widened(value) for name, value in kwargs.items()}
                    return self.__torch_function__(func, types, tuple(map(widened, args)), wide).to(halves.dtype)
        if self.dropout:
            if func is F.dropout:
                return _dropout(*args, **kwargs)
            if func is F.scaled_dot_product_attention:
                return self._attention(*args, **kwargs)
            if func in _RANDOM:
                generator = own_generator()
                if generator is not None:
                    with OwnNumbers(generator):
                        return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        torchs = is_causal and attn_mask is not None  # an error of its own
        if not 0.0 < dropout_p < 1.0 or query.device.type != "cpu" or torchs:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:  # so many queries to a key
            key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
        if attn_mask is not None and attn_mask.requires_grad:
            factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
            scores = query @ key.transpose(-2, -1) * factor + attn_mask
            return fast_dropout(scores.softmax(-1), dropout_p) @ value
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        visible = None if attn_mask is None else self._visible(attn_mask, query.dtype)
        return dropout_attention(query, key, value, visible, dropout_p, scale)

    def _visible(self, mask: torch.Tensor, dtype: torch.dtype) -> Visible:
        """All layers get the same mask: it is looked at once."""
        if self._seen is not None:
            seen, version, kind, visible = self._seen
            same = mask.data_ptr() == seen.data_ptr() and mask.shape == seen.shape and mask.stride() == seen.stride()
            same = same and not mask.is_inference()
            if same and mask.dtype == seen.dtype and mask._version == version and dtype == kind:
                return visible
        visible = Visible.of(mask, dtype)
        if not mask.is_inference():  # such a tensor has no version to tell that it has changed
            self._seen = mask, mask._version, dtype, visible
        return visible


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if training and 0.0 < p < 1.0 and input.device.type == "cpu":
        return fast_dropout_(input, p) if inplace else fast_dropout(input, p)
    return F.dropout(input, p, training, inplace)


_PRODUCTS = {
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    F.scaled_dot_product_attention,
}

_NAMES: tuple[tuple[Any, str], ...] = (
    (torch, "rand randn randint randperm normal rand_like randn_like randint_like bernoulli multinomial poisson"),
    (torch, "dropout dropout_ alpha_dropout alpha_dropout_ feature_dropout feature_alpha_dropout native_dropout"),
    (torch, "rrelu lstm gru rnn_tanh rnn_relu"),
    (torch.Tensor, "normal_ uniform_ random_ bernoulli_ bernoulli exponential_ geometric_ cauchy_ log_normal_"),
    (torch.Tensor, "multinomial"),
    (F, "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout gumbel_softmax rrelu"),
    (F, "multi_head_attention_forward fractional_max_pool2d"),
    (nn.init, "uniform_ normal_ trunc_normal_ xavier_uniform_ xavier_normal_ kaiming_uniform_ kaiming_normal_"),
    (nn.init, "orthogonal_"),
)
_RANDOM = frozenset(getattr(place, name) for place, names in _NAMES for name in names.split() if hasattr(place, name))
"""What draws numbers, dropout and attention apart."""
