"""What PEFT loads of an adapter, checked before PEFT reads it: its folder, and each weight's shape and values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, tensor_names


class CheckedConfig(PeftConfig):
    """A PEFT configuration of ours: the local folder that it is loaded from is looked at first."""

    @classmethod
    def from_pretrained(  # type: ignore[no-untyped-def]
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ):
        """PEFT's, which would wait for a pipe, and stops with a traceback at what is broken.

        Raises:
            LatePromptError: a local adapter whose configuration or weights cannot be read.
        """
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        if folder.is_dir():
            read_json(folder / CONFIG_NAME, "adapter configuration")
            weights = folder / SAFETENSORS_WEIGHTS_NAME
            if os.path.lexists(weights):  # PEFT reads them next, and a pipe would never end
                tensor_names(weights, "adapter file")
        return super().from_pretrained(str(pretrained_model_name_or_path), subfolder, **kwargs)


def check_weights(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded, by whomever: those of a layer's adapters must be finite, and have their shapes.

    A hook for `register_load_state_dict_pre_hook` of a PEFT layer of ours.

    Raises:
        LatePromptError: weights that are not so.
    """
    marks = tuple(f"{prefix}{table}." for table in getattr(layer, "adapter_layer_names", ()))
    given = {key: value for key, value in state.items() if key.startswith(marks) and isinstance(value, torch.Tensor)}
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters(remove_duplicate=False)} if given else {}
    for key, value in given.items():
        name = key.removeprefix(prefix)
        expected = shapes.get(name, tuple(value.shape))
        if tuple(value.shape) != expected:
            raise LatePromptError(
                f"adapter weights {name!r} have shape {tuple(value.shape)}, and this model and configuration need "
                f"{expected}; give the base model and the {CONFIG_NAME} that they were saved with"
            )
        if not value.is_floating_point() and name in shapes:
            raise LatePromptError(
                f"adapter weights {name!r} are of type {value.dtype}, which is no float type; restore the file"
            )
        if value.is_floating_point() and value.device.type != "meta" and not bool(value.isfinite().all()):
            raise LatePromptError(
                f"adapter weights {name!r} are not finite: the file is damaged, or its training diverged; restore it, "
                "or train again"
            )
