"""The frozen model's own output, pooled to one state a text: from the store that all runs share, or computed anew."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lateprompt.backbone.families import core_of, num_layers_of
from lateprompt.backbone.read_only.views import FrozenViews
from lateprompt.data import Example
from lateprompt.data.batches import sorted_batches
from lateprompt.state_cache.admin import prune_stores
from lateprompt.state_cache.fill import check_room
from lateprompt.state_cache.locking import CannotCache
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.state_cache.store import FrozenTrunk, SourceStates, TrunkStates, pool, run_trunk
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError


class PooledOutput:
    """The frozen model's own output, pooled to one state for each token sequence.

    Args:
        model: a Hugging Face model or backbone.
        pooling: mean (over the real tokens), or cls or last for the first or last token's state.

    Example:
        >>> import numpy as np
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt.data import Example
        >>> from lateprompt.state_cache.pooled import PooledOutput
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> output = PooledOutput(BertModel(BertConfig(vocab_size=100, **sizes)).eval(), "mean")
        >>> texts = [Example(np.array(ids), None, read=-1, label=0) for ids in ([2, 7, 9, 3], [2, 3])]
        >>> output.compute(texts, batch_size=2).shape  # (rows, hidden)
        (2, 16)
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        self.model, self.pooling = model, pooling
        core: Any = core_of(model)
        self.layers = num_layers_of(core)
        self.width = int(core.config.hidden_size)
        self._whole = FrozenTrunk(FrozenViews(core).below(self.layers))

    @torch.no_grad()
    def compute(
        self, examples: Sequence[Example], *, batch_size: int, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """States (rows, hidden), float32, computed anew; `progress` is called with the number of rows done."""
        found = np.zeros((len(examples), self.width), dtype=np.float32)
        for rows in sorted_batches(np.array([len(example.input_ids) for example in examples]), batch_size):
            part = [examples[i] for i in rows]
            types = [example.token_type_ids for example in part]
            (states,) = run_trunk(self._whole, [example.input_ids for example in part], types, [self.layers])
            for i, own, example in zip(rows, states, part, strict=True):
                found[i] = pool(own[: len(example.input_ids)], self.pooling)[0].cpu().numpy()
            if progress is not None:
                progress(len(rows))
        return found

    def cached(
        self, examples: Sequence[Example], settings: StatesSettings, *, batch_size: int, quiet: bool = True
    ) -> tuple[np.ndarray, float]:
        """States (rows, hidden), read from the store, which is filled first; and the seconds that computing them took.

        They are computed and not kept where states are off, or, which is said, cannot be kept.
        """
        started = time.perf_counter()
        folder = settings.folder
        if folder is not None:
            try:
                store = TrunkStates.open_pooled(folder, self.model, self.pooling)
                needed = SourceStates(
                    [example.input_ids for example in examples], [example.token_type_ids for example in examples]
                )
                missing = needed.missing(store)
                check_room([store], needed, [missing], settings.states_limit_gb * 1e9)
                with Bar("pooled states", len(examples), quiet=quiet or not len(missing)) as bar:
                    (numbers,) = needed.fill([store], progress=bar.advance)
                if len(missing):
                    with contextlib.suppress(LatePromptError):  # a folder that may be written, but not listed
                        held = store.hold(numbers.reshape(-1))
                        prune_stores(folder, settings.states_limit_gb * 1e9, keep=held)
                states = store.get(numbers[:, 0])[:, 0].float().numpy()
                return states, time.perf_counter() - started if len(missing) else 0.0
            except CannotCache as reason:
                warnings.warn(f"{reason}; until then each run computes them", stacklevel=2)
        with Bar("pooled states", len(examples), quiet=quiet) as bar:
            states = self.compute(examples, batch_size=batch_size, progress=bar.advance)
        return states, time.perf_counter() - started
