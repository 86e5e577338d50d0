"""Trunk states on disk: computed once for a text, shared by epochs, seeds, tasks and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lateprompt.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lateprompt.state_cache.admin import list_stores, prune, prune_stores, stores_in, verify_store, verify_stores
    from lateprompt.state_cache.locking import CannotCache, CannotKeep
    from lateprompt.state_cache.store import TrunkStates, fill_stores

__all__ = [
    "CannotCache",
    "CannotKeep",
    "TrunkStates",
    "fill_stores",
    "list_stores",
    "prune",
    "prune_stores",
    "stores_in",
    "verify_store",
    "verify_stores",
]

__getattr__ = lazy_names(
    __name__,
    {
        "list_stores": "lateprompt.state_cache.admin",
        "prune": "lateprompt.state_cache.admin",
        "prune_stores": "lateprompt.state_cache.admin",
        "stores_in": "lateprompt.state_cache.admin",
        "verify_store": "lateprompt.state_cache.admin",
        "verify_stores": "lateprompt.state_cache.admin",
        "CannotCache": "lateprompt.state_cache.locking",
        "CannotKeep": "lateprompt.state_cache.locking",
        "TrunkStates": "lateprompt.state_cache.store",
        "fill_stores": "lateprompt.state_cache.store",
    },
)
