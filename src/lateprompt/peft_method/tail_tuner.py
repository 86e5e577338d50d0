"""Tail tuners: LoRA, adapters, BitFit, … or the backbone's own weights, trained with a late prompt or in its place.

Any PEFT method that wraps modules can tune the layers above the prompt layer (then it is *late*: the trunk stays a pure
function of the text, so its states can be kept) or all layers. What it trains is an entry of the late prompt's own
adapter: it is switched, saved and loaded with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from lateprompt.backbone.families import Bypass, family_of, num_layers_of
from lateprompt.peft_method.extra.base import LayerTuner, Stack, join, under
from lateprompt.utils.errors import LatePromptError, first_line

FULL = "FULL"
"""The peft_type of a tuner that is none: the backbone's own weights are trained."""
PROMPT_LEARNING = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
"""PEFT's methods that wrap no module: virtual tokens before the input, or keys and values before each layer's."""
LAYERS = ("tail", "all")


def make_config(tuner: Mapping[str, Any]) -> Any:
    """PEFT's configuration of a mapping with `peft_type`.

    Raises:
        LatePromptError: no such method, or an option that it does not have.
    """
    kind = tuner.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted([FULL, *map(str, PEFT_TYPE_TO_CONFIG_MAPPING)]))
        raise LatePromptError(f"tuner has peft_type {kind!r}, which PEFT does not know; choose one of {known}")
    options = {key: value for key, value in tuner.items() if key != "peft_type"}
    if kind == "LATE_PROMPT":
        raise LatePromptError(f"tuner has peft_type {kind!r}: a late prompt tunes no tail; choose another method")
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind](**options)  # type: ignore[index]
    except LatePromptError:
        raise
    except Exception as error:  # PEFT's own code on the user's options
        raise LatePromptError(f"tuner {dict(tuner)!r} cannot be made: {first_line(error)}") from None


