"""One KV cache, two views: the trunk's layers and the tail's, whose entries are k prompt positions longer."""

from __future__ import annotations

import copy

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lateprompt.utils.errors import LatePromptError


def cache_views(cache: Cache, prompt_layer: int, num_layers: int) -> tuple[Cache, Cache]:
    """Views of `cache` on layers [0, p) and [p, L); filling them fills the cache.

    The tail's sliding-window layers are replaced by growing ones before anything is stored: a sliding layer forgets
    what left its window, and the prompt at the front would be the first to go.

    Raises:
        LatePromptError: not a dynamic cache (a static one has no room for the prompt).
    """
    if not isinstance(cache, DynamicCache):
        raise LatePromptError(f"past_key_values is a {type(cache).__name__}; a late prompt needs a DynamicCache")
    while len(cache.layers) < num_layers:  # a cache without a config grows its layers lazily
        cache.layers.append(DynamicLayer())
    for i in range(prompt_layer, num_layers):
        layer = cache.layers[i]
        if isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() == 0:
            cache.layers[i] = DynamicLayer()
    trunk, tail = copy.copy(cache), copy.copy(cache)
    trunk.layers, tail.layers = cache.layers[:prompt_layer], cache.layers[prompt_layer:]
    return trunk, tail
