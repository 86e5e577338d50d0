"""`TrunkStates`: hidden states at the prompt layer, kept on disk, computed once per token sequence."""

from __future__ import annotations

import errno
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lateprompt.backbone.families import core_of, num_layers_of
from lateprompt.backbone.kernels.cpu_mode import cpu_kernels
from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.split import Split, resolve_prompt_layer
from lateprompt.data.padding import pad
from lateprompt.state_cache import codec
from lateprompt.state_cache.facts import FORMAT, STORE_FILE, find_facts, read_facts
from lateprompt.state_cache.keys import row_key, trunk_fingerprint
from lateprompt.state_cache.locking import CannotKeep, cannot_hold, changing, put_plainly
from lateprompt.state_cache.segment import SEGMENT_BYTES, Segment, new_segment_path, segment_files, size_of
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import write_json
from lateprompt.utils.randomness import in_turn

BATCH_TOKENS = 8192
"""Tokens (padding included) of one fill batch: what a crash loses at most."""

Ids = Sequence[int] | np.ndarray


class TrunkStates:
    """Kept hidden states of one trunk, one row per token sequence; several readers, one writer.

    Rows are addressed by content: data sets, splits, seeds and tasks that produce the same token ids share them. Made
    by `open`; `fill` computes what is missing and gives row numbers, `get` reads them. What the last `fill` gave stays
    readable as long as this object lives, whoever prunes the store meanwhile.

    Args:
        folder: this store's own folder.
        split: the trunk that computes states, or None for a store that is only read.
        width: the hidden size.
        dtype: how states lie on disk.
        prompt_layer: p.
        facts: what `store.json` says; the first fill writes it.
    """

    def __init__(
        self,
        folder: Path,
        split: Split | None,
        width: int,
        dtype: str,
        prompt_layer: int,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.split = split
        self.width = width
        self.dtype = dtype
        self.prompt_layer = prompt_layer
        self.row_bytes = codec.token_bytes(dtype, width)
        self._facts = facts or {}
        self._segments: list[Segment] = []
        self._seen: list[int] = []
        self._index: list[int] = []
        self._rows: dict[bytes, int] = {}
        self._segment_of: list[int] = []
        self._offset: list[int] = []
        self._length: list[int] = []
        self._checksum: list[int] = []
        self._verified: list[bool] = []
        self.refresh()

    @classmethod
    def open(
        cls, folder: str | Path, model: nn.Module, prompt_layer: int | float | str, *, dtype: str = "auto"
    ) -> TrunkStates:
        """The store of `model`'s trunk below `folder`; the first fill makes it if there is none.

        A store belongs to the trunk's weights, its architecture, the code and the attention kernel that compute it, the
        prompt layer and the dtype: with any of these changed another store is opened, and its rows are computed anew.

        Args:
            folder: where stores live; each has a folder of its own in it.
            model: a Hugging Face model or backbone, or a PEFT model with a late prompt.
            prompt_layer: p.
            dtype: float32, bfloat16, float16, int8, or auto: the model's own type.

        Raises:
            CannotKeep: a store that may not be read.
            LatePromptError: unknown dtype or architecture, a prompt layer out of range, or a folder that is no folder.
        """
        late = next((module for module in model.modules() if isinstance(module, LateBackbone)), None)
        if late is not None:
            late.check_trunk()
        core: Any = core_of(model) if late is None else late.base_layer
        layer = resolve_prompt_layer(prompt_layer, num_layers_of(core))
        split = Split(core, layer) if late is None else late.split_at(layer)
        if dtype == "auto":
            dtype = str(next(split.trunk.parameters()).dtype).removeprefix("torch.")
        codec.check_dtype(dtype)
        width = int(core.config.hidden_size)
        fingerprint = trunk_fingerprint(split.trunk, core.config, layer)
        own = Path(folder) / f"{core.config.model_type}-p{layer}-{dtype}-{fingerprint[:16]}"
        facts = {
            "format": FORMAT,
            "model_type": core.config.model_type,
            "prompt_layer": layer,
            "hidden_size": width,
            "dtype": dtype,
            "fingerprint": fingerprint,
        }
        _check_place(Path(folder))
        found = find_facts(own)
        if found is not None and found != facts:
            changed = sorted(k for k in {*facts, *found} if found.get(k) != facts.get(k))
            raise LatePromptError(
                f"trunk states {str(own)!r} are of another model ({', '.join(changed)} differ); remove them"
            )
        return cls(own, split, width, dtype, layer, facts)

    @classmethod
    def attach(cls, folder: Path) -> TrunkStates:
        """A store by its own folder, without a model: it can be read and checked, not filled."""
        facts = read_facts(folder)
        return cls(folder, None, facts["hidden_size"], facts["dtype"], facts["prompt_layer"], facts)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(map(size_of, segment_files(self.folder)))

    def refresh(self) -> int:
        """See what a writer has added since; returns how many broken records were met."""
        broken = 0
        known = {segment.index_path for segment in self._segments}
        for path in segment_files(self.folder):
            if path.suffix == ".idx" and path not in known:
                self._new_segment(path.with_suffix(".bin"))
        for number, segment in enumerate(self._segments):
            index = segment.index_number
            if index != self._index[number]:  # a verify has written it anew, or it is gone
                self._index[number], self._seen[number] = index, 0
            records, read = segment.records(self._seen[number])
            self._add(number, records)
            self._seen[number] += read
            broken += read - len(records)
        return broken

    def _new_segment(self, path: Path) -> None:
        self._segments.append(Segment(path, self.row_bytes))
        self._seen.append(0)
        self._index.append(0)

    def _add(self, segment: int, records: np.ndarray) -> None:
        for record in records:
            self._rows[record["key"].tobytes()] = len(self._offset)
            self._segment_of.append(segment)
            self._offset.append(int(record["offset"]))
            self._length.append(int(record["length"]))
            self._checksum.append(int(record["checksum"]))
            self._verified.append(False)

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self, token_ids: Sequence[Ids], token_type_ids: Sequence[Ids | None] | None = None) -> np.ndarray:
        """Row numbers of token sequences, -1 for those not kept."""
        types = token_type_ids or [None] * len(token_ids)
        return self.rows_of([row_key(ids, kinds) for ids, kinds in zip(token_ids, types, strict=True)])

    def rows_of(self, keys: Sequence[bytes]) -> np.ndarray:
        """Row numbers of addresses, -1 for those not kept."""
        return np.array([self._rows.get(key, -1) for key in keys], dtype=np.int64)

    def get(self, rows: Sequence[int] | np.ndarray, length: int | None = None) -> torch.Tensor:
        """States (batch, length, hidden) of row numbers, right padded with zeros to the longest (or to `length`).

        Raises:
            LatePromptError: a row that is not kept, or whose bytes on disk have changed.
        """
        numbers = [int(row) for row in rows]
        for row in numbers:
            if not 0 <= row < len(self._offset):
                raise LatePromptError(
                    f"row {row} is not kept in {str(self.folder)!r} ({len(self)} rows); fill it first"
                )
        lengths = [self._length[row] for row in numbers]
        out = codec.empty(len(numbers), length or max(lengths, default=0), self.width, self.dtype)
        for i, row in enumerate(numbers):
            if not self._is_whole(row):
                raise LatePromptError(
                    f"trunk states {str(self.folder)!r}: row {row} is gone or does not match its checksum; "
                    "run lateprompt states verify, which drops it, and fill again"
                )
            codec.decode(self._raw(row), out[i, : lengths[i]], self.dtype)
        return out

    def hold(self, rows: Sequence[int] | np.ndarray) -> set[Path]:
        """Keep the segments of these rows readable here, whoever prunes them meanwhile; their data files.

        Under the lock (`writing`), or for rows that `missing` has just found whole. They count as used now.
        """
        held = [self._segments[number] for number in {self._segment_of[int(row)] for row in rows}]
        for segment in held:
            segment.hold()
            segment.touch()
        return {segment.path for segment in held}

    def _raw(self, row: int) -> np.ndarray:
        return self._segments[self._segment_of[row]].read(self._offset[row], self._length[row])

    def _is_whole(self, row: int) -> bool:
        """Whether a row's bytes are mapped and have been checked; what is mapped cannot go any more."""
        segment = self._segments[self._segment_of[row]]
        mapped = segment.maps(self._offset[row], self._length[row])
        return (mapped and self._verified[row]) or self._verify(row)

    def _verify(self, row: int) -> bool:
        try:
            raw = self._raw(row)
        except (OSError, ValueError):  # pruned, not ours to read, on a broken disk; or cut to nothing
            self._verified[row] = False
            return False
        whole = len(raw) == self._length[row] * self.row_bytes
        self._verified[row] = whole and zlib.crc32(raw.data) == self._checksum[row]
        return self._verified[row]

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, wait_seconds: float = 600.0) -> Iterator[None]:
        """Be the one writer: waits for another to finish, repairs what a killed one left, and says so.

        Args:
            wait_seconds: how long to wait for a writer that adds nothing; while it adds rows, waiting goes on.

        Raises:
            CannotKeep: another process keeps the store to itself, or it cannot be written.
        """
        create = self.split is not None
        with changing(self.folder, wait_seconds, create=create, progress=lambda: self.nbytes):
            try:
                if create and not (self.folder / STORE_FILE).exists():
                    with put_plainly(self.folder):
                        write_json(self.folder / STORE_FILE, self._facts)
                self._repair()
                yield
            except FileNotFoundError as error:
                if error.filename is None or Path(error.filename).parent != self.folder:
                    raise
                raise CannotKeep(
                    f"trunk states {str(self.folder)!r} were removed while they were filled; fill them again, use "
                    "another folder, or --states off"
                ) from None

    def _repair(self) -> None:
        dropped = 0
        for path in sorted({path.with_suffix(".bin") for path in segment_files(self.folder)}):
            dropped += Segment(path, self.row_bytes).repair()
        if dropped:
            warnings.warn(
                f"trunk states {str(self.folder)!r}: dropped {dropped} bytes that an interrupted fill left behind",
                stacklevel=4,
            )
            # Row numbers given out stay what they were: a dropped row fails its checksum, no other takes its place.
            self._verified = [False] * len(self._verified)
            for number, segment in enumerate(self._segments):
                segment.release()
                self._seen[number] = min(self._seen[number], segment.count)
        self.refresh()

    def fill(
        self,
        token_ids: Sequence[Ids],
        token_type_ids: Sequence[Ids | None] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
        wait_seconds: float = 600.0,
    ) -> np.ndarray:
        """Compute and keep what is missing; the row number of each sequence.

        Args:
            token_ids: token sequences, special tokens included, no padding.
            token_type_ids: their token types, or None.
            progress: called with the number of rows done.
            wait_seconds: how long to wait for another writer that adds nothing.

        Raises:
            CannotKeep: a full disk, a store that cannot be written, or another writer.
            LatePromptError: an empty sequence, or a store opened without a model.
        """
        return fill_stores([self], token_ids, token_type_ids, progress=progress, wait_seconds=wait_seconds)[0]

    def missing(self, token_ids: Sequence[Ids], token_type_ids: Sequence[Ids | None] | None = None) -> np.ndarray:
        """Which sequences are not kept whole: absent, or damaged on disk (each row's checksum is looked at once)."""
        return self._not_whole(self.find(token_ids, token_type_ids))

    def missing_keys(self, keys: Sequence[bytes]) -> np.ndarray:
        """As `missing`, by address."""
        return self._not_whole(self.rows_of(keys))

    def _not_whole(self, rows: np.ndarray) -> np.ndarray:
        return np.array([i for i, row in enumerate(rows) if row < 0 or not self._is_whole(row)], dtype=np.int64)

    def has(self, key: bytes) -> bool:
        """Whether the row of an address is there, as far as `missing` or `append` have looked."""
        row = self._rows.get(key, -1)
        return row >= 0 and self._verified[row]

    def append(self, keys: Sequence[bytes], states: Sequence[torch.Tensor]) -> None:
        """Add rows of states (length, hidden); only inside `writing`."""
        if not keys:
            return
        last = self._segments[-1] if self._segments else None
        full = last is None or not last.index_path.exists() or last.data_bytes >= SEGMENT_BYTES
        if full or not (last is not None and last.is_writable):
            self._new_segment(new_segment_path(self.folder))
        segment = self._segments[-1]
        rows = [codec.encode(state, self.dtype) for state in states]
        first = len(self._verified)
        records = segment.append(keys, [len(state) for state in states], rows)
        self._add(len(self._segments) - 1, records)
        self._verified[first:] = [True] * len(records)
        self._seen[-1] += len(records)
        self._index[-1] = segment.index_number

    def sync(self) -> None:
        """Make the last segment durable."""
        if self._segments:
            self._segments[-1].sync()

    def describe(self) -> dict[str, Any]:
        """The store's name, facts, rows and bytes."""
        return {"store": self.folder.name, **self._facts, "rows": len(self), "bytes": self.nbytes}


