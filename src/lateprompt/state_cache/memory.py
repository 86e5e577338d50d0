"""`TextCache`: what the frozen model computes of texts, in memory, by content."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class CacheInfo:
    """What a `TextCache` has done so far.

    Args:
        hits, misses: texts that were there, and that were not.
        texts: how many are there.
        nbytes: bytes that they take.
        limit_bytes: most that they may take.
    """

    hits: int
    misses: int
    texts: int
    nbytes: int
    limit_bytes: int

    @property
    def hit_rate(self) -> float:
        """The share of texts that were there."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class TextCache:
    """Tensors of texts by `lateprompt.state_cache.keys.row_key`, bounded in bytes; any number of threads may use it.

    Where there is no room, what was used longest ago goes first.

    Args:
        limit_bytes: most bytes of all tensors together.

    Example:
        >>> import torch
        >>> from lateprompt.state_cache.memory import TextCache
        >>> cache = TextCache(limit_bytes=1000)
        >>> cache.put(b"text", (torch.zeros(10, 16),))
        >>> cache.get(b"text")[0].shape, cache.get(b"other") is None
        (torch.Size([10, 16]), True)
        >>> cache.info().hit_rate, cache.info().nbytes
        (0.5, 640)
    """

    def __init__(self, limit_bytes: int) -> None:
        if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int | float) or not limit_bytes >= 0:
            raise LatePromptError(f"cache_bytes {limit_bytes!r} is no number of bytes; give 0 (no cache) or more")
        self.limit_bytes = int(min(limit_bytes, 2**62))
        self._texts: OrderedDict[bytes, tuple[torch.Tensor, ...]] = OrderedDict()
        self._nbytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> tuple[torch.Tensor, ...] | None:
        """The tensors of a text, which nobody may change; None: they are not here."""
        with self._lock:
            found = self._texts.get(key)
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._texts.move_to_end(key)
            return found

    def put(self, key: bytes, tensors: tuple[torch.Tensor, ...]) -> None:
        """Keep the tensors of a text, which must hold no more memory than they show; larger ones than all are not."""
        size = _nbytes(tensors)
        if size > self.limit_bytes:
            return
        with self._lock:
            old = self._texts.pop(key, None)
            self._nbytes += size - (0 if old is None else _nbytes(old))
            self._texts[key] = tensors
            while self._nbytes > self.limit_bytes:
                _, gone = self._texts.popitem(last=False)
                self._nbytes -= _nbytes(gone)

    def clear(self) -> None:
        """Forget all texts."""
        with self._lock:
            self._texts.clear()
            self._nbytes = 0

    def info(self) -> CacheInfo:
        """Hits, misses and sizes."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._texts), self._nbytes, self.limit_bytes)


def _nbytes(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
