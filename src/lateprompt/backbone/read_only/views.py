"""Views of a backbone for read-only prompts: the frozen text's, and the one that queries go through.

`FrozenViews` are the backbone without any adapter of ours, always in eval mode: the whole of it, its layers above p,
and these layers for keys and values alone. `QueryView` is the tail with its adapters, whose attention reads the text
from outside (`lateprompt.backbone.read_only.attention`): Hugging Face's own code goes through it with the queries as
its whole input.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lateprompt.backbone.families import Family, family_of, num_layers_of
from lateprompt.backbone.kernels.read_positions import submodule_or_none
from lateprompt.backbone.read_only.attention import CAPTURING, READING, RECORDING, Captured, TextKeys
from lateprompt.backbone.read_only.layer_call import LayerCall
from lateprompt.backbone.read_only.own_attention import reads_outside, replace_attention
from lateprompt.backbone.split import copied_without, install_capturing, own_module, shallow_copy, view_of
from lateprompt.backbone.views import LateSplit
from lateprompt.utils.errors import LatePromptError


class FrozenViews:
    """The backbone without adapters of ours, in eval mode, whole and in parts; each made when first used.

    Args:
        backbone: the module that owns embeddings and layers.
        tuned: the modules of tail tuners in it, which stand there for their `get_base_layer()`.
    """

    def __init__(self, backbone: nn.Module, tuned: Iterable[nn.Module] = ()) -> None:
        self.backbone: Any = backbone
        self.family = family_of(backbone)
        self.num_layers = num_layers_of(backbone)
        install_capturing(backbone)
        self._bare = copied_without(backbone, {id(module) for module in tuned})
        self._views: dict[tuple[int, int], nn.Module] = {}
        self._key_views: dict[int, nn.Module] = {}
        self._modules = list(backbone.modules())
        self._state = self._state_now()

    @property
    def is_stale(self) -> bool:
        """Whether modules of the backbone were replaced since, or its attention kernel changed."""
        return self._state_now() != self._state

    def _state_now(self) -> list[Any]:
        kernel = self.backbone.config._attn_implementation
        return [kernel, *((*m._modules.values(), m.__dict__.get("_hf_hook")) for m in self._modules)]

    def above(self, layer: int) -> nn.Module:
        """The layers above one and what follows them; above 0: the whole backbone."""
        return self.part(layer, self.num_layers)

    def below(self, layer: int) -> nn.Module:
        """The layers below one, without what follows the last one; below the top: the whole backbone."""
        return self.part(0, layer)

    def part(self, low: int, high: int) -> nn.Module:
        """The layers above `low`, up to `high`, with what comes before the first or follows the last one."""
        if (low, high) not in self._views:
            view = view_of(self._bare, low, high)
            if view._modules.get("pooler") is not None:
                view._modules["pooler"] = None  # applied by hand to what the caller gets
            self._views[low, high] = view.eval()
        return self._views[low, high]

    def layers(self, above: int) -> list[nn.Module]:
        """The layers above one."""
        return list(self.above(above).get_submodule(self.family.layers).children())

    def reads_outside(self, above: int) -> bool:
        """Whether the layers above one can read a text's keys and values from outside."""
        return reads_outside(self.layers(above)[0], self.family)

    def text_keys(self, states: Mapping[int, torch.Tensor]) -> dict[int, tuple[torch.Tensor, torch.Tensor]] | None:
        """The text's keys and values by layer, from its states at all layers above the lowest one.

        None where an architecture's attention cannot read a text from outside.
        """
        layers = sorted(states)
        if not self.reads_outside(layers[0]):
            return None
        found = self.keys(layers[0], [states[layer] for layer in layers], {})
        pairs = {}
        for layer, part in zip(layers, found, strict=True):
            assert part.keys is not None
            assert part.values is not None
            pairs[layer] = part.keys.contiguous(), part.values.contiguous()
        return pairs

    def keys(self, above: int, states: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> list[TextKeys]:
        """The text's keys and values in each layer.

        Args:
            above: p.
            states: of each layer above p, its input (batch, length, hidden).
            arguments: `position_ids`, where the call gives some.
        """
        view = shallow_copy(self._key_view(above))
        layers = own_module(view, self.family.layers, {})._modules
        found: list[TextKeys] = []
        for name, hidden in zip(list(layers), states, strict=True):
            capturing: Any = layers[name]
            layers[name] = capturing.at(hidden, found)
        extra = {"use_cache": False} if self.family.causal else {}
        with torch.no_grad():
            view(inputs_embeds=states[0], **arguments, **extra, return_dict=True)
        return found

    def recording(self, above: int, found: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module | None:
        """The whole backbone for one call, whose layers above one leave their keys and values; None: they cannot.

        Args:
            above: p.
            found: gets them, layer by layer.
        """
        kernel, family = self.backbone.config._attn_implementation, self.family
        outside = all(reads_outside(layer, family) for layer in self.layers(above))
        if family.attention != "interface" or not outside or kernel not in ALL_ATTENTION_FUNCTIONS:
            return None
        view = shallow_copy(self.above(0))
        owned: dict[str, nn.Module] = {}
        for name in list(own_module(view, family.layers, owned)._modules)[above:]:
            layer = own_module(view, f"{family.layers}.{name}", owned)
            replace_attention(layer, family, RECORDING)
            own_module(layer, family.attention_path, {}).__dict__.update(recorded=found, kernel=kernel)
        return view

    def _key_view(self, above: int) -> nn.Module:
        if above not in self._key_views:
            view = shallow_copy(self.above(above))
            owned: dict[str, nn.Module] = {}
            layers = own_module(view, self.family.layers, owned)._modules
            for name in list(layers):
                layer = own_module(view, f"{self.family.layers}.{name}", owned)
                replace_attention(layer, self.family, CAPTURING)
                layers[name] = _CapturingLayer(layer, self.family)
            self._key_views[above] = view
        return self._key_views[above]


class QueryView:
    """A view of a tail that queries go through, each layer reading the text.

    Args:
        tail: the tail, with its adapters.
        family: the backbone's.
    """

    def __init__(self, tail: nn.Module, family: Family) -> None:
        self.family = family
        self.view = shallow_copy(tail)
        self._owned: dict[str, nn.Module] = {}
        layers = own_module(self.view, family.layers, self._owned)._modules
        self._names = list(layers)
        for name in self._names:
            layer = own_module(self.view, f"{family.layers}.{name}", self._owned)
            whole = not reads_outside(layer, family)
            if not whole:
                replace_attention(layer, family, READING)
            layers[name] = QueryLayer(layer, family, whole=whole)
        self.originals = [module for path in self._owned if (module := submodule_or_none(tail, path)) is not None]
        """What the view has copied: a change of one makes it stale."""

    def at(self, calls: Sequence[LayerCall], own_keys: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module:
        """The view for one call, which another thread's call does not see.

        Args:
            calls: of each layer.
            own_keys: gets the queries' keys and values of each layer that reads from outside.
        """
        view = shallow_copy(self.view)
        layers = own_module(view, self.family.layers, {})._modules
        for name, call in zip(self._names, calls, strict=True):
            layer: Any = layers[name]
            layers[name] = layer.at(call, own_keys)
        return view


def query_view(split: LateSplit) -> QueryView:
    """The query view of a split's tail."""
    return cast(QueryView, split.further("queries", lambda: QueryView(split.tail, family_of(split.tail))))


class _Wrapper(nn.Module):
    """Stands for a layer, and answers for it when the model asks what kind it is."""

    def __init__(self, layer: nn.Module, family: Family) -> None:
        super().__init__()
        self.layer = layer
        self.family = family
        self._signature = inspect.signature(type(layer).forward)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def _arguments(self, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments by name, without mask and cache: what sees what is said by us."""
        bound = self._signature.bind_partial(self.layer, hidden, *args)
        given = {key: value for key, value in list(bound.arguments.items())[2:] if key != "kwargs"} | kwargs
        given = {key: value for key, value in given.items() if key not in _NOT_PASSED}
        return {**given, "attention_mask": None}

    def _as_layer(self, output: torch.Tensor) -> Any:
        """The output in the form that the model expects of its layers."""
        return output if self.family.attention == "interface" else (output, None)


_NOT_PASSED = ("use_cache", "past_key_values", "layer_past", "cache_position", "output_attentions", "position_bias")


class _CapturingLayer(_Wrapper):
    """Stands for a layer: passes its input through, and makes keys and values of another one."""

    def at(self, hidden: torch.Tensor, found: list[TextKeys]) -> nn.Module:
        """For one call: the layer's own input, and where its keys and values go."""
        layer = shallow_copy(self)
        layer.__dict__["given"] = hidden, found
        return layer

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own, found = self.__dict__["given"]
        try:
            self.layer(own, **self._arguments(hidden, args, kwargs))
        except Captured as captured:
            found.append(TextKeys(captured.keys, captured.values))
        else:
            raise _no_interface(self.layer)
        return self._as_layer(hidden)


class QueryLayer(_Wrapper):
    """Stands for a layer: from queries (batch, queries, hidden) to its output for them, reading the text.

    Args:
        layer: the layer, a copy of the view's own.
        family: the backbone's.
        whole: its attention cannot read from outside: it runs on text and queries together.
    """

    def __init__(self, layer: nn.Module, family: Family, *, whole: bool) -> None:
        super().__init__(layer, family)
        self.whole = whole

    def at(self, call: LayerCall, own_keys: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module:
        """For one call."""
        new = shallow_copy(self)
        new.__dict__["call"] = call
        if not self.whole:
            new._modules["layer"] = layer = shallow_copy(self.layer)
            attention = own_module(layer, self.family.attention_path, {})
            attention.__dict__.update(reading=call.reading, own_keys=own_keys)
            new.__dict__["own_keys"] = own_keys
        return new

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        call: LayerCall = self.__dict__["call"]
        arguments = self._arguments(hidden, args, kwargs)
        part: torch.Tensor = call.active(hidden)
        if not part.numel():
            return self._as_layer(hidden)
        for name in ("position_embeddings", "position_ids"):
            if arguments.get(name) is not None:
                arguments[name] = call.active(arguments[name])
        if self.whole:
            output = self.layer(call.with_text(part), **{**arguments, **call.whole_arguments(self._signature)})
            output = (output[0] if isinstance(output, tuple) else output)[:, -part.shape[1] :]
        else:
            before = len(self.__dict__["own_keys"])
            output = self.layer(part, **arguments)
            output = output[0] if isinstance(output, tuple) else output
            if len(self.__dict__["own_keys"]) == before:
                raise _no_interface(self.layer)
        return self._as_layer(call.together(output, hidden))


def _no_interface(layer: nn.Module) -> LatePromptError:
    return LatePromptError(
        f"{type(layer).__name__} does not compute its attention by transformers' attention interface; register its "
        "family with attention='whole'"
    )
