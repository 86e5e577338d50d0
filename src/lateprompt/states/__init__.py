"""Kept trunk states: computed once per token sequence, shared by epochs, seeds, generators, tasks and later runs."""

from __future__ import annotations

from lateprompt.states.manage import list_stores, prune, stores_in, verify_store
from lateprompt.states.store import TrunkStates, fill_stores

__all__ = ["TrunkStates", "fill_stores", "list_stores", "prune", "stores_in", "verify_store"]
