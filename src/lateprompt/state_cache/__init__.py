"""Stored trunk states: computed once per token sequence, shared by epochs, seeds, generators, tasks and later runs."""

from __future__ import annotations

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
