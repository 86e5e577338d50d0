"""Run the last layer of a tail only at the positions that the readout uses, and the first only where a gradient is.

Two layers of a tail do work that is thrown away. The *first* one's inputs are the prompt and the text's states, and
only the prompt wants a gradient. Of the *last* one's outputs only the read positions are looked at: it needs the keys
and values of all positions, but queries, attention output and feed-forward at those alone; and where few positions are
read, some families can do without the keys and values too (`absorbed_attention`). `ReadTail` is a view of the tail
without any of this, exact to rounding; the layers still run the architecture's own code.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lateprompt.backbone.families import Family
from lateprompt.backbone.kernels.absorbed_attention import absorbing_view, is_worth_it
from lateprompt.backbone.kernels.half_matmul import widened
from lateprompt.backbone.split import own_module, replace_module, shallow_copy


class ReadTail:
    """A view of a tail that leaves out what a call does not need.

    Args:
        tail: the tail, a view of its own already.
        family: where its layers and their projections are, and whether the last one can be read in part.
        front: only so many positions at the front of the input want a gradient (the prompt's, and nothing in the tail
            is trained); 0: all may.
        compiled: every layer but a reading one goes through `torch.compile`, once for all of the same shape.
    """

    def __init__(self, tail: nn.Module, family: Family, front: int, *, compiled: bool = False) -> None:
        self.family = family
        self.view = shallow_copy(tail)
        self._owned: dict[str, nn.Module] = {}
        names = list(tail.get_submodule(family.layers)._modules)
        self._last_name = names[-1]
        if front:
            self._narrow_first(f"{family.layers}.{names[0]}", front)
        if family.reads:
            self._read_last(tail.get_submodule(f"{family.layers}.{names[-1]}"))
        if compiled:
            self._compile(names[: -1 if family.reads else None])
        found = (submodule_or_none(tail, path) for path in self._owned)
        self.originals = [module for module in found if module is not None]
        """What the view has copied: a change of one makes it stale."""

    @property
    def gives_reads(self) -> bool:
        """Whether the output has the read positions alone, and not all of them."""
        return self.family.reads and not self.family.fixed_length

    def at(self, positions: torch.Tensor | None) -> nn.Module:
        """The view for one call, which another thread's call does not see.

        Args:
            positions: (batch, reads) positions of the tail's input (the prompt included) that are read; None: all.
        """
        if positions is None or not self.family.reads:
            return self.view
        view = shallow_copy(self.view)
        layers = own_module(view, self.family.layers, {})._modules
        last: Any = layers[self._last_name]
        layers[self._last_name] = last.at(positions)
        return view

    def _narrow_first(self, first: str, front: int) -> None:
        for path in self.family.projections:
            linear = submodule_or_none(self.view, f"{first}.{path}")
            if isinstance(linear, nn.Module) and type(linear) in (nn.Linear, Conv1D):
                replace_module(self.view, f"{first}.{path}", _FrontLinear(linear, front), self._owned)

    def _read_last(self, layer: nn.Module) -> None:
        last = f"{self.family.layers}.{self._last_name}"
        keys_only = own_module(self.view, last, self._owned)
        query = self.family.projections[0]
        linear = submodule_or_none(self.view, f"{last}.{query}")
        linear = getattr(linear, "linear", linear)
        if len(self.family.projections) == 3 and linear is not None:
            replace_module(self.view, f"{last}.{query}", NoQuery(_width(linear)), self._owned)
        layers = own_module(self.view, self.family.layers, self._owned)
        layers._modules[self._last_name] = ReadLayer(layer, keys_only, self.family)

    def _compile(self, names: list[str]) -> None:
        layers = own_module(self.view, self.family.layers, self._owned)
        for name in names:
            layer = shallow_copy(own_module(self.view, f"{self.family.layers}.{name}", self._owned))
            layer.compile(dynamic=True)
            layers._modules[name] = layer


class _FrontGradient(torch.autograd.Function):
    """A frozen linear map of (batch, length, in) whose input gets a gradient at the first `front` positions only."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, front: int) -> Any:
        """`weight` is (out, in)."""
        ctx.front, ctx.shape, ctx.dtype = front, hidden.shape, hidden.dtype
        ctx.save_for_backward(weight)
        return F.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        front = gradients[0][:, : ctx.front]
        result = front.new_zeros(ctx.shape, dtype=ctx.dtype)
        result[:, : ctx.front] = widened(front) @ widened(weight.to(front.dtype))
        return result, None, None, None


