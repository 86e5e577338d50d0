"""Pad token sequences of different lengths into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def pad(
    sequences: Sequence[Any], value: int = 0, *, left: bool = False, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences of integers into one tensor (batch, width), and make its mask (batch, width), both int64.

    Args:
        sequences: lists or arrays of token ids.
        value: the token id of padding.
        left: pad on the left instead of the right.
        width: the length to pad to; None: that of the longest sequence.

    Example:
        >>> ids, mask = pad([[5, 6, 7], [5]], value=1)
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [5, 1, 1]], [[1, 1, 1], [1, 0, 0]])
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    longest = int(lengths.max(initial=0)) if width is None else width
    places = np.arange(longest)
    mask = places >= longest - lengths[:, None] if left else places < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int64)
    if lengths.any():
        ids[mask] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