class _Paths(nn.Module):
    """Modules and parameters that live elsewhere, under their paths there: one entry of an adapter's state."""

    def __init__(self, parts: Mapping[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        for path, part in parts.items():
            *parents, name = path.split(".")
            place: nn.Module = self
            for parent in parents:
                if parent not in place._modules:
                    place._modules[parent] = _Paths({})
                place = place._modules[parent]  # type: ignore[assignment]
            if isinstance(part, nn.Parameter):
                place.register_parameter(name, part)
            else:
                place._modules[name] = part


class TailTuner:
    """A PEFT method on the layers above the prompt layer, or on all.

    Args:
        core: the backbone.
        name: the adapter's name.
        tuner: PEFT's options, with `peft_type`.
        prompt_layer: p.
        late: keep to the layers above p.

    Raises:
        LatePromptError: options that cannot be, nothing to wrap, weights shared with layers below p, or a backbone that
            has another tuner already.
    """

    def __init__(self, core: nn.Module, name: str, tuner: Mapping[str, Any], prompt_layer: int, *, late: bool) -> None:
        self.core = core
        self.name = name
        self.full = tuner.get("peft_type") == FULL
        self.layers: list[Any] = []
        parts: dict[str, nn.Module | nn.Parameter]
        if self.full:
            parts = _own_weights(core, tuner, prompt_layer, late=late)
        else:
            parts = self._wrap(tuner, prompt_layer, late=late)
        self.parts = _Paths(parts)

    def _wrap(self, tuner: Mapping[str, Any], prompt_layer: int, *, late: bool) -> dict[str, nn.Module | nn.Parameter]:
        config = make_config(tuner)
        kind: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type, nn.Module)
        if not issubclass(kind, BaseTuner) or not hasattr(kind, "tuner_layer_cls"):
            raise LatePromptError(
                f"tuner {tuner['peft_type']!r} does not wrap single modules, so it cannot tune a late prompt's tail; "
                "choose another, such as LORA, HOULSBY_ADAPTER or BITFIT"
            )
        there = [module for module in self.core.modules() if isinstance(module, BaseTunerLayer)]
        other = next((type(module).__name__ for module in there if not isinstance(module, kind.tuner_layer_cls)), None)
        if other is not None:
            raise LatePromptError(
                f"the backbone already has {other}, and {tuner['peft_type']!r} cannot lie beside it; unload it first"
            )
        if late:
            _keep_to_tail(config, kind, self.core, prompt_layer)
        else:
            _fill_in_targets(config, kind, self.core)
        frozen = {parameter: parameter.requires_grad for parameter in self.core.parameters()}
        had = self.core.__dict__.get("peft_config")
        try:
            kind(self.core, config, adapter_name=self.name)
        except LatePromptError:
            raise
        except Exception as error:
            if issubclass(kind, LayerTuner):
                raise
            self._take_back(kind, there)  # PEFT has wrapped what came before
            raise LatePromptError(
                f"PEFT cannot put tuner {dict(tuner)!r} on {type(self.core).__name__}: {first_line(error)}"
            ) from None
        finally:
            if had is None:
                self.core.__dict__.pop("peft_config", None)  # PEFT leaves it: the next wrapper would warn
            else:
                self.core.__dict__["peft_config"] = had
            for parameter, trained in frozen.items():
                parameter.requires_grad_(trained)
        parts: dict[str, nn.Module | nn.Parameter] = {}
        for path, module in self.core.named_modules():
            if isinstance(module, kind.tuner_layer_cls):
                own = {
                    join(path, table): getattr(module, table)[self.name]
                    for table in module.adapter_layer_names
                    if self.name in getattr(module, table)
                }
                if own:
                    self.layers.append(module)
                    parts |= own
        return parts

    def _take_back(self, kind: type[BaseTuner], there: Sequence[BaseTunerLayer]) -> None:
        """Undo a wrapping that failed half-way: layers that were there lose this adapter, new ones go."""
        new = [m for m in self.core.modules() if isinstance(m, kind.tuner_layer_cls) and m not in there]
        self.layers = new
        self.unwrap()
        for layer in there:
            layer.delete_adapter(self.name)

    def activate(self, names: Iterable[str]) -> None:
        """Let the wrapped modules use the adapters of these names (those that they have)."""
        for module in self.layers:
            module.set_adapter(list(names))

    def enable(self, enabled: bool) -> None:
        """Switch the tuner on or off.

        Raises:
            LatePromptError: the backbone's own weights were trained, so there is nothing to go back to.
        """
        if self.full and not enabled:
            raise LatePromptError(
                f"adapter {self.name!r} trained the backbone's own weights, so it cannot be switched off; load the "
                "base model again"
            )
        for module in self.layers:
            module.enable_adapters(enabled)

    def delete(self) -> None:
        """Take this adapter out of the wrapped modules."""
        for module in self.layers:
            module.delete_adapter(self.name)

    def unwrap(self) -> None:
        """Give the backbone its own modules back."""
        wrapped = {id(module) for module in self.layers}
        for parent in list(self.core.modules()):
            for name, child in parent._modules.items():
                if id(child) in wrapped:
                    parent._modules[name] = child.get_base_layer()  # type: ignore[union-attr,operator]


Beneath = TailTuner
"""The name of earlier releases."""


def _keep_to_tail(config: Any, kind: type[BaseTuner], core: Any, prompt_layer: int) -> None:
    """Name the modules above the prompt layer: PEFT's `layers_to_transform` needs a pattern for each architecture."""
    name = str(getattr(config.peft_type, "value", config.peft_type))  # of PEFT's enum, or one of ours
    above = range(prompt_layer, num_layers_of(core))
    if issubclass(kind, LayerTuner):
        config.layers_to_transform = list(above)
        return
    names = getattr(config, "target_modules", None) or default_targets(kind, core)
    if not names:
        raise LatePromptError(
            f"tuner {name!r} has no default for the architecture {core.config.model_type!r}; give its target_modules"
        )
    chosen = targets_in(core, names, above)
    if not chosen:
        raise LatePromptError(f"tuner {name!r} finds none of {names} above layer {prompt_layer}")
    config.target_modules = chosen


def _fill_in_targets(config: Any, kind: type[BaseTuner], core: Any) -> None:
    """Where PEFT has no default for the architecture, take the one of the family's table."""
    known = getattr(kind, "target_module_mapping", None) or {}
    if issubclass(kind, LayerTuner) or getattr(config, "target_modules", None) or core.config.model_type in known:
        return
    names = default_targets(kind, core)
    if names:
        config.target_modules = targets_in(core, names, None)


def default_targets(kind: type[BaseTuner], core: Any) -> list[str]:
    """What a method of PEFT's wraps where no target modules are named: PEFT's choice for the architecture.

    Where PEFT has none, the table of families knows the same modules: query and value, or what makes both at once.
    """
    known = getattr(kind, "target_module_mapping", None) or {}
    names = known.get(core.config.model_type)
    if names or set(known.get("bert", ())) != {"query", "value"}:
        return list(names or ())
    projections = family_of(core).projections
    return list(projections if len(projections) == 1 else (*projections[:1], *projections[2:3]))


def targets_in(core: nn.Module, names: Sequence[str] | str, layers: Iterable[int] | None) -> list[str]:
    """Paths of the modules that PEFT's `target_modules` name, in some layers or in the whole backbone.

    Args:
        core: the backbone.
        names: ends of paths, `all-linear`, or (for the whole backbone) a regular expression for whole paths.
        layers: numbers of layers, from 0; None: all, and what lies outside of them.
    """
    paths = [""] if layers is None else Stack.of(core).choose(layers)
    ends = tuple(f".{name}" for name in ([names] if isinstance(names, str) else names))

    def is_chosen(key: str, module: nn.Module) -> bool:
        if names == "all-linear":
            return isinstance(module, (nn.Linear, Conv1D, BaseTunerLayer))
        if isinstance(names, str) and layers is None:
            return re.fullmatch(names, key) is not None
        return f".{key}".endswith(ends)

    return [key for key, module in core.named_modules() if under(key, paths) and is_chosen(key, module)]


def _own_weights(
    core: nn.Module, tuner: Mapping[str, Any], prompt_layer: int, *, late: bool
) -> dict[str, nn.Module | nn.Parameter]:
    unknown = sorted(set(tuner) - {"peft_type"})
    if unknown:
        raise LatePromptError(f"tuner {FULL!r} has no option {unknown[0]!r}; leave it out")
    parameters = trained_weights(core, prompt_layer, late=late)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return dict(parameters)


def trained_weights(core: nn.Module, prompt_layer: int, *, late: bool) -> dict[str, nn.Parameter]:
    """The backbone's parameters (late: those of the layers above p and of what follows them), by path."""
    parameters = dict(core.named_parameters())
    if late:
        stack = Stack.of(core)
        family = stack.family
        tail = stack.choose(range(prompt_layer, len(stack.layers)))
        after = [path for path, kind in family.trunk.items() if _is_used(kind, path, core)]
        parameters = {key: p for key, p in parameters.items() if under(key, [*tail, *after])}
    return parameters


def _is_used(kind: Bypass, path: str, core: nn.Module) -> bool:
    """Whether the module that the trunk bypasses is one that the tail applies (a pooler may be missing)."""
    try:
        return core.get_submodule(path) is not None and not path.endswith("pooler")
    except AttributeError:
        return False
