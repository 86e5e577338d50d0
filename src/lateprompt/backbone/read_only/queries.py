"""The queries of a read pass: where they start from, where they stand, and which of them see each other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lateprompt.backbone.families import Family


@dataclass(frozen=True)
class Queries:
    """Vectors that go through the tail, reading the text: prompts, and what is written behind them.

    Args:
        start: (batch, queries, hidden), each at the layer after which it enters.
        places: (batch, queries or 1), the position in the text that each stands at.
        positions: the same for rotary angles, (batch, queries), or None: the same numbers.
        groups: the queries are so many groups of equal size; one sees those of its own group.
        sees_own: (batch or 1, groups or 1, size, size), which of them; None: all.
        layers: the layers after which they enter, in rising order: one a row, or one a query (`by_query`); a single
            entry counts for all.
        by_query: see `layers`.
        prompts: of a group, the first so many are prompts, which no window hides; None: all.
        hides: (batch, length), positions of the text that no query sees: the anchor's, and what is written; or (batch,
            queries, length), where that differs from query to query.
    """

    start: torch.Tensor
    places: torch.Tensor
    positions: torch.Tensor | None
    groups: int
    sees_own: torch.Tensor | None
    layers: Sequence[int]
    hides: torch.Tensor
    by_query: bool = False
    prompts: int | None = None

    @property
    def prompt_layer(self) -> int:
        """The lowest layer after which some enter."""
        return self.layers[0]

    def active(self, layer: int) -> tuple[int, int]:
        """How many rows and queries have entered before the layer above `layer`."""
        rows, queries = self.start.shape[:2]
        if len(self.layers) == 1:
            return rows, queries
        entered = bisect_right(self.layers, layer)
        return (rows, entered) if self.by_query else (entered, queries)

    def sees_text(self, mask: torch.Tensor, family: Family, window: int | None) -> torch.Tensor:
        """What each query sees of the text (batch, queries or 1, length).

        Args:
            mask: (batch, length), true where the text is.
            family: whether a position sees only those before it.
            window: how far a layer looks, or None.
        """
        hides = self.hides if self.hides.ndim == 3 else self.hides[:, None]
        seen = mask[:, None] & ~hides
        if not family.causal and window is None:
            return seen
        columns = torch.arange(mask.shape[1], device=mask.device)
        distance = self.places[..., None] - columns
        if family.causal:
            seen = seen & (distance >= 0)
            return seen if window is None else seen & (distance < window)
        return seen & (distance.abs() <= int(window or 0))

    def own_of(self, rows: int, queries: int, window: int | None) -> tuple[int, torch.Tensor | None]:
        """Groups of the first so many queries, and which of a group see each other within a layer's window."""
        size = self.start.shape[1] // self.groups
        groups, sees = queries // size, self.sees_own
        if sees is None:
            return groups, None
        sees = sees[:rows] if len(sees) > 1 else sees
        sees = sees[:, :groups] if sees.shape[1] > 1 else sees
        if window is not None and self.prompts is not None:
            places = self.places[:rows].unflatten(1, (self.groups, size))[:, :groups]
            near = places[..., None] - places[..., None, :] < window
            near[..., : self.prompts] = True
            sees = sees & near
        return groups, sees


def window_of(config: object, family: Family, layer: int) -> int | None:
    """How far the layer above `layer` looks, by the whole model's config; None: everywhere."""
    if family.window == "by_type":
        types = getattr(config, "layer_types", None) or ()
        sliding = layer < len(types) and types[layer] == "sliding_attention"
        return int(config.sliding_window) if sliding else None  # type: ignore[attr-defined]
    if family.window == "single":
        window = getattr(config, "sliding_window", None)
        return None if window is None else int(window)
    if family.window == "buffer":
        return int(config.window_size) if config.attention_layers[layer] == "local" else None  # type: ignore[attr-defined]
    return None
