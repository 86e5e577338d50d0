"""Give a run's feeds kept trunk states: fill what is missing, then train and evaluate without the trunk."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from lateprompt.backbone.packed import can_branch
from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data.batches import Feed
from lateprompt.readouts import PhraseReadout, Readout
from lateprompt.state_cache import CannotKeep, TrunkStates, fill_stores, prune_stores
from lateprompt.state_cache.feed import StatesFeed as StatesFeed
from lateprompt.state_cache.label_words import PhraseFeed, PhraseStates
from lateprompt.state_cache.settings import FOLDER_VARIABLE as FOLDER_VARIABLE
from lateprompt.state_cache.settings import StatesSettings as StatesSettings
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError

SPARE_BYTES = 1 << 30
"""What a fill leaves free on the disk."""


def fill_layers(
    model: nn.Module,
    readout: Readout,
    feed: Feed,
    layers: Sequence[int | float | str],
    folder: Path,
    dtype: str,
) -> list[TrunkStates]:
    """Keep what training on a feed's rows at some prompt layers will ask for; the stores, one a layer.

    Raises:
        LatePromptError: a layer or dtype that cannot be, or label words of several tokens on an architecture that
            computes the trunk for each of them.
    """
    late = readout.layer
    numbers = dict.fromkeys(resolve_prompt_layer(layer, late.num_layers) for layer in layers)
    stores = [TrunkStates.open(folder, model, number, dtype=dtype) for number in numbers]
    ids, types = [e.input_ids for e in feed.examples], [e.token_type_ids for e in feed.examples]
    with Bar("trunk states", len(ids) * (len(stores) if isinstance(readout, PhraseReadout) else 1)) as bar:
        if not isinstance(readout, PhraseReadout):
            fill_stores(stores, ids, types, progress=bar.advance)
            return stores
        if not can_branch(late):
            raise LatePromptError(
                "label words of several tokens are scored by whole passes here: the architecture has no states to keep"
            )
        for number, store in zip(numbers, stores, strict=True):
            PhraseStates(store, readout, ids).fill(late, number, bar.advance)
    return stores


def keep_states(
    model: nn.Module,
    readout: Readout,
    prompt_layer: int,
    feeds: Sequence[tuple[Feed, np.ndarray]],
    settings: StatesSettings,
    *,
    quiet: bool = True,
) -> tuple[list[Feed], float]:
    """Feeds with kept states, and the seconds that filling took (0.0 if all were there).

    Feeds come back as they were when states are off, when label words of several tokens need the trunk (architectures
    that take no branches), or, which is said, when states would not fit on the disk or into the limit, or are missing
    in a store that cannot be written. What is kept stays readable for these feeds, whoever prunes it meanwhile.

    Args:
        model: the model with the late backbone.
        readout: who will read the batches.
        prompt_layer: p.
        feeds: each with the numbers of its rows that will be read.
        settings: whether and where.
        quiet: no progress bar.
    """
    plain = [feed for feed, _ in feeds]
    folder = settings.folder
    if folder is None or (isinstance(readout, PhraseReadout) and not can_branch(readout.layer)):
        return plain, 0.0
    started = time.perf_counter()
    limit = settings.states_limit_gb * 1e9
    try:
        store = TrunkStates.open(folder, model, prompt_layer, dtype=settings.states_dtype)
        wanted = _Wanted(store, readout, feeds)
        missing = wanted.missing()
        if len(missing) and not wanted.fits(missing, limit):
            raise CannotKeep(
                f"trunk states of {wanted.bytes / 1e9:.1f} GB do not fit ({settings.states_limit_gb:g} GB allowed in "
                f"{str(folder)!r}, or its disk is full); raise --states-limit-gb or choose --states-dtype int8"
            )
        numbers = wanted.fill(prompt_layer, quiet=quiet or not len(missing))
    except CannotKeep as reason:
        warnings.warn(f"{reason}; until then the trunk is computed at each step", stacklevel=2)
        return plain, 0.0
    seconds = time.perf_counter() - started if len(missing) else 0.0
    if len(missing):
        with contextlib.suppress(LatePromptError):  # a folder that may be written, but not listed
            prune_stores(folder, limit, keep=store.hold(numbers[numbers >= 0]))
    kept: list[Feed] = []
    start = 0
    for feed, rows in feeds:
        own = np.full((len(feed), numbers.shape[1]), -1, dtype=np.int64)
        own[rows] = numbers[start : start + len(rows)]
        start += len(rows)
        kept.append(wanted.feed(feed, own))
    return kept, seconds


def _free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder that need not exist, and may be removed at any time."""
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(FileNotFoundError):
            return shutil.disk_usage(place).free
    return 0


class _Wanted:
    """The states that some feeds ask of a store: the sources, and behind each the label words of several tokens.

    Args:
        store: the store.
        readout: who will read the batches.
        feeds: each with the numbers of its rows that will be read.
    """

    def __init__(self, store: TrunkStates, readout: Readout, feeds: Sequence[tuple[Feed, np.ndarray]]) -> None:
        self.store = store
        self.readout = readout
        self.ids = [feed.examples[i].input_ids for feed, rows in feeds for i in rows]
        self.types = [feed.examples[i].token_type_ids for feed, rows in feeds for i in rows]
        self.phrases: PhraseStates | None = None
        if isinstance(readout, PhraseReadout):
            self.phrases = PhraseStates(store, readout, self.ids)

    def missing(self) -> Sequence[int] | np.ndarray:
        """The rows that are not kept whole."""
        return self.store.missing(self.ids, self.types) if self.phrases is None else self.phrases.missing()

    @property
    def bytes(self) -> int:
        """What all rows would take on the disk."""
        positions = sum(map(len, self.ids)) if self.phrases is None else self.phrases.positions
        return positions * self.store.row_bytes

    def fits(self, missing: Sequence[int] | np.ndarray, limit: float) -> bool:
        """Whether all rows fit into the limit, and those that are missing onto the disk."""
        if self.phrases is None:
            needed: float = sum(len(self.ids[i]) for i in missing) * self.store.row_bytes
        else:
            needed = self.bytes * len(missing) / max(1, len(self.ids))
        return self.bytes <= limit and needed <= _free_bytes(self.store.folder) - SPARE_BYTES

    def fill(self, prompt_layer: int, *, quiet: bool) -> np.ndarray:
        """Compute what is missing; row numbers (rows, 1 + labels)."""
        with Bar("trunk states", len(self.ids), quiet=quiet) as bar:
            if self.phrases is None:
                return self.store.fill(self.ids, self.types, progress=bar.advance)[:, None]
            assert isinstance(self.readout, PhraseReadout)
            return self.phrases.fill(self.readout.layer, prompt_layer, bar.advance)

    def feed(self, feed: Feed, numbers: np.ndarray) -> StatesFeed:
        """A feed with the states of these row numbers."""
        if self.phrases is None:
            return StatesFeed(feed, self.store, numbers[:, 0])
        return PhraseFeed(feed, self.store, numbers[:, 0], numbers[:, 1:], self.phrases.tokens.shape[1])