class _FrontLinear(nn.Module):
    """Stands for a frozen projection of the tail's first layer: a gradient at the first `front` positions only."""

    def __init__(self, linear: nn.Module, front: int) -> None:
        super().__init__()
        self.linear = linear
        self.front = front
        self._conv = isinstance(linear, Conv1D)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        linear: Any = self.linear
        if not hidden.requires_grad or hidden.ndim != 3:
            return linear(hidden)  # type: ignore[no-any-return]
        weight = linear.weight.T if self._conv else linear.weight
        return _FrontGradient.apply(hidden, weight, linear.bias, self.front)  # type: ignore[no-any-return, no-untyped-call]


class NoQuery(nn.Module):
    """Stands for the query projection where only keys and values are wanted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], self.width)


class _Computed(Exception):
    """Keys and values are there; the rest of the layer is not wanted."""


class _Capture:
    """Stands for a KV cache: takes a layer's keys and values and stops it."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.keys, self.values = keys, values
        raise _Computed

    def get_seq_length(self, *args: Any) -> int:
        return 0


class _Given:
    """Stands for a KV cache: hands a layer keys and values of all positions, or what stands for them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.pair = keys, values

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pair

    def get_seq_length(self, *args: Any) -> int:
        return 0


class ReadLayer(nn.Module):
    """Stands for the tail's last layer: (batch, length, hidden) to its output at the read positions.

    Args:
        layer: the layer.
        keys_only: the same layer for keys and values, without its query projection where that can be left out.
        family: whether a position sees only those before it, whether the output must be (batch, length, hidden),
            zero where nothing is read, and whether a few queries can do without keys and values.
    """

    def __init__(self, layer: nn.Module, keys_only: nn.Module, family: Family) -> None:
        super().__init__()
        self.layer = layer
        self.keys_only = keys_only
        self.absorbing = absorbing_view(layer, family)
        self.family = family
        self._signature = inspect.signature(type(layer).forward)
        self._cache_name = "layer_past" if "layer_past" in self._signature.parameters else "past_key_values"
        self.positions: torch.Tensor | None = None

    def at(self, positions: torch.Tensor) -> Self:
        """The same for one call that reads these positions (batch, reads)."""
        layer = shallow_copy(self)
        layer.__dict__["positions"] = positions
        return layer  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # the model may ask its layers what kind they are

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        positions = self.positions
        if positions is None:
            return self.layer(hidden, *args, **kwargs)
        bound = self._signature.bind_partial(self.layer, hidden, *args)
        call = {k: v for k, v in list(bound.arguments.items())[2:] if k != "kwargs"} | kwargs
        call.pop("use_cache", None)
        layer, given = self.layer, _Given(hidden, hidden)
        if self.absorbing is not None and is_worth_it(self.absorbing, self.family, hidden, positions.shape[1]):
            layer = self.absorbing
        else:
            given = self._keys_and_values(hidden, call)
        rows = torch.arange(len(positions), device=hidden.device)[:, None]
        call["attention_mask"] = self._mask_rows(call.get("attention_mask"), positions, hidden)
        for name in ("position_embeddings", "position_ids"):
            if call.get(name) is not None:
                call[name] = _take(call[name], positions, rows)
        output = layer(hidden[rows, positions], **{**call, self._cache_name: given})
        return torch.zeros_like(hidden).index_put((rows, positions), output) if self.family.fixed_length else output

    def _keys_and_values(self, hidden: torch.Tensor, call: dict[str, Any]) -> _Given:
        capture = _Capture()
        with suppress(_Computed):
            self.keys_only(hidden, **{**call, self._cache_name: capture})
        return _Given(capture.keys, capture.values)

    def _mask_rows(self, mask: torch.Tensor | None, positions: torch.Tensor, hidden: torch.Tensor) -> Any:
        """The mask's rows (batch, 1, reads, length) of the read positions."""
        if mask is None:
            if not self.family.causal:
                return None
            keys = torch.arange(hidden.shape[1], device=hidden.device)
            return (keys <= positions[..., None])[:, None]
        if mask.shape[-2] == 1:
            return mask
        index = positions[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
        return mask.expand(len(positions), -1, -1, -1).gather(2, index)


def _take(value: Any, positions: torch.Tensor, rows: torch.Tensor) -> Any:
    """Entries (batch, reads, …) of a tensor (batch or 1, length, …), or of each of a tuple of such."""
    if isinstance(value, tuple):
        return tuple(_take(part, positions, rows) for part in value)
    return value.expand(len(positions), *value.shape[1:])[rows, positions]


def submodule_or_none(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, or None where there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _width(linear: nn.Module) -> int:
    features = getattr(linear, "out_features", None)
    if features is None:  # a PEFT layer around it
        features = linear.base_layer.out_features  # type: ignore[union-attr]
    return int(features)  # type: ignore[arg-type]
