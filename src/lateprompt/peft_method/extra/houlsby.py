"""Adapters (Houlsby et al., ICML 2019, https://proceedings.mlr.press/v97/houlsby19a.html): a bottleneck twice a layer.

After a layer's attention output projection, and after its feed-forward output projection, before dropout, the residual
sum and the norm: y = h + up(act(down(h))), where h is what the projection gives, down maps its width d to m and up
maps m to d, each with a bias. `up` starts at zero (the paper: near zero), so the model is unchanged at the start.
AdapterDrop (Rücklé et al., EMNLP 2021, https://aclanthology.org/2021.emnlp-main.626) is the same without adapters in
the first n layers: `drop_layers=n`.

Trained parameters: 2 (2 d m + m + d) a layer: 24 · 2 · (2 · 1024 · 64 + 64 + 1024) = 6,343,680 for RoBERTa-large with
m = 64. The paper trains the norms as well: name them in `modules_to_save`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from lateprompt.peft_method.adapter_files import check_weights
from lateprompt.peft_method.extra.base import LayerTuner, LayerTunerConfig, PeftName, Stack, register
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.validation import Count, Rate, check_types

PEFT_TYPE = PeftName("HOULSBY_ADAPTER")
_NO_MERGE = (
    "an adapter cannot be merged: it is a non-linear map behind a projection, not a change of its weights; "
    "use unload() to get the base model back"
)


@dataclass
class AdapterConfig(LayerTunerConfig):
    """Adapters (Houlsby et al., ICML 2019), AdapterDrop (Rücklé et al., EMNLP 2021) with `drop_layers`.

    Args:
        target_modules: names of linear modules (the ends of their paths) behind which adapters go, or a regular
            expression for whole paths; None: the family's (`lateprompt.backbone.families.Family.adapters`).
        layers_to_transform: layers of the backbone, counted from 0, that get adapters; None: all.
        modules_to_save: modules of the model that are trained and saved besides (PEFT's own option).
        bottleneck_dim: m, the adapter's inner width.
        activation: the non-linearity, by transformers' name.
        init_std: standard deviation of the truncated normal that `down` starts from.
        dropout: dropout rate after the non-linearity.
        drop_layers: n, the number of layers from the first one that get none; not together with layers_to_transform.

    Raises:
        LatePromptError: a size below 1, an unknown activation, a rate outside 0..1, or both choices of layers.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import AdapterConfig
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, AdapterConfig(bottleneck_dim=4, drop_layers=2))
        >>> model.get_nb_trainable_parameters()[0]  # 2 layers, 2 adapters each: 2 · 2 · (2 · 16 · 4 + 4 + 16)
        592
    """

    bottleneck_dim: Count = field(default=64, metadata={"help": "inner width of an adapter"})
    activation: str = field(default="gelu", metadata={"help": "non-linearity, by transformers' name"})
    init_std: Annotated[float, Gt(0)] = field(
        default=1e-2, metadata={"help": "standard deviation of the down projection's start"}
    )
    dropout: Rate = field(default=0.0, metadata={"help": "dropout after the non-linearity"})
    drop_layers: Annotated[int, Ge(0)] = field(default=0, metadata={"help": "number of first layers without adapters"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        check_types(self, ("bottleneck_dim", "activation", "init_std", "dropout", "drop_layers"))
        if self.activation not in ACT2FN:
            raise LatePromptError(
                f"activation {self.activation!r} is unknown; choose one of {', '.join(sorted(ACT2FN))}"
            )
        if self.drop_layers and self.layers_to_transform is not None:
            raise LatePromptError("drop_layers and layers_to_transform both choose layers; give one of them")


def _width(module: Any) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A projection, and adapters behind it. Several active ones all read the projection and are added up."""

    adapter_layer_names = ("houlsby_down", "houlsby_up")
    other_param_names = ("houlsby_activation",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.houlsby_down = nn.ModuleDict()
        self.houlsby_up = nn.ModuleDict()
        self.houlsby_activation = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.register_load_state_dict_pre_hook(check_weights)  # type: ignore[no-untyped-call]

    def update_layer(self, name: str, config: AdapterConfig) -> None:
        width, inner = _width(self.get_base_layer()), config.bottleneck_dim
        down, up = nn.Linear(width, inner), nn.Linear(inner, width)
        nn.init.trunc_normal_(down.weight, std=config.init_std, a=-2 * config.init_std, b=2 * config.init_std)
        for weight in (down.bias, up.weight, up.bias):
            nn.init.zeros_(weight)
        activation = nn.Sequential(ACT2FN[config.activation], nn.Dropout(config.dropout))
        self.houlsby_down[name], self.houlsby_up[name] = down, up
        self.houlsby_activation[name] = activation.train(self.training)
        self._move_adapter_to_device_of_base_layer(name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return hidden
        result = hidden
        for name in self.active_adapters:
            if name in self.houlsby_down:
                down: Any = self.houlsby_down[name]
                dtype = next((p.dtype for p in down.parameters()), torch.float32)  # quantised by torch: it takes floats
                inner = self.houlsby_activation[name](down(hidden.to(dtype)))
                result = result + self.houlsby_up[name](inner).to(hidden.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise LatePromptError(_NO_MERGE)

    def unmerge(self) -> None:
        raise LatePromptError(_NO_MERGE)


class AdapterModel(LayerTuner):
    """Adapters as a PEFT method; made by `peft.get_peft_model(model, AdapterConfig(...))`."""

    prefix = "houlsby_"
    tuner_layer_cls = AdapterLayer
    wraps = "linear and Conv1D modules"

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        return isinstance(module, (nn.Linear, Conv1D))

    def layers_of(self, config: AdapterConfig, stack: Stack) -> list[str] | None:
        if not config.drop_layers:
            return super().layers_of(config, stack)
        total = len(stack.layers)
        if config.drop_layers >= total:
            raise LatePromptError(
                f"drop_layers {config.drop_layers} leaves none of the backbone's {total} layers an adapter"
            )
        return stack.choose(range(config.drop_layers, total))

    def _layers_if_asked(self, config: Any, model: nn.Module) -> list[str] | None:
        return (
            self.layers_of(config, Stack.of(model)) if config.drop_layers else super()._layers_if_asked(config, model)
        )

    def default_targets(self, candidates: set[str], stack: Stack, layers: list[str] | None) -> set[str]:
        if not stack.family.adapters:
            raise LatePromptError(
                "the architecture's family says no places for adapters (Family.adapters); give target_modules"
            )
        targets = {
            f"{layer}.{path}"
            for layer in (stack.choose(None) if layers is None else layers)
            for path in stack.family.adapters
        }
        missing = sorted(targets - candidates)
        if missing:
            raise LatePromptError(f"the model has no {self.wraps} at {missing}, where its family's adapters go")
        return targets


register(PEFT_TYPE, AdapterConfig, AdapterModel)
