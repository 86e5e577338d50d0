"""Stored states of label words of several tokens: each row's source as ever, and each label's words behind it.

A label's words are a row of their own in the store, which holds their positions alone: all but the last word, which is
no input. One packed pass of the trunk gives a source and all its labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.packed import packed_trunk
from lateprompt.data.padding import pad
from lateprompt.state_cache.batches import CachedBatches as CachedBatches
from lateprompt.state_cache.keys import row_key
from lateprompt.state_cache.row_store import Ids
from lateprompt.state_cache.store import NeededStates, TrunkStates


class LabelWordStates(NeededStates):
    """The states of some sources, and of the labels' words behind each: one row for the source, one for each label.

    Labels of one word have no row: what predicts them is the source's end.

    Args:
        layer: the late backbone.
        sources: token ids of the sources.
        continuations: of each label, the token ids behind a source (`Readout.continuations`).
    """

    def __init__(self, layer: LateBackbone, sources: Sequence[Ids], continuations: Sequence[Sequence[int]]) -> None:
        self.layer = layer
        self.sources = [list(source) for source in sources]
        self.words = [list(words) for words in continuations]
        self.tokens, _ = pad(self.words)
        keys = [[row_key(source), *self._behind(source)] for source in self.sources]
        stored = [len(source) + sum(map(len, self.words)) for source in self.sources]
        super().__init__(keys, stored, [len(source) + self.tokens.numel() for source in self.sources])

    def _behind(self, source: list[int]) -> list[bytes]:
        """The addresses of the labels' words behind a source."""
        return [row_key(source + words, last=len(words)) for words in self.words if words]

    def compute(self, sequences: Sequence[int], stores: Sequence[TrunkStates]) -> list[dict[bytes, torch.Tensor]]:
        """In one packed pass of each store's trunk."""
        sources = [self.sources[i] for i in sequences]
        ids, mask = pad(sources)
        ends = torch.tensor([len(source) - 1 for source in sources])
        tokens = self.tokens.expand(len(sources), -1, -1)
        device, _ = self.layer.placement
        given = [part.to(device) for part in (ids, mask, ends, tokens)]
        found: list[dict[bytes, torch.Tensor]] = []
        for store in stores:
            self.layer.late_mode(store.prompt_layer)  # the trunk in eval mode: a pure function of the text
            states = packed_trunk(self.layer, store.prompt_layer, *given).cpu()
            behind = states[:, ids.shape[1] :].unflatten(1, self.tokens.shape)
            found.append({})
            for i, source, own, words in zip(sequences, sources, states, behind, strict=True):
                of_labels = [row[: len(tokens)] for row, tokens in zip(words, self.words, strict=True) if tokens]
                found[-1].update(zip(self.keys[i], [own[: len(source)], *of_labels], strict=True))
        return found


PhraseStates, PhraseFeed = LabelWordStates, CachedBatches
"""Names of earlier releases."""
