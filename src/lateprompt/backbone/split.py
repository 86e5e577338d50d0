"""Cut a Hugging Face backbone after layer p into a trunk and a tail that share its parameters.

Both are shallow copies of the backbone: Hugging Face's own `forward` then builds masks, rotary embeddings and attention
kernels for either part, and no modelling code is forked. Along the path to what is changed, modules are copied
(`_modules` anew, `_parameters` and `_buffers` the very same dicts, so that moving the model moves the views);
everything else is the original object.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers.utils import output_capturing

from lateprompt.backbone.families import Bypass, Family, core_of, family_of, num_layers_of
from lateprompt.utils.errors import LatePromptError

_INDEX_NAMES = ("layer_idx", "layer_id")


class _Embeds(nn.Module):
    """Stands for an embedding block: passes `inputs_embeds` (keyword, or second positional argument) through."""

    def forward(self, input_ids: Any = None, *args: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return inputs_embeds if inputs_embeds is not None else args[0]


class _Identity(nn.Module):
    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden


class _Zero(nn.Module):
    """Stands for position embeddings that are added; a scalar adds nothing and never promotes a dtype."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = next((a.device for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        return torch.zeros((), device=device)


_BYPASSES: dict[Bypass, type[nn.Module] | None] = {
    "none": None,
    "identity": _Identity,
    "embeds": _Embeds,
    "zero": _Zero,
}


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy with its own `_modules` that shares parameters and buffers with `module`.

    accelerate keeps its hook as an instance's `forward`, bound to the original: the copy gets its own around the
    class's `forward`, or it would run the whole original.
    """
    new = object.__new__(type(module))
    state = dict(module.__dict__)
    state["_modules"] = dict(module._modules)
    state.pop("forward", None)
    state.pop("_old_forward", None)
    hook = state.pop("_hf_hook", None)
    new.__dict__.update(state)
    if hook is not None:
        class_forward = type(module).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = hook.pre_forward(new, *args, **kwargs)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not hook.no_grad):
                output = class_forward(new, *args, **kwargs)
            return hook.post_forward(new, output)

        new.__dict__["forward"] = forward
    return new


def replace_module(root: nn.Module, path: str, new: nn.Module | None, owned: dict[str, nn.Module]) -> None:
    """Put `new` at `path` of the view `root`, copying the modules on the way once (`owned`: path to copy)."""
    parent_path, _, name = path.rpartition(".")
    own_module(root, parent_path, owned)._modules[name] = new


def own_module(root: nn.Module, path: str, owned: dict[str, nn.Module]) -> nn.Module:
    """The view's own copy of the module at `path` ('' is `root` itself)."""
    if not path:
        return root
    if path not in owned:
        parent_path, _, name = path.rpartition(".")
        parent = own_module(root, parent_path, owned)
        child = parent._modules[name]
        assert child is not None
        owned[path] = shallow_copy(child)
        parent._modules[name] = owned[path]
    return owned[path]


def _reindexed(module: nn.Module, low: int, originals: list[nn.Module]) -> nn.Module:
    """`module` with every layer index lowered by `low` (a view's KV cache starts at 0). Copies only what it must."""
    children = {name: _reindexed(child, low, originals) for name, child in module._modules.items() if child is not None}
    names = [name for name in _INDEX_NAMES if isinstance(module.__dict__.get(name), int)]
    if not names and all(children[name] is module._modules[name] for name in children):
        return module
    originals.append(module)
    new = shallow_copy(module)
    new._modules.update(children)
    for name in names:
        new.__dict__[name] = module.__dict__[name] - low
    return new


def copied_without(module: nn.Module, wrappers: Collection[int]) -> nn.Module:
    """`module` copied to its leaves, with a train mode of its own; what is in `wrappers` (by id) gives way to its
    `get_base_layer()`."""
    while id(module) in wrappers:
        module = module.get_base_layer()  # type: ignore[operator]
    new = shallow_copy(module)
    for name, child in module._modules.items():
        new._modules[name] = None if child is None else copied_without(child, wrappers)
    return new


def _copied(module: nn.Module, originals: list[nn.Module]) -> nn.Module:
    """`module` copied to its leaves: layers that run in trunk and tail (ALBERT's) have a train mode in each."""
    originals.append(module)
    new = shallow_copy(module)
    for name, child in module._modules.items():
        new._modules[name] = None if child is None else _copied(child, originals)
    return new


def view_of(core: nn.Module, low: int, high: int, originals: list[nn.Module] | None = None) -> nn.Module:
    """A view of a backbone's layers above `low`, up to `high`, with what comes before or follows them if they are the
    first or the last ones.

    Args:
        core: the module that owns embeddings and layers.
        low, high: numbers of layers.
        originals: gets the modules that were copied.
    """
    family, originals = family_of(core), [] if originals is None else originals
    total = num_layers_of(core)
    view = shallow_copy(core)
    for name in (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    ):
        view.__dict__[name] = OrderedDict()  # hooks on the whole backbone fire once, not once a view
    view.__dict__["_forward_hooks_always_called"] = OrderedDict()
    owned: dict[str, nn.Module] = {}

    stack = list(core.get_submodule(family.layers).children())
    if family.unroll:  # ALBERT: layer i runs group i // (layers / groups)
        stack = [stack[int(i / (total / len(stack)))] for i in range(total)]
    layers = nn.ModuleList()
    layers.training = core.training
    for i, layer in enumerate(stack[low:high]):
        if family.unroll:
            layers._modules[str(i)] = _copied(layer, originals)
        else:
            layers._modules[str(i)] = _reindexed(layer, low, originals) if low else layer
    replace_module(view, family.layers, layers, owned)

    bypassed = {**(family.trunk if high < total else {}), **(family.tail if low else {})}
    for path, kind in bypassed.items():
        parent_path, _, name = path.rpartition(".")
        parent = core.get_submodule(parent_path)
        if parent._modules.get(name) is not None:  # optional modules (a pooler, a projection) may be missing
            substitute = _BYPASSES[kind]
            replace_module(view, path, None if substitute is None else substitute(), owned)

    config = _cut_config(core.config, family, low, high)
    for module in (view, *owned.values()):
        if getattr(module, "config", None) is core.config:
            module.__dict__["config"] = config
        if isinstance(module.__dict__.get("n_layers"), int):  # DistilBERT's own count
            module.__dict__["n_layers"] = high - low
    originals.extend([core, *(core.get_submodule(path) for path in owned)])
    return view


