"""Token sequences of different lengths to one tensor and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def pad(
    sequences: Sequence[Any], value: int = 0, *, left: bool = False, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (each of integers) as a tensor (batch, longest), filled up with `value`, and its mask, both int64.

    Args:
        sequences: lists or arrays of token ids.
        value: what stands where there is no token.
        left: whether they end together instead of beginning together.
        width: a length to fill up to, if not that of the longest.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    longest = int(lengths.max(initial=0)) if width is None else width
    places = np.arange(longest)
    mask = places >= longest - lengths[:, None] if left else places < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int64)
    if lengths.any():
        ids[mask] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
