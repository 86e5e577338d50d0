"""What a base model's weights are, in one short text."""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from torch import nn

from lateprompt.utils.errors import LatePromptError

_CHUNK = 1 << 26
"""Elements that are hashed at a time."""


def model_fingerprint(model: nn.Module) -> str | None:
    """Names, shapes, types and contents of a model's parameters as one hash; None where some are not in memory.

    Example:
        >>> model_fingerprint(nn.Linear(2, 2, device="meta")) is None
        True
    """
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta or (not parameter.numel() and parameter.shape):
            return None
        digest.update(json.dumps([name, list(parameter.shape), str(parameter.dtype)]).encode())
        flat = parameter.detach().reshape(-1)
        for part in flat.split(_CHUNK):
            digest.update(memoryview(part.cpu().contiguous().view(torch.uint8).numpy()))
    return f"xxh3_128:{digest.hexdigest()}"


def check_fingerprint(saved: Any, found: str | None, *, model: str, run_file: str) -> None:
    """Refuse another base model than a run was trained on.

    Args:
        saved: the fingerprint in the run file; None in those of earlier versions.
        found: that of the model that was loaded; None where it is not known.
        model: its folder or hub id.
        run_file: the run file.

    Raises:
        LatePromptError: they differ.
    """
    if saved is None or found is None or saved == found:
        return
    raise LatePromptError(
        f"model {model!r} has other weights than the one that this run was trained on: its fingerprint is {found}, "
        f"run file {run_file!r} has {saved}; give the model it was trained on (--model), or take this one all the same "
        "with --ignore-fingerprint (in Python: check_model=False)"
    )
