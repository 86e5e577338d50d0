"""Kept trunk states: computed once per token sequence, shared by epochs, seeds, generators, tasks and later runs."""

from __future__ import annotations

from lateprompt.states.locking import CannotKeep
from lateprompt.states.manage import list_stores, prune, prune_stores, stores_in, verify_store, verify_stores
from lateprompt.states.store import TrunkStates, fill_stores

__all__ = [
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
