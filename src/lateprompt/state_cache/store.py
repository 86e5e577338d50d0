"""`TrunkStates`: hidden states at the prompt layer, stored on disk, computed once per token sequence."""

from __future__ import annotations

import errno
import os
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
from lateprompt.backbone.read_only.views import FrozenViews
from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data.padding import pad
from lateprompt.state_cache import codec
from lateprompt.state_cache.facts import FORMAT, find_facts, read_facts
from lateprompt.state_cache.keys import trunk_fingerprint
from lateprompt.state_cache.locking import cannot_hold
from lateprompt.state_cache.row_store import Ids, RowStore, keys_of
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import in_turn

BATCH_TOKENS = 8192
"""Tokens (padding included) of one fill batch: what a crash loses at most."""


class TrunkStates(RowStore):
    """Stored hidden states of one trunk, one row per token sequence; several readers, one writer.

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

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt import TrunkStates
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> model = BertModel(BertConfig(vocab_size=100, **sizes)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     states = TrunkStates.open(folder, model, prompt_layer=2)
        ...     rows = states.fill([[2, 7, 9, 3], [2, 8, 3], [2, 7, 9, 3]])  # the same tokens are computed once
        ...     len(states), bool(rows[0] == rows[2]), states.get(rows[:2]).shape  # (batch, longest, hidden)
        (2, True, torch.Size([2, 4, 16]))
    """

    def __init__(
        self,
        folder: Path,
        split: FrozenTrunk | None,
        width: int,
        dtype: str,
        prompt_layer: int,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, width, dtype, facts or {}, create=split is not None)
        self.split = split
        self.prompt_layer = prompt_layer
        self.pooling: str | None = self._facts.get("pooling")
        """How the whole model's output is pooled to one state; None: all states of the layer are kept."""

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
            CannotCache: a store that may not be read.
            LatePromptError: unknown dtype or architecture, a prompt layer out of range, or a folder that is no folder.
        """
        late = next((module for module in model.modules() if isinstance(module, LateBackbone)), None)
        core: Any = core_of(model) if late is None else late.base_layer
        layer = resolve_prompt_layer(prompt_layer, num_layers_of(core))
        return cls._open(folder, core, late, layer, dtype)

    @classmethod
    def open_pooled(cls, folder: str | Path, model: nn.Module, pooling: str) -> TrunkStates:
        """As `open`, the store of the frozen model's own output, pooled: one fp32 state a token sequence.

        Args:
            folder: where stores live.
            model: as in `open`.
            pooling: mean, or cls or last for the first or last token's state.
        """
        late = next((module for module in model.modules() if isinstance(module, LateBackbone)), None)
        core: Any = core_of(model) if late is None else late.base_layer
        return cls._open(folder, core, late, num_layers_of(core), "float32", pooling)

    @classmethod
    def _open(
        cls,
        folder: str | Path,
        core: Any,
        late: LateBackbone | None,
        layer: int,
        dtype: str,
        pooling: str | None = None,
    ) -> TrunkStates:
        if late is not None:
            late.check_trunk()
        split: FrozenTrunk = FrozenTrunk((FrozenViews(core) if late is None else late.frozen).below(layer))
        if dtype == "auto":
            dtype = str(next(split.trunk.parameters()).dtype).removeprefix("torch.")
        codec.check_dtype(dtype)
        width = int(core.config.hidden_size)
        fingerprint = trunk_fingerprint(split.trunk, core.config, layer)
        what = dtype if pooling is None else f"{dtype}-{pooling}"
        own = Path(folder) / f"{core.config.model_type}-p{layer}-{what}-{fingerprint[:16]}"
        facts = {
            "format": FORMAT,
            "model_type": core.config.model_type,
            "prompt_layer": layer,
            "hidden_size": width,
            "dtype": dtype,
            "fingerprint": fingerprint,
            **({} if pooling is None else {"pooling": pooling}),
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
            CannotCache: a full disk, a store that cannot be written, or another writer.
            LatePromptError: an empty sequence, or a store opened without a model.
        """
        return fill_stores([self], token_ids, token_type_ids, progress=progress, wait_seconds=wait_seconds)[0]