def _cut_config(config: Any, family: Family, low: int, high: int) -> Any:
    config = copy.deepcopy(config)
    for name in family.layer_lists:
        entries = getattr(config, name, None)
        if entries is not None:
            setattr(config, name, list(entries)[low:high])
    config.num_hidden_layers = high - low
    if family.unroll:
        config.num_hidden_groups = high - low
    return config


def _state_of(originals: list[nn.Module]) -> tuple[Any, ...]:
    """What a view copied and would miss a change of: children, gradient checkpointing, attention kernel, adapters."""
    return tuple(
        (
            *(id(child) for child in module._modules.values()),
            module.__dict__.get("gradient_checkpointing"),
            module.__dict__.get("_gradient_checkpointing_func"),
            module.__dict__.get("_hf_hook"),
            getattr(module.__dict__.get("config"), "_attn_implementation", None),
            str(module.__dict__.get("_active_adapter")),  # a PEFT layer in a shared group
            module.__dict__.get("_disable_adapters"),
        )
        for module in originals
    )


def install_capturing(core: nn.Module) -> None:
    """Have transformers put its recording hooks on the original's layers, before a view copies them.

    The views' layers share these hooks; a second set would record twice.
    """
    if hasattr(type(core), "_can_record_outputs"):
        output_capturing.maybe_install_capturing_hooks(core)  # type: ignore[arg-type]


class Split:
    """A trunk and a tail of one backbone, and whether they still show it as it is.

    Views go stale when modules of the backbone are replaced (LoRA injected later) or switched to another adapter,
    gradient checkpointing is switched, or the attention kernel is changed: `is_stale` says so, and the owner builds a
    new `Split`.
    """

    def __init__(self, core: nn.Module, prompt_layer: int) -> None:
        install_capturing(core)
        self._originals: list[nn.Module] = []
        self.trunk = view_of(core, 0, prompt_layer, self._originals)
        self.tail = view_of(core, prompt_layer, num_layers_of(core), self._originals)
        self._state = _state_of(self._originals)

    def watch(self, originals: list[nn.Module]) -> None:
        """Go stale also when one of these changes: a further view has copied them."""
        self._originals.extend(originals)
        self._state = _state_of(self._originals)

    @property
    def is_stale(self) -> bool:
        return _state_of(self._originals) != self._state


def resolve_prompt_layer(prompt_layer: int | float | str, num_layers: int) -> int:
    """An absolute prompt layer from an int (1..L-1) or a fraction of the depth ("0.5").

    Raises:
        LatePromptError: no number, or outside 1..num_layers-1.
    """
    layer: int | None = None
    try:
        share = -1.0 if isinstance(prompt_layer, bool) else float(str(prompt_layer))
    except ValueError:
        share = -1.0
    if 0.0 < share < 1.0:
        layer = min(max(1, round(share * num_layers)), num_layers - 1)
    elif share.is_integer():
        layer = int(share)
    if layer is None or not 1 <= layer <= num_layers - 1:
        raise LatePromptError(
            f"prompt_layer {prompt_layer!r} is out of range: this model has {num_layers} layers, "
            f"so choose 1..{num_layers - 1}, or a fraction of the depth such as '0.5'"
            if num_layers > 1
            else f"prompt_layer {prompt_layer!r} is out of range: this model has {num_layers} layer, too few to split"
        )
    return layer


def split_backbone(backbone: nn.Module, prompt_layer: int | float | str) -> tuple[nn.Module, nn.Module]:
    """Two views of `backbone`: layers 1..p (the trunk) and p+1..L (the tail), which share its parameters.

    `trunk(input_ids=..., attention_mask=...)` gives the hidden states at the prompt layer as `last_hidden_state`
    (batch, length, hidden); `tail(inputs_embeds=states, attention_mask=...)` goes on from there. One after the other
    they compute exactly what the backbone does. The views are snapshots of its modules: split again after replacing
    some.

    Args:
        backbone: a Hugging Face backbone, or a model with a head (its backbone is taken).
        prompt_layer: p, 1..L-1, or a fraction of the depth ("0.5").

    Raises:
        LatePromptError: unknown architecture, or `prompt_layer` out of range.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt import split_backbone
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> model = BertModel(BertConfig(vocab_size=100, **sizes), add_pooling_layer=False).eval()
        >>> trunk, tail = split_backbone(model, 2)
        >>> ids = torch.tensor([[2, 7, 9, 3]])
        >>> states = trunk(input_ids=ids).last_hidden_state  # (batch, length, hidden), after layer 2
        >>> output = tail(inputs_embeds=states).last_hidden_state
        >>> torch.equal(output, model(input_ids=ids).last_hidden_state)
        True
    """
    core = core_of(backbone)
    split = Split(core, resolve_prompt_layer(prompt_layer, num_layers_of(core)))
    return split.trunk, split.tail
