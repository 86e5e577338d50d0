"""What a kept state depends on: the trunk's weights and settings (the store), the token sequence (the row)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
    """A hash of all that the states at `prompt_layer` depend on: architecture, layer, and every weight of the trunk.

    Weights above the prompt layer are not part of it: models that differ only there share their states.
    """
    settings = {k: v for k, v in config.to_dict().items() if k not in _NOT_ARCHITECTURE}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    digest.update(f"layer {prompt_layer}".encode())
    tensors = [*trunk.named_parameters(), *trunk.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
