"""What stands for a layer's attention where it reads a text from outside, or stops with its keys and values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lateprompt.backbone.families import Family
from lateprompt.backbone.kernels.read_positions import NoQuery
from lateprompt.backbone.read_only.attention import CAPTURING, READING, capture_keys, read_only_attention
from lateprompt.backbone.split import own_module, replace_module


def reads_outside(layer: nn.Module, family: Family) -> bool:
    """Whether a layer's attention can read a text from outside: not where it stacks several, or computes alone."""
    if family.attention == "whole":
        return False
    several = getattr(layer, "albert_layers", None)
    return several is None or len(several) == 1


def replace_attention(layer: nn.Module, family: Family, interface: str) -> None:
    """Have the attention of a layer (the view's own copy) go through one of our interfaces."""
    if family.attention == "own":
        original = layer.get_submodule(family.attention_path)
        replace_module(layer, family.attention_path, OwnAttention(original, family, interface), {})
        return
    attention: Any = own_module(layer, family.attention_path, {})
    if interface == CAPTURING and len(family.projections) == 3:
        query = family.projections[0].rpartition(".")[2]
        width = getattr(attention._modules[query], "out_features", None)  # quantised weights have other shapes
        if width is not None:
            attention._modules[query] = NoQuery(width)
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = interface


class OwnAttention(nn.Module):
    """Stands for an attention module that does not know transformers' attention interface (MPNet, GPT-Neo).

    Args:
        attention: the module, which keeps its projections.
        family: their names, and what scores are multiplied with.
        interface: which of our interfaces computes.
    """

    def __init__(self, attention: Any, family: Family, interface: str) -> None:
        super().__init__()
        self.training = attention.training
        self._modules.update(attention._modules)
        self.maps = [path.rpartition(".")[2] for path in (*family.projections, family.adapters[0])]
        self.heads = int(getattr(attention, "num_attention_heads", None) or attention.num_heads)
        self.scaling = family.attention_scaling
        self.compute: Any = read_only_attention if interface == READING else capture_keys

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        if self.compute is capture_keys:
            capture_keys(self, None, *(self._by_head(self._modules[name](hidden)) for name in self.maps[1:3]))  # type: ignore[misc]
        query, key, value = (self._by_head(self._modules[name](hidden)) for name in self.maps[:3])  # type: ignore[misc]
        rate = float(getattr(self._modules.get("dropout") or self._modules.get("attn_dropout"), "p", 0.0))
        rate = rate if self.training else 0.0
        output, _ = self.compute(self, query, key, value, dropout=rate, scaling=self.scaling)
        output = self._modules[self.maps[3]](output.flatten(2))  # type: ignore[misc]
        after = self._modules.get("resid_dropout")
        return (output if after is None else after(output)), None

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        by_head: torch.Tensor = projected.unflatten(-1, (self.heads, -1))
        return by_head.transpose(1, 2)
