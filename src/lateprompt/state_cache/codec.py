"""How a row of states lies on disk: fp32, bf16, fp16, or int8 with one scale a token."""

from __future__ import annotations

import numpy as np
import torch

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import unknown

DTYPES = ("float32", "bfloat16", "float16", "int8")
_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def token_bytes(dtype: str, width: int) -> int:
    """Bytes of one token's state; int8 rows carry a 4-byte scale a token."""
    return _BYTES[dtype] * width + (4 if dtype == "int8" else 0)


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise LatePromptError(unknown("states dtype", dtype, ("auto", *DTYPES)))


def encode(states: torch.Tensor, dtype: str) -> bytes:
    """The bytes of states (length, hidden)."""
    if dtype == "int8":
        wide = states.float()
        scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
        codes = (wide / scale).round().to(torch.int8)
        return scale.cpu().numpy().astype("<f4").tobytes() + codes.cpu().numpy().tobytes()
    return states.to(_TORCH[dtype]).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def empty(batch: int, length: int, width: int, dtype: str) -> torch.Tensor:
    """Zeros (batch, length, hidden) of the type that `decode` fills: the stored one, or fp32 for int8."""
    # numpy's zeros: torch would fill them with a team of threads, which in a reader's thread fights the model's own.
    kind = _TORCH.get(dtype, torch.float32)
    zeros = np.zeros((batch, length, width), dtype=np.float32 if kind == torch.float32 else np.int16)
    return torch.from_numpy(zeros).view(kind)


def bits_of(states: torch.Tensor) -> np.ndarray:
    """What `empty` made, as numpy's array on the same memory for `decode` to fill."""
    # numpy has no bfloat16: whole numbers of the same size carry the bits over.
    return states.view(torch.int16).numpy() if states.element_size() == 2 else states.numpy()


def decode(raw: np.ndarray, out: np.ndarray, dtype: str) -> None:
    """Fill `out` (length, hidden), a part of `bits_of` what `empty` made, from a row's bytes."""
    length, width = out.shape
    if dtype == "int8":
        scale = raw[: 4 * length].copy().view("<f4").reshape(length, 1)
        np.multiply(raw[4 * length :].view(np.int8).reshape(length, width), scale, out=out)
        return
    out[...] = raw.view(out.dtype).reshape(length, width)
