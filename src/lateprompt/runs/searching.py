"""A search as a run sees it: Optuna, which is an extra, and all of the search are imported when one is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lateprompt.runs.data import Rows
from lateprompt.search.settings import SearchSettings
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

if TYPE_CHECKING:
    from lateprompt.search.searching import Found


def find_settings(
    model: ModelSettings,
    rows: Rows,
    recipe: RecipeSettings,
    states: StatesSettings,
    search: SearchSettings,
    *,
    weights: np.ndarray | None = None,
    prepare: Callable[[], Path | None] = lambda: None,
    quiet: bool = True,
) -> Found:
    """Search the settings that are auto, for the rows of a run; arguments and errors as `search`.

    Args:
        model, rows, recipe, states, search: as there.
        weights: (training rows,) factors of their losses, or None.
        prepare: called before anything is tried; gives the folder of checkpoints.
        quiet: no progress bar.
    """
    from lateprompt.search.searching import Search

    began = time.perf_counter()
    own = Search(model, rows.task, rows.train, rows.dev, recipe, search, weights=weights, started=began)
    return own.run(states, folder=prepare(), quiet=quiet)
