"""Free the weights that training from cached states never touches, and put them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lateprompt.backbone.families import core_of
from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.readouts import Readout


class OffloadedWeights:
    """Weights that `offload` has freed: the trunk's, the embeddings, and the LM head's rows that a readout can spare.

    Until `restore`, calls of the late backbone without `trunk_states` raise LatePromptError.

    Args:
        layer: the late backbone.
        in_core: its backbone's freed parameters by name.
        in_head: the output embedding's.
    """

    def __init__(self, layer: LateBackbone, in_core: dict[str, nn.Parameter], in_head: dict[str, nn.Parameter]) -> None:
        self.layer = layer
        self.in_core = in_core
        self.in_head = in_head

    @classmethod
    def offload(cls, model: Any, layer: LateBackbone, prompt_layer: int, readout: Readout) -> OffloadedWeights:
        """Free what training from cached states does not need; tied weights that the LM head still needs stay.

        Args:
            model: the Hugging Face model (with its head) that holds `layer`.
            layer: the late backbone.
            prompt_layer: p; what lies below is freed.
            readout: what will read the batches.
        """
        core: Any = layer.base_layer
        if any(parameter.device.type == "meta" for parameter in model.parameters()):
            return cls(layer, {}, {})  # accelerate has offloaded them: nothing is held that could be freed
        output = readout.offload_head()
        embeddings = {id(p) for p in core.get_input_embeddings().parameters()}
        needed = {id(p) for p in _parameters_outside(model, core, output)}
        needed |= {id(p) for p in layer.split_at(prompt_layer).tail.parameters()} - embeddings
        in_core = {name: p for name, p in core.named_parameters() if _free(p, needed)}
        freed = {id(p) for p in in_core.values()}
        head = () if output is None else output.named_parameters()
        in_head = {name: p for name, p in head if _free(p, needed | freed)}
        for parameter in (*in_core.values(), *in_head.values()):
            parameter.data = parameter.data.new_empty(0)
        layer.trunk_offloaded = bool(in_core)
        return cls(layer, in_core, in_head)

    @torch.no_grad()
    def restore(self, source: Any) -> None:
        """Take the weights from `source`, the same model loaded again; its tensors are handed over, not copied."""
        device, _ = self.layer.placement
        given = dict(core_of(source).named_parameters())
        for name, parameter in self.in_core.items():
            parameter.data = given[name.replace(".base_layer.", ".")].data.to(device)
        if self.in_head:
            given = dict(source.get_output_embeddings().named_parameters())
            for name, parameter in self.in_head.items():
                parameter.data = given[name].data.to(device)
        self.layer.trunk_offloaded = False


ReleasedWeights = OffloadedWeights
"""The name of earlier releases."""


def _free(parameter: nn.Parameter, needed: set[int]) -> bool:
    return id(parameter) not in needed and not parameter.requires_grad


def _parameters_outside(model: nn.Module, core: nn.Module, output: nn.Module | None) -> Iterator[nn.Parameter]:
    """Parameters that modules outside of the backbone hold (tied ones too), but for those of `output`."""
    left_out = {id(module) for part in (core, output) if part is not None for module in part.modules()}
    for module in model.modules():
        if id(module) not in left_out:
            yield from (p for p in module._parameters.values() if p is not None)
