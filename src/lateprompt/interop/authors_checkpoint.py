"""Read checkpoints of the authors' code (https://github.com/xyltt/LPT) into a PEFT model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from torch import nn

from lateprompt.backbone.families import core_of, family_of
from lateprompt.peft_method.config import LatePromptConfig
from lateprompt.peft_method.layer import LatePromptLayer
from lateprompt.utils.errors import LatePromptError, first_line
from lateprompt.utils.inputs import check_file

_FIXED_KEY = "prompt_embedding.weight"
_GENERATOR = "prompt_generator."
_PARTS = {"proj_down": "down", "proj_up": "up"}


def load(
    base_model: nn.Module,
    state_dict_or_file: Mapping[str, torch.Tensor] | str | Path,
    *,
    generator: str,
    prompt_layer: int,
    num_prompt_tokens: int,
    bottleneck_dim: int = 128,
) -> PeftModel:
    """Load a checkpoint of the authors' code, with their names of weights, as a PEFT model.

    Backbone weights in the checkpoint go into `base_model`; the generator (`…prompt_generator.proj_down` and
    `proj_up`) or the fixed prompt (`prompt_embedding.weight`) goes into a new adapter. As in the authors' code, a
    decoder's pooling leaves out the last source position (`pool_last_source=False`; lateprompt's own default is to pool
    it). Call a decoder with a `source_mask` that ends with the last source token.

    Args:
        base_model: a model of the checkpoint's architecture, with its LM head.
        state_dict_or_file: tensors by name, or a file: safetensors, or a `.bin` of tensors (read with
            `weights_only=True`).
        generator: fixed (`none` in the authors' code), npg, mppg or appg.
        prompt_layer: p, the number of layers below the prompt.
        num_prompt_tokens: k, the number of prompt vectors.
        bottleneck_dim: m, the generator's inner width.

    Returns:
        The PEFT model, its adapter called `default`.

    Raises:
        LatePromptError: a file of another kind, names that are in neither the model nor the generator, or tensors of a
            wrong shape.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt.interop import authors_checkpoint
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> checkpoint = {"prompt_embedding.weight": torch.zeros(3, 16)}  # or a file
        >>> model = authors_checkpoint.load(base, checkpoint, generator="fixed", prompt_layer=2, num_prompt_tokens=3)
        >>> model(input_ids=torch.tensor([[2, 7, 9, 3]])).logits.shape
        torch.Size([1, 4, 100])
    """
    weights = dict(_read(state_dict_or_file))
    generator = "fixed" if generator.lower() == "none" else generator.lower()
    adapter = {name: weights.pop(name) for name in list(weights) if name.endswith(_FIXED_KEY) or _GENERATOR in name}
    if not adapter:
        raise LatePromptError(
            f"the checkpoint has neither {_FIXED_KEY!r} nor '…{_GENERATOR}proj_down' among its {len(weights)} tensors; "
            "it is no late-prompt checkpoint of the authors' code"
        )
    _load_base(base_model, weights)
    causal = family_of(core_of(base_model)).causal
    config = LatePromptConfig(
        prompt_layer=prompt_layer,
        num_prompt_tokens=num_prompt_tokens,
        generator=generator,
        bottleneck_dim=bottleneck_dim,
        pool_last_source=not causal,
        task_type=TaskType.CAUSAL_LM if causal else None,
    )
    model = get_peft_model(base_model, config)
    layer = next(m for m in model.modules() if isinstance(m, LatePromptLayer))
    target = layer.late_prompt_generators["default"]
    try:
        target.load_state_dict({_own_name(name): tensor for name, tensor in adapter.items()})
    except RuntimeError as error:
        raise LatePromptError(
            f"the checkpoint's generator does not fit generator={generator!r}, num_prompt_tokens={num_prompt_tokens}, "
            f"bottleneck_dim={bottleneck_dim}: {str(error).splitlines()[-1].strip()}"
        ) from None
    return model


def _own_name(name: str) -> str:
    if name.endswith(_FIXED_KEY):
        return "prompt"
    part, _, kind = name.rpartition(_GENERATOR)[2].partition(".")
    return f"{_PARTS.get(part, part)}.{kind}"


def _load_base(base_model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    own = base_model.state_dict()
    known = {name: tensor for name, tensor in weights.items() if name in own}
    for name, tensor in known.items():
        if own[name].shape != tensor.shape:
            raise LatePromptError(
                f"{name!r} has shape {tuple(tensor.shape)} in the checkpoint, {tuple(own[name].shape)} in the model; "
                "give the model the checkpoint was made with"
            )
    foreign = [name for name in weights if name not in own]
    # Buffers of older transformers versions (position_ids, attention biases) carry no weights.
    foreign = [name for name in foreign if not name.endswith(("position_ids", ".attn.bias", ".attn.masked_bias"))]
    if foreign:
        raise LatePromptError(
            f"the checkpoint's {foreign[0]!r} is not in {type(base_model).__name__}; give its own model"
        )
    base_model.load_state_dict(known, strict=False)


def _read(source: Mapping[str, torch.Tensor] | str | Path) -> Mapping[str, torch.Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    check_file(path, "checkpoint")
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a file that is no checkpoint
        raise LatePromptError(
            f"checkpoint {str(path)!r} cannot be read as tensors alone: {first_line(error)}"
        ) from None
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise LatePromptError(f"checkpoint {str(path)!r} holds more than named tensors; save its state dict alone")
    return loaded
