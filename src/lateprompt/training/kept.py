"""Give a run's feeds kept trunk states: fill what is missing, then train and evaluate without the trunk."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from lateprompt.branches import can_branch
from lateprompt.errors import LatePromptError
from lateprompt.progress import Bar
from lateprompt.readout import Batch, PhraseReadout, Readout
from lateprompt.split import resolve_prompt_layer
from lateprompt.states import CannotKeep, TrunkStates, fill_stores, prune_stores
from lateprompt.tasks import Row
from lateprompt.training.feed import Feed, batch_order
from lateprompt.training.fit import plan_steps
from lateprompt.training.settings import RecipeSettings
from lateprompt.training.states_settings import FOLDER_VARIABLE as FOLDER_VARIABLE
from lateprompt.training.states_settings import StatesSettings as StatesSettings

if TYPE_CHECKING:
    from lateprompt.training.phrases import PhraseStates
    from lateprompt.tuned import TunedModel

SPARE_BYTES = 1 << 30
"""What a fill leaves free on the disk."""


class StatesFeed(Feed):
    """A `Feed` whose batches carry `trunk_states`.

    Args:
        feed: the rows.
        store: holds the states of every row.
        numbers: the row number in the store of each row of the feed (what `fill` gave).
    """

    def __init__(self, feed: Feed, store: TrunkStates, numbers: np.ndarray) -> None:
        super().__init__(feed.examples, feed.pad_token_id, feed.weights)
        self.store = store
        self.numbers = numbers

    def batch(self, rows: np.ndarray) -> Batch:
        batch = super().batch(rows)
        return replace(batch, trunk_states=self.store.get(self.numbers[rows], batch.input_ids.shape[1]))

    def batches(self, order: Sequence[np.ndarray]) -> Iterator[Batch]:
        """The batches of an order; the next one is read while the model works on this one."""
        with ThreadPoolExecutor(1, thread_name_prefix="states") as reader:
            ahead = None
            for rows in order:
                following = reader.submit(self.batch, rows)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
        # The reader has ended: a second thread with torch work changes how OpenMP's threads wait for each other.
        if ahead is not None:
            yield ahead.result()


def rows_needed(feed: Feed, recipe: RecipeSettings) -> np.ndarray:
    """The rows that training will see: all, unless it stops within the first epoch."""
    per_epoch, total = plan_steps(len(feed), recipe)
    if total >= per_epoch:
        return np.arange(len(feed))
    order = batch_order(feed.lengths, recipe.batch_size, recipe.seed, 0)
    return np.sort(np.concatenate(order[: total * recipe.grad_accumulation]))


def fill_layers(
    tuned: TunedModel, rows: Sequence[Row], layers: Sequence[int | float | str], folder: Path, dtype: str
) -> list[TrunkStates]:
    """Keep what training on these rows at some prompt layers will ask for; the stores, one a layer.

    Raises:
        LatePromptError: a layer or dtype that cannot be, or label words of several tokens on an architecture that
            computes the trunk for each of them.
    """
    feed = tuned.feed(rows)
    numbers = dict.fromkeys(resolve_prompt_layer(layer, tuned.layer.num_layers) for layer in layers)
    stores = [TrunkStates.open(folder, tuned.model, number, dtype=dtype) for number in numbers]
    ids, types = [e.input_ids for e in feed.examples], [e.token_type_ids for e in feed.examples]
    with Bar("trunk states", len(ids) * (len(stores) if isinstance(tuned.readout, PhraseReadout) else 1)) as bar:
        if not isinstance(tuned.readout, PhraseReadout):
            fill_stores(stores, ids, types, progress=bar.advance)
            return stores
        if not can_branch(tuned.layer):
            raise LatePromptError(
                "label words of several tokens are scored by whole passes here: the architecture has no states to keep"
            )
        from lateprompt.training.phrases import PhraseStates

        for number, store in zip(numbers, stores, strict=True):
            PhraseStates(store, tuned.readout, ids).fill(tuned.layer, number, bar.advance)
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
            from lateprompt.training.phrases import PhraseStates

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
        from lateprompt.training.phrases import PhraseFeed

        return PhraseFeed(feed, self.store, numbers[:, 0], numbers[:, 1:], self.phrases.tokens.shape[1])
