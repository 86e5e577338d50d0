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
from lateprompt.states import TrunkStates, fill_stores, prune
from lateprompt.tasks import Row
from lateprompt.training.feed import Feed, batch_order
from lateprompt.training.fit import plan_steps
from lateprompt.training.settings import RecipeSettings
from lateprompt.training.states_settings import FOLDER_VARIABLE as FOLDER_VARIABLE
from lateprompt.training.states_settings import StatesSettings as StatesSettings

if TYPE_CHECKING:
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
        super().__init__(feed.examples, feed.pad_token_id)
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
    that take no branches), or when they would not fit on the disk or into the limit; the latter is said.

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
    store = TrunkStates.open(folder, model, prompt_layer, dtype=settings.states_dtype)
    ids = [feed.examples[i].input_ids for feed, rows in feeds for i in rows]
    types = [feed.examples[i].token_type_ids for feed, rows in feeds for i in rows]
    phrases = None
    if isinstance(readout, PhraseReadout):
        from lateprompt.training.phrases import PhraseFeed, PhraseStates

        phrases = PhraseStates(store, readout, ids)
    missing = store.missing(ids, types) if phrases is None else phrases.missing()
    positions = sum(map(len, ids)) if phrases is None else phrases.positions
    whole = positions * store.row_bytes
    needed = whole * len(missing) / max(1, len(ids))
    if phrases is None:
        needed = sum(len(ids[i]) for i in missing) * store.row_bytes
    limit = int(settings.states_limit_gb * 1e9)
    if whole > limit or needed > shutil.disk_usage(store.folder).free - SPARE_BYTES:
        warnings.warn(
            f"trunk states of {whole / 1e9:.1f} GB do not fit ({settings.states_limit_gb:g} GB allowed in "
            f"{str(folder)!r}, or its disk is full): the trunk is computed at each step; raise --states-limit-gb or "
            "choose --states-dtype int8",
            stacklevel=2,
        )
        return plain, 0.0
    with Bar("trunk states", len(ids), quiet=quiet or not len(missing)) as bar:
        if phrases is None:
            numbers = store.fill(ids, types, progress=bar.advance)[:, None]
        else:
            numbers = phrases.fill(readout.layer, prompt_layer, bar.advance)
    seconds = time.perf_counter() - started if len(missing) else 0.0
    if len(missing):
        held = store.hold(numbers[numbers >= 0])
        with contextlib.suppress(LatePromptError):  # another run is filling, and prunes when it is done
            prune(folder, limit, keep=held)
    kept: list[Feed] = []
    start = 0
    for feed, rows in feeds:
        own = np.full((len(feed), numbers.shape[1]), -1, dtype=np.int64)
        own[rows] = numbers[start : start + len(rows)]
        start += len(rows)
        if phrases is None:
            kept.append(StatesFeed(feed, store, own[:, 0]))
        else:
            kept.append(PhraseFeed(feed, store, own[:, 0], own[:, 1:], phrases.tokens.shape[1]))
    return kept, seconds
