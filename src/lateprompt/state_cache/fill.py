"""Give a run's batches stored trunk states: fill what is missing, then train and evaluate without the trunk."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data import Example
from lateprompt.data.batches import Batches
from lateprompt.readouts import Readout
from lateprompt.state_cache.admin import prune_stores
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.batches import StatesFeed as StatesFeed
from lateprompt.state_cache.keys_memory import KeysMemory, machine_memory_bytes
from lateprompt.state_cache.label_words import LabelWordStates
from lateprompt.state_cache.locking import CannotCache
from lateprompt.state_cache.settings import FOLDER_VARIABLE as FOLDER_VARIABLE
from lateprompt.state_cache.settings import StatesSettings as StatesSettings
from lateprompt.state_cache.store import NeededStates, SourceStates, TrunkStates
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError

SPARE_BYTES = 1 << 30
"""What a fill leaves free on the disk."""


def needed_states(readout: Readout, examples: Sequence[Example]) -> NeededStates:
    """The states that a readout asks for on some examples."""
    ids = [example.input_ids for example in examples]
    continuations = readout.continuations()
    if continuations:
        return LabelWordStates(readout.layer, ids, continuations)
    return SourceStates(ids, [example.token_type_ids for example in examples])


def fill_layers(
    model: nn.Module,
    readout: Readout,
    batches: Batches,
    layers: Sequence[int | float | str],
    folder: Path,
    dtype: str,
    *,
    quiet: bool = False,
) -> list[TrunkStates]:
    """Store what training on some rows at some prompt layers will ask for, in one pass; the stores, one a layer.

    For the readout of a read-only prompt these are the layers from the lowest of `layers` to the last but one, and the
    frozen model's pooled output where a head reads it: one fill then serves every prompt layer from there on.

    Raises:
        LatePromptError: a layer or dtype that cannot be, or label words of several tokens on an architecture that
            computes the trunk for each of them.
    """
    numbers = list(dict.fromkeys(resolve_prompt_layer(layer, readout.layer.num_layers) for layer in layers))
    pooling = None
    if readout.read_only_adapter() is not None and not readout.continuations():
        numbers, pooling = list(range(min(numbers), readout.layer.num_layers)), readout.pooled_layer()
    stores = [TrunkStates.open(folder, model, number, dtype=dtype) for number in numbers]
    if pooling is not None:
        stores.append(TrunkStates.open_pooled(folder, model, pooling))
    if not readout.reads_cached_states():
        raise LatePromptError(
            "label words of several tokens are scored by whole passes here: the architecture has no states to keep"
        )
    with Bar("trunk states", len(batches), quiet=quiet) as bar:
        needed_states(readout, batches.examples).fill(stores, progress=bar.advance)
    return stores


def cache_states(
    model: nn.Module,
    readout: Readout,
    prompt_layer: int,
    parts: Sequence[tuple[Batches, np.ndarray]],
    settings: StatesSettings,
    *,
    quiet: bool = True,
) -> tuple[list[Batches], float]:
    """Batches with stored states, and the seconds that filling took (0.0 if all were there).

    Batches come back as they were when states are off, when the readout needs the trunk (label words of several tokens
    on architectures that cannot pack them), or, which is said, when states would not fit on the disk or into the limit,
    or are missing in a store that cannot be written. What is stored stays readable for these batches, whoever prunes it
    meanwhile.

    Args:
        model: the model with the late backbone.
        readout: who will read the batches.
        prompt_layer: p.
        parts: batches, each with the numbers of its rows that will be read.
        settings: whether and where.
        quiet: no progress bar.
    """
    uncached = [batches for batches, _ in parts]
    folder = settings.folder
    if folder is None or not readout.reads_cached_states():
        return uncached, 0.0
    started = time.perf_counter()
    limit = settings.states_limit_gb * 1e9
    try:
        needed = needed_states(readout, [batches.examples[i] for batches, rows in parts for i in rows])
        stores = _stores(model, readout, prompt_layer, needed, folder, settings)
        missing = [needed.missing(store) for store in stores]
        check_room(stores, needed, missing, limit)
        computed = any(map(len, missing))
        with Bar("trunk states", len(needed.keys), quiet=quiet or not computed) as bar:
            numbers = needed.fill(stores, progress=bar.advance)
    except CannotCache as reason:
        warnings.warn(f"{reason}; until then the trunk is computed at each step", stacklevel=2)
        return uncached, 0.0
    seconds = time.perf_counter() - started if computed else 0.0
    if computed:
        with contextlib.suppress(LatePromptError):  # a folder that may be written, but not listed
            held = (store.hold(own.reshape(-1)) for store, own in zip(stores, numbers, strict=True))
            prune_stores(folder, limit, keep=set().union(*held))
    cached: list[Batches] = []
    # One memory for all parts, by the store's row numbers.
    reads = len(stores) > 1 and readout.layer.frozen.reads_outside(prompt_layer)
    room = min(settings.keys_memory_gb * 1e9, machine_memory_bytes() / 4)
    keys = KeysMemory(readout.layer, room) if reads else None
    start = 0
    for batches, rows in parts:
        of_stores = []
        for store, found in zip(stores, numbers, strict=True):
            own = np.full((len(batches), needed.per_sequence), -1, dtype=np.int64)
            own[rows] = found[start : start + len(rows)]
            of_stores.append((store, own))
        start += len(rows)
        (store, own), *more = of_stores
        above = [(other, others[:, 0]) for other, others in more if other.pooling is None]
        pooled = next(((other, others[:, 0]) for other, others in more if other.pooling is not None), None)
        cached.append(CachedBatches(batches, store, own, readout.continuations(), above, pooled, keys))
    return cached, seconds


def _stores(
    model: nn.Module,
    readout: Readout,
    prompt_layer: int,
    needed: NeededStates,
    folder: Path,
    settings: StatesSettings,
) -> list[TrunkStates]:
    """The stores that a run reads: the prompt layer's first, for read-only prompts those of the layers above too."""
    first = TrunkStates.open(folder, model, prompt_layer, dtype=settings.states_dtype)
    if readout.read_only_adapter() is None or settings.states_layers == "prompt" or readout.continuations():
        return [first]
    layers = range(prompt_layer + 1, readout.layer.num_layers)
    in_all = int(needed.stored.sum()) * first.row_bytes * (len(layers) + 1)
    half = settings.states_limit_gb * 1e9 / 2
    if settings.states_layers == "auto" and (in_all > half or in_all > _free_bytes(folder) - SPARE_BYTES):
        return [first]
    stores = [first, *(TrunkStates.open(folder, model, layer, dtype=settings.states_dtype) for layer in layers)]
    pooling = readout.pooled_layer()
    return stores if pooling is None else [*stores, TrunkStates.open_pooled(folder, model, pooling)]


keep_states = cache_states
"""Its name in earlier releases."""


def check_room(
    stores: Sequence[TrunkStates], needed: NeededStates, missing: Sequence[np.ndarray], limit_bytes: float
) -> None:
    """Raise `CannotCache` where the missing rows do not fit on the disk, or all rows into the limit."""
    if not any(map(len, missing)):
        return
    in_all, more = 0, 0
    for store, lacking in zip(stores, missing, strict=True):
        stored = needed.stored if store.pooling is None else np.ones_like(needed.stored)
        in_all += int(stored.sum()) * store.row_bytes
        more += int(stored[lacking].sum()) * store.row_bytes
    folder = stores[0].folder
    if in_all > limit_bytes or more > _free_bytes(folder) - SPARE_BYTES:
        raise CannotCache(
            f"trunk states of {in_all / 1e9:.1f} GB do not fit ({limit_bytes / 1e9:g} GB allowed in "
            f"{str(folder.parent)!r}, or its disk is full); raise --states-limit-gb or choose --states-dtype int8"
        )


def _free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder that need not exist, and may be removed at any time."""
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(FileNotFoundError):
            return shutil.disk_usage(place).free
    return 0
