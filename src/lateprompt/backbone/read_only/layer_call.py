"""`LayerCall`: what one layer of a `QueryView` is told for one call."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from lateprompt.backbone.read_only.attention import Reading


@dataclass(frozen=True)
class LayerCall:
    """Which queries a layer computes, and what they see.

    Queries are sorted by the layer that their prompts enter after, along the rows (each row its own adapter) or along
    the queries (every text all tasks): those that come later pass through.

    Args:
        rows, queries: the first so many are computed here.
        reading: what they attend to.
        text_states: (rows, length, hidden), for layers that run on text and queries together.
        text_mask: (rows, length), true where the text is, for such layers.
        relative: (1, rows · heads, length + queries, the same), relative positions for such layers,
            or None.
        kernel: the model's attention kernel, which says what a mask looks like.
    """

    rows: int
    queries: int
    reading: Reading
    text_states: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    relative: torch.Tensor | None = None
    kernel: str = "sdpa"

    def active(self, value: Any) -> Any:
        """The computed part of a tensor (batch or 1, queries, …), or of each of a tuple of such."""
        if isinstance(value, tuple):
            return tuple(self.active(part) for part in value)
        return value[: self.rows, : self.queries]

    def together(self, computed: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The computed part in its place among all queries (batch, queries, hidden)."""
        batch, queries = hidden.shape[:2]
        if self.queries < queries:
            computed = torch.cat([computed, hidden[: self.rows, self.queries :]], 1)
        if self.rows < batch:
            computed = torch.cat([computed, hidden[self.rows :]], 0)
        return computed

    def with_text(self, queries: torch.Tensor) -> torch.Tensor:
        """Text and queries (rows, length + queries, hidden)."""
        assert self.text_states is not None
        return torch.cat([self.text_states.to(queries.dtype), queries], 1)

    def whole_arguments(self, signature: inspect.Signature) -> dict[str, Any]:
        """Mask and relative positions of text and queries together, which hide the queries from the text."""
        reading = self.reading
        assert self.text_mask is not None
        rows, _, length = reading.sees_text.shape
        device = reading.sees_text.device
        size = length + self.queries
        sees = torch.zeros(rows, size, size, dtype=torch.bool, device=device)
        sees[:, :length, :length] = self.text_mask[:, None] | torch.eye(length, dtype=torch.bool, device=device)
        sees[:, length:, :length] = reading.sees_text
        sees[:, length:, length:] = self._sees_own(device)
        mask = sees[:, None]
        if self.kernel != "sdpa" and "relative_pos" not in signature.parameters:
            assert self.text_states is not None
            dtype = self.text_states.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
        arguments: dict[str, Any] = {"attention_mask": mask}
        if self.relative is not None:
            arguments["relative_pos"] = self.relative
        return arguments

    def _sees_own(self, device: torch.device) -> torch.Tensor:
        """Which queries see each other, (rows or 1, queries, queries)."""
        groups, sees = self.reading.groups, self.reading.sees_own
        place = torch.arange(self.queries, device=device)
        group, within = place // (self.queries // groups), place % (self.queries // groups)
        together = (group[:, None] == group)[None]
        if sees is None:
            return together
        return together & sees.expand(-1, groups, -1, -1)[:, group[:, None], within[:, None], within]