def _check_place(folder: Path) -> None:
    """Raise LatePromptError where no folder can be."""
    try:
        place = next(path for path in (folder, *folder.parents, Path()) if path.exists())
        if not place.is_dir():
            raise cannot_hold(folder, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    except PermissionError:  # said when it comes to reading or writing
        return


class NeededStates:
    """The states that some token sequences need. Base: what a fill asks of `SourceStates` and `LabelWordStates`.

    Args:
        keys: of each sequence, the addresses of its rows of states, equally many for all.
        stored: of each sequence, how many positions these rows have.
        computed: of each sequence, how many positions one pass of the trunk computes for them.
    """

    def __init__(self, keys: Sequence[Sequence[bytes]], stored: Sequence[int], computed: Sequence[int]) -> None:
        self.keys = keys
        self.per_sequence = len(keys[0]) if keys else 1
        self.stored = np.array(stored, dtype=np.int64)
        self.computed = computed

    def compute(self, sequences: Sequence[int], stores: Sequence[TrunkStates]) -> list[dict[bytes, torch.Tensor]]:
        """By address, the states (length, hidden) of sequences by number, for each store's prompt layer."""
        raise TypeError(f"{type(self).__name__} must override compute")

    def missing(self, store: TrunkStates) -> np.ndarray:
        """Which sequences have rows that are not stored whole."""
        return np.unique(store.missing_keys(self._all_keys()) // self.per_sequence)

    def hold(self, store: TrunkStates) -> np.ndarray:
        """Row numbers (sequences, rows of each), which stay readable as long as the store's object lives."""
        numbers = store.rows_of(self._all_keys())
        store.hold(numbers)
        return numbers.reshape(-1, self.per_sequence)

    def _all_keys(self) -> list[bytes]:
        return [key for keys in self.keys for key in keys]

    @torch.no_grad()
    def fill(
        self,
        stores: Sequence[TrunkStates],
        *,
        progress: Callable[[int], None] | None = None,
        wait_seconds: float = 600.0,
    ) -> list[np.ndarray]:
        """Compute and store what is missing; for each store the row numbers (sequences, rows of each).

        Args:
            stores: stores of one model at several prompt layers, each once.
            progress: called with the number of sequences done.
            wait_seconds: how long to wait for another writer that adds nothing.
        """
        advance = progress or (lambda done: None)
        for store in stores:
            store.refresh()
        if not any(len(self.missing(store)) for store in stores):  # all there: nothing is locked or written
            advance(len(self.keys))
            return [self.hold(store) for store in stores]
        with _all_writing(stores, wait_seconds):
            missing = np.unique(np.concatenate([self.missing(store) for store in stores])).tolist()
            once = {self.keys[i][0]: i for i in missing}
            order = sorted(once.values(), key=lambda i: self.computed[i])
            advance(len(self.keys) - len(order))
            for batch in batches_of([self.computed[i] for i in order]):
                sequences = [order[j] for j in batch]
                lacking = [s for s in stores if not all(s.has(key) for i in sequences for key in self.keys[i])]
                for store, states in zip(lacking, self.compute(sequences, lacking), strict=True):
                    absent = [key for key in states if not store.has(key)]
                    store.append(absent, [states[key] for key in absent])
                advance(len(sequences))
            for store in stores:
                store.sync()
            return [self.hold(store) for store in stores]  # before another may prune them


class SourceStates(NeededStates):
    """The states of token sequences, one row each.

    Args:
        token_ids: token sequences, special tokens included, no padding.
        token_type_ids: their token types, or None.

    Raises:
        LatePromptError: an empty sequence.
    """

    def __init__(self, token_ids: Sequence[Ids], token_type_ids: Sequence[Ids | None] | None = None) -> None:
        lengths = [len(ids) for ids in token_ids]
        if 0 in lengths:
            raise LatePromptError(f"token sequence {lengths.index(0)} is empty; give at least one token")
        super().__init__([[key] for key in keys_of(token_ids, token_type_ids)], lengths, lengths)
        self.ids = token_ids
        self.types = token_type_ids or [None] * len(token_ids)

    def compute(self, sequences: Sequence[int], stores: Sequence[TrunkStates]) -> list[dict[bytes, torch.Tensor]]:
        """In one pass of the longest trunk."""
        layers = [store.prompt_layer for store in stores]
        split = stores[layers.index(max(layers))].split
        assert split is not None
        ids = [self.ids[i] for i in sequences]
        states = run_trunk(split, ids, [self.types[i] for i in sequences], layers)
        return [
            {
                self.keys[i][0]: pool(row[: len(row_ids)], store.pooling)
                for i, row, row_ids in zip(sequences, rows, ids, strict=True)
            }
            for store, rows in zip(stores, states, strict=True)
        ]


def pool(states: torch.Tensor, pooling: str | None) -> torch.Tensor:
    """What is kept of a sequence's states (length, hidden): all, or one (1, hidden)."""
    if pooling is None:
        return states
    states = states.float()
    return states.mean(0, keepdim=True) if pooling == "mean" else states[-1:] if pooling == "last" else states[:1]


class FrozenTrunk:
    """A trunk that computes states: a view of the frozen model, always in eval mode."""

    def __init__(self, trunk: nn.Module) -> None:
        self.trunk: Any = trunk


def fill_stores(
    stores: Sequence[TrunkStates],
    token_ids: Sequence[Ids],
    token_type_ids: Sequence[Ids | None] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    wait_seconds: float = 600.0,
) -> list[np.ndarray]:
    """Fill stores of one model at several prompt layers in one pass of the longest trunk; row numbers for each."""
    for i, store in enumerate(stores):
        if store.split is None:
            raise LatePromptError(
                f"trunk states {str(store.folder)!r} were opened without a model; use TrunkStates.open to fill"
            )
        if any(store.folder == other.folder for other in stores[:i]):
            raise LatePromptError(f"trunk states {str(store.folder)!r} are given twice; give each prompt layer once")
    needed = SourceStates(token_ids, token_type_ids)
    return [numbers[:, 0] for numbers in needed.fill(stores, progress=progress, wait_seconds=wait_seconds)]


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
def run_trunk(
    split: FrozenTrunk, ids: Sequence[Ids], types: Sequence[Ids | None], prompt_layers: Sequence[int]
) -> list[torch.Tensor]:
    """States (batch, length, hidden) of one batch at each prompt layer, the deepest of which is the split's."""
    weight = next(split.trunk.parameters())
    tokens, mask = pad(ids)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if any(kind is not None for kind in types):
        inputs["token_type_ids"], _ = pad([() if kind is None else kind for kind in types], width=tokens.shape[1])
    inputs = {name: part.to(weight.device) for name, part in inputs.items()}
    deepest = max(prompt_layers)
    several = any(layer != deepest for layer in prompt_layers)
    extra: dict[str, Any] = {"use_cache": False} if getattr(split.trunk.config, "use_cache", None) else {}
    was_training = split.trunk.training
    split.trunk.eval()  # a pure function of the text
    try:
        with cpu_kernels(weight.device, weight.dtype):
            output = split.trunk(**inputs, **extra, output_hidden_states=several, return_dict=True)
    finally:
        split.trunk.train(was_training)
    return [output.last_hidden_state if layer == deepest else output.hidden_states[layer] for layer in prompt_layers]
