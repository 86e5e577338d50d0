"""BitFit (Ben Zaken, Goldberg, Ravfogel, ACL 2022, https://aclanthology.org/2022.acl-short.1): only biases are trained.

Every bias b of the backbone becomes b + δ with a trained δ, zero at the start: y = W x + b + δ for a linear map and
g · norm(x) + b + δ for a layer norm. b itself stays as it is, so adapters can be changed, disabled and taken out
exactly.

Trained parameters: Σ |b| over the wrapped modules. In BERT's layers, of width d and inner width f, that is 7 d + f a
layer (query, key, value, two outputs, two norms: d each; the inner map: f), and d for the embeddings' norm and d for
the pooler, where there is one: 24 · (7 · 1024 + 4096) + 1024 = 271,360 for RoBERTa-large's encoder.

Where the chosen layers have no bias at all (Llama, Gemma, Phi-3, ModernBERT, …) every linear map in them gets one that
starts at 0, which is not in the paper: Σ of their output widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lateprompt.peft_method.adapter_files import check_weights
from lateprompt.peft_method.extra.base import LayerTuner, LayerTunerConfig, PeftName, Stack, register, under
from lateprompt.utils.errors import LatePromptError

PEFT_TYPE = PeftName("BITFIT")
_NO_BIAS = (
    "BitFit cannot be merged here: the architecture has no biases, so a saved model would lose the merged ones; keep "
    "the adapter, or use unload() to get the base model back"
)


@dataclass
class BitFitConfig(LayerTunerConfig):
    """BitFit (Ben Zaken et al., ACL 2022).

    Args:
        target_modules: names of modules with a bias (the ends of their paths), or a regular expression for whole paths;
            None: every one of the backbone, its embeddings and pooler included, its head not; if there is no bias at
            all, the linear maps of the layers.
        layers_to_transform: layers of the backbone, counted from 0, to which the tuner keeps; None: all, and what lies
            outside the layers.
        modules_to_save: modules of the model that are trained and saved besides (PEFT's own option).

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import BitFitConfig
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, BitFitConfig(layers_to_transform=[2, 3]))
        >>> model.get_nb_trainable_parameters()[0]  # 2 layers of 7 · 16 + 32 biases
        288
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


def is_linear(module: nn.Module) -> bool:
    """Whether BitFit can give the module a bias that it lacks."""
    return isinstance(module, nn.Linear)


def _linear(module: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(x, module.weight, bias)


def _transposed(module: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.addmm(bias, x.view(-1, x.size(-1)), module.weight).view(*x.shape[:-1], module.nf)


def _layer_norm(module: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight, bias, module.eps)


def _convolution(module: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = module._conv_forward(x, module.weight, bias)
    return result


_FORWARDS: dict[Any, Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    nn.Linear.forward: _linear,
    Conv1D.forward: _transposed,
    nn.LayerNorm.forward: _layer_norm,
    nn.Conv1d.forward: _convolution,
}
"""A class's `forward` with another bias: one sum of the size of the bias, none of the activations'."""


def _direct(module: nn.Module) -> Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """The module's entry in the table, None where a call does more than its class says: hooks, offloaded weights."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return None if hooked else _FORWARDS.get(type(module).forward)


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A module with a bias, and differences to it by adapter. Several active adapters' differences are added up."""

    adapter_layer_names = ("bitfit_delta",)
    other_param_names = ()
    _frozen_bias: torch.Tensor | None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_delta = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self.register_load_state_dict_pre_hook(check_weights)  # type: ignore[no-untyped-call]
        # What merging replaced: taking a difference off again would not give the same bits.
        self.register_buffer("_frozen_bias", None, persistent=False)

    def update_layer(self, name: str, config: BitFitConfig) -> None:
        self.bitfit_delta[name] = nn.Parameter(torch.zeros_like(self._base_bias))
        self._move_adapter_to_device_of_base_layer(name)

    @property
    def _base_bias(self) -> torch.Tensor:
        base: Any = self.get_base_layer()
        bias: torch.Tensor | None = base.bias
        if bias is not None:
            return bias
        # Quantised weights are whole numbers: a difference is none.
        dtype = base.weight.dtype if base.weight.is_floating_point() else torch.get_default_dtype()
        return torch.zeros(base.out_features, device=base.weight.device, dtype=dtype)

    def _sum(self, bias: torch.Tensor, names: list[str]) -> torch.Tensor:
        total = bias
        for name in names:
            total = total + self.bitfit_delta[name]
        return total.to(bias.dtype)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self._own(self.active_adapters)
        base: Any = self.base_layer
        if not names:
            return base(x, *args, **kwargs)  # type: ignore[no-any-return]
        run = _direct(base)
        if run is not None and not args and not kwargs:
            return run(base, x, self._sum(self._base_bias, names))
        y: torch.Tensor = base(x, *args, **kwargs)
        delta = self._sum(torch.zeros_like(self.bitfit_delta[names[0]]), names)
        if isinstance(base, nn.Conv1d):
            delta = delta[:, None]
        return y + delta.to(y.dtype)

    def _own(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.bitfit_delta]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the active (or the named) adapters' differences into the module's own bias.

        Raises:
            LatePromptError: a module without a bias; with `safe_merge`, a bias that is not finite.
        """
        names = self._own(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        if not BitFitModel.accepts(self.get_base_layer()):
            raise LatePromptError(_NO_BIAS)
        frozen = self._base_bias.detach().clone() if self._frozen_bias is None else self._frozen_bias
        with torch.no_grad():
            merged = self._sum(frozen, [*self.merged_adapters, *names])
            if safe_merge and not bool(torch.isfinite(merged).all()):
                raise LatePromptError(f"adapters {names} have values that are not finite, so they were not merged")
            self._base_bias.copy_(merged)
        self._frozen_bias = frozen
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Give the module its own bias back, bit by bit."""
        if self._frozen_bias is None:
            return
        with torch.no_grad():
            self._base_bias.copy_(self._frozen_bias)
        self._frozen_bias = None
        self.merged_adapters.clear()


class BitFitModel(LayerTuner):
    """BitFit as a PEFT method; made by `peft.get_peft_model(model, BitFitConfig(...))`."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer
    wraps = "linear, Conv1D, convolution and LayerNorm modules with a bias"

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        known = isinstance(module, (nn.Linear, Conv1D, nn.LayerNorm)) or type(module) is nn.Conv1d
        return known and getattr(module, "bias", None) is not None

    def default_targets(self, candidates: set[str], stack: Stack, layers: list[str] | None) -> set[str]:
        return {key for key in candidates if under(key, [stack.root] if layers is None else layers)}

    def _find_targets(self, config: Any, model: nn.Module) -> set[str]:
        if config.target_modules is None:
            stack = Stack.of(model)
            layers = self.layers_of(config, stack)
            if not self.default_targets(self._candidates(config, model), stack, layers):
                places = stack.choose(None) if layers is None else layers
                return {key for key in self._candidates(config, model, is_linear) if under(key, places)}
        return super()._find_targets(config, model)

    def _check_merge_allowed(self) -> None:
        if any(isinstance(m, BitFitLayer) and not self.accepts(m.get_base_layer()) for m in self.model.modules()):
            raise LatePromptError(_NO_BIAS)
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]


register(PEFT_TYPE, BitFitConfig, BitFitModel)
