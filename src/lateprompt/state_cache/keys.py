"""What a cached state depends on: the trunk's weights, settings and code (the store), the token sequence (the row)."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

KEY_BYTES = 16
# Of a configuration, what says nothing about the trunk's computation.
_NOT_ARCHITECTURE = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "torch_dtype",
    "dtype",
    "id2label",
    "label2id",
)
# What of ours computes states: a mended fault there must not be answered from states kept before.
_OUR_CODE = (
    "backbone.families",
    "backbone.kernels.half_matmul",
    "backbone.masks",
    "backbone.packed",
    "backbone.split",
    "data.padding",
)


def row_key(
    token_ids: Sequence[int] | np.ndarray,
    token_type_ids: Sequence[int] | np.ndarray | None = None,
    *,
    last: int | None = None,
) -> bytes:
    """The address of a token sequence: a 128-bit hash of its ids (and token types), all of them attended to.

    With `last`, of the states of so many positions at its end alone.
    """
    digest = hashlib.blake2b(np.asarray(token_ids, dtype="<i4").tobytes(), digest_size=KEY_BYTES)
    if token_type_ids is not None and np.any(np.asarray(token_type_ids)):
        digest.update(b"|types|" + np.asarray(token_type_ids, dtype="<i4").tobytes())
    if last is not None:
        digest.update(f"|last {last}|".encode())
    return digest.digest()


@torch.no_grad()
def trunk_fingerprint(trunk: nn.Module, config: Any, prompt_layer: int) -> str:
    """A hash of all that the states at `prompt_layer` depend on: architecture, layer, code, and the trunk's weights.

    Weights above the prompt layer are not part of it: models that differ only there share their states.
    """
    settings = {k: v for k, v in config.to_dict().items() if k not in _NOT_ARCHITECTURE}
    settings["attention kernel"] = getattr(config, "_attn_implementation", None)  # `to_dict` leaves it out
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    digest.update(f"layer {prompt_layer}".encode())
    digest.update(code_fingerprint(trunk).encode())
    tensors = [*trunk.named_parameters(), *trunk.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def code_fingerprint(trunk: nn.Module) -> str:
    """A hash of the code that computes a trunk: transformers' version, and the source of the modules' classes.

    The version stands for what the classes call in transformers (masks, attention, caches); the source tells a model
    file that was edited, or a class of one's own, from the release. torch is no part of it: its releases differ as
    machines do, in the last bits.
    """
    import transformers

    digest = hashlib.blake2b(f"transformers {transformers.__version__}".encode(), digest_size=16)
    classes = {base for module in trunk.modules() for base in type(module).__mro__}
    names = {base.__module__ for base in classes if base.__module__.partition(".")[0] not in ("builtins", "torch")}
    ours = {importlib.import_module(f"lateprompt.{part}").__name__ for part in _OUR_CODE}
    for name in sorted(names | ours):
        digest.update(f"|{name}|".encode() + _source(name))
    return digest.hexdigest()


def _source(name: str) -> bytes:
    """A module's source, empty where it has none (a class made in a shell)."""
    path = getattr(sys.modules.get(name), "__file__", None)
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""