def _check_place(folder: Path) -> None:
    """Raise LatePromptError where no folder can be."""
    try:
        place = next(path for path in (folder, *folder.parents, Path()) if path.exists())
        if not place.is_dir():
            raise cannot_hold(folder, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    except PermissionError:  # said when it comes to reading or writing
        return


@torch.no_grad()
def fill_stores(
    stores: Sequence[TrunkStates],
    token_ids: Sequence[Ids],
    token_type_ids: Sequence[Ids | None] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    wait_seconds: float = 600.0,
) -> list[np.ndarray]:
    """Fill stores of one model at several prompt layers in one pass of the longest trunk; row numbers for each."""
    deepest = max(stores, key=lambda store: store.prompt_layer)
    split = deepest.split
    if split is None:
        raise LatePromptError(
            f"trunk states {str(deepest.folder)!r} were opened without a model; use TrunkStates.open to fill"
        )
    folders = [store.folder for store in stores]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise LatePromptError(f"trunk states {str(twice)!r} are given twice; give each prompt layer once")
    for i, ids in enumerate(token_ids):
        if len(ids) == 0:
            raise LatePromptError(f"token sequence {i} is empty; give at least one token")
    types: Sequence[Ids | None] = token_type_ids or [None] * len(token_ids)
    keys = [row_key(ids, kinds) for ids, kinds in zip(token_ids, types, strict=True)]
    for store in stores:
        store.refresh()
    if not any(len(store.missing_keys(keys)) for store in stores):  # all there: nothing is locked or written
        if progress is not None:
            progress(len(keys))
        return [_held(store, keys) for store in stores]
    with _all_writing(stores, wait_seconds):
        wanted = sorted({int(i) for store in stores for i in store.missing_keys(keys)})
        unique = sorted({keys[i]: i for i in wanted}.values(), key=lambda i: len(token_ids[i]))
        if progress is not None:
            progress(len(token_ids) - len(unique))
        was_training = split.trunk.training
        split.trunk.eval()  # a pure function of the text
        try:
            for batch in batches_of([len(token_ids[i]) for i in unique]):
                rows = [unique[j] for j in batch]
                states = _states(split, [token_ids[i] for i in rows], [types[i] for i in rows], stores)
                for store, own in zip(stores, states, strict=True):
                    absent = [j for j, i in enumerate(rows) if not store.has(keys[i])]
                    store.append([keys[rows[j]] for j in absent], [own[j, : len(token_ids[rows[j]])] for j in absent])
                if progress is not None:
                    progress(len(rows))
        finally:
            split.trunk.train(was_training)
        for store in stores:
            store.sync()
        return [_held(store, keys) for store in stores]  # before another may prune them


def _held(store: TrunkStates, keys: Sequence[bytes]) -> np.ndarray:
    rows = store.rows_of(keys)
    store.hold(rows)
    return rows


@contextmanager
def _all_writing(stores: Sequence[TrunkStates], wait_seconds: float) -> Iterator[None]:
    if not stores:
        yield
        return
    first, *rest = sorted(stores, key=lambda store: str(store.folder))  # one order for all: no deadlock
    with first.writing(wait_seconds), _all_writing(rest, wait_seconds):
        yield


def batches_of(lengths: Sequence[int]) -> Iterator[range]:
    """Runs of sequences sorted by length, of at most BATCH_TOKENS tokens with padding."""
    start = 0
    while start < len(lengths):
        stop = start + 1
        while stop < len(lengths) and lengths[stop] * (stop + 1 - start) <= BATCH_TOKENS:
            stop += 1
        yield range(start, stop)
        start = stop


@in_turn
def _states(
    split: Split, ids: Sequence[Ids], types: Sequence[Ids | None], stores: Sequence[TrunkStates]
) -> list[torch.Tensor]:
    """States (batch, length, hidden) of one batch at each store's prompt layer."""
    weight = next(split.trunk.parameters())
    device = weight.device
    tokens, mask = pad(ids)
    inputs = {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
    if any(kind is not None for kind in types):
        kinds, _ = pad([() if kind is None else kind for kind in types], width=tokens.shape[1])
        inputs["token_type_ids"] = kinds.to(device)
    deepest = max(store.prompt_layer for store in stores)
    several = any(store.prompt_layer != deepest for store in stores)
    extra: dict[str, Any] = {"use_cache": False} if getattr(split.trunk.config, "use_cache", None) else {}
    with cpu_kernels(device, weight.dtype):
        output = split.trunk(**inputs, **extra, output_hidden_states=several, return_dict=True)
    return [
        output.last_hidden_state if store.prompt_layer == deepest else output.hidden_states[store.prompt_layer]
        for store in stores
    ]


def describe(folder: Path) -> dict[str, Any]:
    """A store's name, facts, rows and bytes."""
    return TrunkStates.attach(folder).describe()
