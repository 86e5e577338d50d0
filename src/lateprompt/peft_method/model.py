"""`LatePromptModel`: late prompts as a PEFT method (`get_peft_model`, `PeftModel.from_pretrained`, …)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lateprompt.backbone.call_context import BASE, CallExtras, call_extras, current_extras, first
from lateprompt.backbone.families import core_of, family_of, num_layers_of
from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.peft_method.config import NO_PROMPT, PEFT_TYPE, LatePromptConfig
from lateprompt.peft_method.extra.base import register
from lateprompt.peft_method.generate import GenerationWishes, generate_groups, rows_of_one_cache
from lateprompt.peft_method.guards import check_adapter_name, check_head, forget_failure, transformers_call
from lateprompt.peft_method.headless import HeadlessModel, headless
from lateprompt.peft_method.layer import LatePromptLayer
from lateprompt.utils.errors import LatePromptError

PREFIX = "late_prompt_"
_OURS = ("source_mask", "trunk_states", "anchor", "adapter_names")
_CHECKPOINT_ROOT = "base_model.model."
_NO_MERGE = (
    "a late prompt cannot be merged: it is extra positions made from each instance, not a change of weights; "
    "use unload() to get the base model back"
)


class LatePromptModel(BaseTuner):
    """Wraps the backbone of a Hugging Face model in a `LatePromptLayer`.

    Made by `peft.get_peft_model(model, LatePromptConfig(...))`. The model then takes, besides its own arguments,
    `source_mask` (batch, length), `trunk_states` (batch, length, hidden; or a mapping from layers to such), `anchor`
    (batch,), the position that a prompt stands for, and `adapter_names` (one a row, `__base__` for none). A causal LM's
    `labels` without a `source_mask` make the generator see only what precedes the first label.

    LoRA may lie below (a `PeftModel` as `model`). Save LoRA after `unload()`: while the late prompt is in place PEFT
    would write its weights, and names with the wrapped backbone, into LoRA's file.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import LatePromptConfig, LatePromptModel
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8)).eval()
        >>> isinstance(model.base_model, LatePromptModel)
        True
        >>> model.add_adapter("other", LatePromptConfig(prompt_layer=3, generator="fixed"))
        >>> ids = torch.tensor([[2, 7, 9, 3], [2, 8, 8, 3], [2, 5, 6, 3]])
        >>> model(input_ids=ids, adapter_names=["default", "other", "__base__"]).logits.shape  # one adapter a row
        torch.Size([3, 4, 100])
    """

    prefix = PREFIX
    tuner_layer_cls = LatePromptLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's own class attribute)

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        base = _base_model(model)
        core_of(base)  # an unknown architecture is an error here
        if isinstance(model, peft.PeftModel) and any(isinstance(m, LatePromptLayer) for m in model.modules()):
            raise LatePromptError(
                "this model has a late prompt already; give it another one with model.add_adapter(name, config), "
                "or take the first one away with unload()"
            )
        if base is model and not isinstance(getattr(model, model.base_model_prefix, None), nn.Module):
            if transformers_call():  # it would go on with the bare model, without a late prompt
                forget_failure(model)
                raise LatePromptError(
                    f"{type(model).__name__} is a bare backbone, in which a late prompt cannot be put in place; use "
                    "peft.get_peft_model(model, config) or PeftModel.from_pretrained(model, folder)"
                )
            model = headless(model)
        below = model.peft_config if isinstance(model, peft.PeftModel) else None
        super().__init__(model, *args, **kwargs)
        if below is not None:
            model.peft_config = below  # PEFT has put ours over it

    def __getattr__(self, name: str) -> Any:
        if name == "peft_config":  # not set yet: PEFT must not take the one of LoRA below for ours
            raise AttributeError(name)
        return super().__getattr__(name)

    @property
    def layer(self) -> LatePromptLayer:
        """The wrapped backbone."""
        layer = next((m for m in self.model.modules() if isinstance(m, LatePromptLayer)), None)
        if layer is None:
            raise LatePromptError("this model has no late prompt any more: it was unloaded")
        return layer

    # -- injection ---------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config  # there is no choice of target modules: the backbone is found in the model

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        if peft_config.read_only:
            check_head(_base_model(model))
        existing = [name for name, module in model.named_modules() if isinstance(module, LatePromptLayer)]
        if existing:
            self.__dict__["_backbone_key"] = existing[0]
            core: nn.Module = model.get_submodule(existing[0]).base_layer  # type: ignore[assignment]
        else:
            core = core_of(_base_model(model))
            self.__dict__["_backbone_key"] = next(name for name, module in model.named_modules() if module is core)
        given, found = peft_config.__dict__.get("_resolved", (peft_config.prompt_layer, None))
        if found != peft_config.prompt_layer:  # set anew since, or for the first time
            given = peft_config.prompt_layer
        layer = resolve_prompt_layer(given, num_layers_of(core))
        if found == peft_config.prompt_layer != layer:
            raise LatePromptError(
                f"this config's prompt_layer {given!r} is layer {found} of another model that still uses it, and would "
                f"be layer {layer} here; make a config for each model"
            )
        peft_config.__dict__["_resolved"] = given, layer
        peft_config.prompt_layer = layer

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # type: ignore[override]
        return bool(key == self._backbone_key)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("state_dict", None)  # the backbone is found, not guessed from a checkpoint's keys
        try:
            check_adapter_name(adapter_name, model)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:  # interrupted by Ctrl-C too
            self.peft_config.pop(adapter_name, None)
            forget_failure(model)
            raise
        if callable(getattr(type(self.model), "generate", None)):
            # A PeftModel without a task type calls this one, past our `generate`.
            self.model.generate = self.generate

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
        at_odds = peft_config.tuner is not None or family_of(target).core  # its names would find no place in the model
        if at_odds and transformers_call() == "load_adapter":
            raise LatePromptError(
                "transformers' load_adapter cannot load this late prompt; use peft.PeftModel.from_pretrained(model, "
                "folder)"
            )
        if isinstance(target, LatePromptLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = LatePromptLayer(target)
        layer.training = target.training
        layer.update_layer(adapter_name, peft_config)  # before it is put in place: an error leaves the model alone
        setattr(parent, target_name, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        new_module.train(child.training)
        setattr(parent, child_name, new_module)

    # -- calls -------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with call_extras(self._extras_of(kwargs)):
            return self.model(*args, **{k: v for k, v in kwargs.items() if k not in _OURS})

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`. The prompt is made from the source, and stays while text is generated.

        With a KV cache it is made once; without one it is made again at each step, from the same source. Adapters that
        keep no cache (a prompt at the input, a prefix) go without, unless `use_cache` asks for one. Rows of several
        adapters (`adapter_names`) whose prompts enter after different layers are generated one layer after the other.
        """
        write = partial(type(self.model).generate, self.model)
        own = getattr(self.model, "generation_config", None)
        wanted = GenerationWishes(kwargs, own)
        source = args[0] if args else first(*(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")))
        length = source.shape[1] if isinstance(source, torch.Tensor) and source.ndim > 1 else 1  # 1: it starts a text
        extras = replace(self._extras_of(kwargs), source_length=length)
        if extras.adapter_names is not None:
            names = [name for name in extras.adapter_names for _ in range(wanted.copies)]
            extras = replace(extras, adapter_names=names)
        elif self.layer.selected_adapter() in self.layer.input_prompts:
            kwargs.setdefault("use_cache", False)
        kwargs = {k: v for k, v in kwargs.items() if k not in _OURS}
        if extras.adapter_names is not None or self.layer.selected_adapter() is not None:
            wanted.check()
            kwargs = {**wanted.changes, **kwargs}
        groups = rows_of_one_cache(extras.adapter_names or (), self.layer.slots)
        if isinstance(source, torch.Tensor) and len(groups) > 1:
            if any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.modules()):
                raise LatePromptError(
                    "adapter_names mixes prompt layers and modules_to_save; generate for one layer at a time"
                )
            return generate_groups(write, groups, extras, source, args, kwargs, wanted.pad)
        with call_extras(extras):
            return write(*args, **kwargs)

    def _extras_of(self, kwargs: dict[str, Any]) -> CallExtras:
        outer = current_extras()
        source_mask = kwargs.get("source_mask")
        if source_mask is None:
            source_mask = outer.source_mask if outer.source_mask is not None else self._source_of_labels(kwargs)
        trunk_states, names, anchor = (kwargs.get(name) for name in ("trunk_states", "adapter_names", "anchor"))
        if first(anchor, outer.anchor) is None:
            self._check_labels(kwargs)
        return CallExtras(
            source_mask=source_mask,
            trunk_states=outer.trunk_states if trunk_states is None else trunk_states,
            anchor=outer.anchor if anchor is None else anchor,
            adapter_names=outer.adapter_names if names is None else names,
            source_length=outer.source_length,
        )

    def _check_labels(self, kwargs: dict[str, Any]) -> None:
        """Raise LatePromptError where a masked LM is trained at other positions than a read-only prompt answers at."""
        layer = self.layer
        if layer.family.causal or not (self.training and torch.is_grad_enabled()):
            return
        name = None if self._word_labels(kwargs) is None else layer.selected_adapter()
        if name is not None and layer.slots[name].read_only:
            raise LatePromptError(
                "labels of a masked LM teach a read-only prompt nothing unless it stands where they are: give anchor=, "
                "(batch,), each row's masked position"
            )

    def _word_labels(self, kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The labels of a call if they are words, one a position: those of tokens, say, are not."""
        labels: Any = kwargs.get("labels")
        ids: Any = kwargs.get("input_ids")
        if labels is None or ids is None or labels.shape != ids.shape:
            return None
        return None if _base_model(self.model).get_output_embeddings() is None else labels

    def _source_of_labels(self, kwargs: dict[str, Any]) -> torch.Tensor | None:
        """A causal LM's attended positions before the first label: a generator that reads a label leaks the answer."""
        labels = self._word_labels(kwargs)
        if labels is None or not self.layer.family.causal:
            return None
        before: torch.Tensor = (labels != -100).long().cumsum(1) == 0
        mask = kwargs.get("attention_mask")
        attended = torch.ones_like(before) if mask is None or mask.ndim != 2 else mask.bool()
        source = before & attended
        names = first(kwargs.get("adapter_names"), current_extras().adapter_names)
        used = [self.layer.selected_adapter()] if names is None else set(names)
        configs: list[Any] = [self.peft_config[name] for name in used if name in self.peft_config]
        reads = any(config.generator not in ("fixed", NO_PROMPT) for config in configs)
        has_source = source.any(1, keepdim=True)
        if reads and not bool(has_source.all()):
            warnings.warn(
                "labels start at the first token of a row, so the late prompt's generator has no source there and "
                "reads the labels themselves; pass source_mask=, mask the source's labels with -100, or use "
                "generator='fixed'",
                stacklevel=2,
            )
            source = torch.where(has_source, source, attended)
        return source.to(torch.long)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # A PeftModel without a task type calls the model itself, past our `forward`: the extras are set here for both.
        names = kwargs.get("adapter_names")
        if names is None:
            with call_extras(self._extras_of(kwargs)):
                yield
            return
        if self.training:
            raise LatePromptError(
                "adapter_names are for inference; call model.eval() first, or train one adapter at a time"
            )
        unknown = sorted(set(names) - set(self.peft_config) - {BASE})
        if unknown:
            raise LatePromptError(
                f"adapter_names has {unknown[0]!r}, which is none of {sorted(self.peft_config)} or {BASE!r}"
            )
        handles = [
            module.register_forward_pre_hook(_with_adapter_names, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, AuxiliaryTrainingWrapper)
        ]
        try:
            with call_extras(self._extras_of(kwargs)):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # In place: PEFT puts new parameters there, and the backbone would keep a tail tuner's old ones.
        for layer in (module for module in self.model.modules() if isinstance(module, LatePromptLayer)):
            tuner = layer.tail_tuners.get(adapter_name)
            if not autocast_adapter_dtype or (tuner is not None and tuner.full):
                continue  # the backbone's own weights keep their type
            for table in layer.adapter_layer_names:
                if adapter_name in getattr(layer, table):
                    for parameter in getattr(layer, table)[adapter_name].parameters():
                        if parameter.dtype in (torch.float16, torch.bfloat16):
                            parameter.data = parameter.data.float()

    # -- life cycle --------------------------------------------------------------------------------------------------

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for module in self.model.modules():  # LoRA below has its own switch
            if isinstance(module, (LatePromptLayer, AuxiliaryTrainingWrapper)):
                module.enable_adapters(enabled)

    def _check_merge_allowed(self) -> None:
        raise LatePromptError(_NO_MERGE)

    def unmerge_adapter(self) -> None:
        """PEFT's way back from a merge, which a late prompt never makes."""
        raise LatePromptError(_NO_MERGE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's mean of several LoRA adapters: prompts have none."""
        raise LatePromptError(
            "late prompts cannot be averaged into one: each is made by a generator of its own, and the mean of two "
            "generators' weights is no generator of their mean; choose one adapter a row with adapter_names, or train "
            "one adapter on all of the data"
        )

    def unload(self) -> torch.nn.Module:
        """The base model, without late prompts (with LoRA, if it lies below)."""
        layer = next((m for m in self.model.modules() if isinstance(m, LatePromptLayer)), None)
        self.model.__dict__.pop("generate", None)
        if layer is not None:
            layer.unwrap_tuners()
        if layer is None:
            pass
        elif isinstance(self.model, peft.PeftModel):  # LoRA below: PEFT's own unload would take its configuration away
            parent, _, name = self._backbone_key.rpartition(".")
            setattr(self.model.get_submodule(parent), name, layer.base_layer)
        else:
            super().unload()
        if layer is not None:
            layer.base_layer.train(layer.training)  # the trunk was in eval mode
        model = self.model
        bare: nn.Module = model.backbone if isinstance(model, HeadlessModel) else model
        return bare

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # Other PEFT layers (LoRA below the prompt) save their own: by default all tuner layers' weights would be taken.
        tables = LatePromptLayer.adapter_layer_names
        return {k: v for k, v in state_dict.items() if any(f"{table}.{adapter_name}." in k for table in tables)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """`….bert.late_prompt_generators.NAME.up.weight` → `base_model.model.late_prompt_generators.up.weight`.

        Without the adapter's name and without the way to the backbone: an adapter loads under any head.
        """
        for table in LatePromptLayer.adapter_layer_names:
            _, found, rest = key.partition(f"{table}.{adapter_name}.")
            if found:
                return f"{_CHECKPOINT_ROOT}{table}.{rest}"
        return super()._remove_adapter_name_from_key(key, adapter_name)


def _with_adapter_names(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "adapter_names": current_extras().adapter_names}  # of beams: once for each


def _base_model(model: Any) -> Any:
    """The Hugging Face model inside PEFT wrappers (LoRA first, late prompt on top)."""
    while isinstance(model, (peft.PeftModel, BaseTuner)):
        model = model.get_base_model() if isinstance(model, peft.PeftModel) else model.model
    return model


register(PEFT_TYPE, LatePromptConfig, LatePromptModel)
