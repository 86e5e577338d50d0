"""What BitFit and adapters share: which modules of a model they wrap, by layer of its backbone."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lateprompt.backbone.families import Family, core_of, family_of, num_layers_of
from lateprompt.peft_method.adapter_files import CheckedConfig
from lateprompt.utils.errors import LatePromptError


class PeftName(str):
    """A method's name where PEFT has an entry of its enum: a text with a `value`, which PEFT and transformers read."""

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class LayerTunerConfig(CheckedConfig):
    """What is wrapped.

    Args:
        target_modules: names of modules (the ends of their paths), or a regular expression for whole paths; None: the
            method's own choice for the architecture.
        layers_to_transform: layers of the backbone, counted from 0, to which the tuner keeps; None: all, and what the
            method wraps outside the layers.
        modules_to_save: modules of the model that are trained and saved besides (PEFT's own option).
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to wrap; None: by family"})
    layers_to_transform: list[int] | None = field(default=None, metadata={"help": "layers from 0; None: all"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved besides"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        names, layers = self.target_modules, self.layers_to_transform
        known = isinstance(names, (list, tuple, set)) and all(isinstance(name, str) for name in names)
        if names is not None and not known and not isinstance(names, str):
            raise LatePromptError(f"target_modules {names!r} is no list of names; give one, or a regular expression")
        if isinstance(names, str):
            try:
                re.compile(names)
            except re.error as error:
                raise LatePromptError(
                    f"target_modules {names!r} is no regular expression ({error}); mend it, or give a list of names"
                ) from None
        if isinstance(layers, int) and not isinstance(layers, bool):
            self.layers_to_transform = layers = [layers]
        if layers is not None and not isinstance(layers, (list, tuple, set, range)):
            raise LatePromptError(f"layers_to_transform {layers!r} is no list of layers; give one, or None for all")
        if layers is not None and not layers:
            raise LatePromptError(f"layers_to_transform {layers!r} has no layer; give some, or None for all")
        if self.target_modules is not None and not self.target_modules:
            raise LatePromptError(
                f"target_modules {self.target_modules!r} has no module; give some, or None for the default"
            )


@dataclass(frozen=True)
class Stack:
    """Where a backbone lies in a model.

    Args:
        root: path of the backbone ('' where the model is one).
        layers: path of every layer; layers that share their weights (ALBERT) share a path.
        family: the backbone's family.
    """

    root: str
    layers: list[str]
    family: Family

    @classmethod
    def of(cls, model: nn.Module) -> Stack:
        core = core_of(model)
        family = family_of(core)
        root = next(name for name, module in model.named_modules() if module is core)
        names = list(core.get_submodule(family.layers)._modules)
        total = num_layers_of(core)
        path = join(root, family.layers)
        return cls(root, [f"{path}.{names[int(i / (total / len(names)))]}" for i in range(total)], family)

    def choose(self, layers: Iterable[int] | None) -> list[str]:
        """Paths of the layers with these numbers, each once.

        Raises:
            LatePromptError: a number out of range, or a layer whose weights another, not chosen one runs too.
        """
        if layers is None:
            return list(dict.fromkeys(self.layers))
        chosen, total = set(layers), len(self.layers)
        wrong = [i for i in layers if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < total]
        if wrong:
            raise LatePromptError(
                f"layer {wrong[0]!r} is out of range: the backbone has {total} layers, 0..{total - 1}"
            )
        paths = {self.layers[i] for i in chosen}
        shared = [i for i, path in enumerate(self.layers) if path in paths and i not in chosen]
        if shared:
            raise LatePromptError(
                f"layers {sorted(chosen)} share their weights with layers {shared}, which would change too; "
                "choose whole groups of shared layers"
            )
        return [path for path in dict.fromkeys(self.layers) if path in paths]


class LayerTuner(BaseTuner):
    """A PEFT method that wraps single modules. Subclasses say which ones they can wrap, and which by default."""

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's mean of several adapters: there is none here."""
        raise LatePromptError(
            f"add_weighted_adapter is for LoRA: {type(self).__name__} has no mean of several adapters; activate them "
            "together to add them up, base_model.set_adapter([name, other])"
        )

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's own class attribute)
    wraps: str
    """What `accepts` takes, for error messages."""

    @staticmethod
    @abstractmethod
    def accepts(module: nn.Module) -> bool:
        """Whether this method can wrap `module`."""

    @abstractmethod
    def default_targets(self, candidates: set[str], stack: Stack, layers: list[str] | None) -> set[str]:
        """Which of the candidates' paths are wrapped where no target modules are named (None: all layers)."""

    def layers_of(self, config: Any, stack: Stack) -> list[str] | None:
        """Paths of the layers that a configuration keeps to; None: it does not ask for any in particular."""
        return None if config.layers_to_transform is None else stack.choose(config.layers_to_transform)

    def _candidates(
        self, config: Any, model: nn.Module, accepts: Callable[[nn.Module], bool] | None = None
    ) -> set[str]:
        """Paths of what can be wrapped: nothing inside a wrapped module or one that `modules_to_save` copies."""
        accepts = accepts or self.accepts
        found: set[str] = set()
        closed: list[str] = []
        for key, module in model.named_modules():
            if any(key.startswith(f"{path}.") for path in closed):
                continue
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                closed.append(key)
            saved = any(re.match(rf"(^|.*\.){name}($|\..*)", key) for name in config.modules_to_save or ())
            inner = module.get_base_layer() if isinstance(module, self.tuner_layer_cls) else module
            if not saved and accepts(inner):
                found.add(key)
        return found

    def _find_targets(self, config: Any, model: nn.Module) -> set[str]:
        candidates = self._candidates(config, model)
        names = config.target_modules
        if names is None:
            stack = Stack.of(model)
            targets = self.default_targets(candidates, stack, self.layers_of(config, stack))
        else:
            targets = self._named(names, candidates)
            layers = self._layers_if_asked(config, model)
            if layers is not None:
                targets = {key for key in targets if under(key, layers)}
        if not targets:
            raise LatePromptError(
                f"nothing to wrap: looked for {self.wraps}, target_modules {names!r}, layers_to_transform "
                f"{config.layers_to_transform!r} in {type(model).__name__}"
            )
        return targets

    def _layers_if_asked(self, config: Any, model: nn.Module) -> list[str] | None:
        """As `layers_of`, without asking for the model's family where no layers are named."""
        return None if config.layers_to_transform is None else self.layers_of(config, Stack.of(model))

    def _named(self, names: list[str] | str, candidates: set[str]) -> set[str]:
        if isinstance(names, str):
            return {key for key in candidates if re.fullmatch(names, key)}
        matches = {name: {key for key in candidates if key == name or key.endswith(f".{name}")} for name in names}
        missing = sorted(name for name, found in matches.items() if not found)
        if missing:
            raise LatePromptError(
                f"target_modules {missing} not found in the model: looked for {self.wraps} by these names"
            )
        return set().union(*matches.values())

    # -- PEFT's hooks ------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config  # targets are found in the model: PEFT's table of architectures is not asked

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        others = {type(m).__name__ for m in model.modules() if isinstance(m, BaseTunerLayer)}
        others.discard(self.tuner_layer_cls.__name__)
        if others:
            raise LatePromptError(
                f"the model already has {', '.join(sorted(others))}, and what these wrap cannot be wrapped by "
                f"{type(self).__name__}; put it on the model first, and unload() what is above it"
            )
        self._targets = self._find_targets(peft_config, model)

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # type: ignore[override]
        return key in self._targets

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer: Any = target
        if not isinstance(target, self.tuner_layer_cls):
            layer = self.tuner_layer_cls(target)  # type: ignore[call-arg]
            layer.train(target.training)
        layer.update_layer(adapter_name, peft_config)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:  # PEFT would pass over it in silence
            raise LatePromptError(
                f"{type(self).__name__} takes no adapter_names: all rows of a call have the same adapters"
            )
        yield

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for module in self.model.modules():  # a late prompt above has its own switch
            if isinstance(module, (self.tuner_layer_cls, AuxiliaryTrainingWrapper)):
                module.enable_adapters(enabled)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # PEFT would take the weights of every method's layers: a late prompt above has a file of its own.
        marks = tuple(f".{table}.{adapter_name}" for table in cls.tuner_layer_cls.adapter_layer_names)
        return {k: v for k, v in state_dict.items() if any(f"{mark}." in f"{k}." for mark in marks)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # A late prompt above puts its wrapper on the way: the key is the same with and without it.
        return super()._remove_adapter_name_from_key(key, adapter_name).replace(".base_layer.", ".")


def join(root: str, path: str) -> str:
    """A dotted path below another, which may be ''."""
    return f"{root}.{path}" if root else path


def under(key: str, paths: Iterable[str]) -> bool:
    """Whether the module at `key` is one of those at `paths`, or lies in one ('' has all)."""
    return any(not path or key == path or key.startswith(f"{path}.") for path in paths)


def register(peft_type: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Enter a method into PEFT's tables (its enum of methods is closed to third parties)."""
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = tuner.prefix  # type: ignore[index]
