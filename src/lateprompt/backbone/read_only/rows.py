"""Read-only prompts of a batch of rows: each row's adapter makes its own, and all go through the layers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lateprompt.backbone.call_context import LateCall
from lateprompt.backbone.late_pass import prompt_of
from lateprompt.backbone.read_only.queries import Queries
from lateprompt.backbone.read_only.read_pass import read_pass
from lateprompt.backbone.read_only.text import FrozenText, frozen_text
from lateprompt.backbone.read_only.views import FrozenViews, query_view
from lateprompt.backbone.views import PromptSlot, Views


@dataclass(frozen=True)
class Read:
    """What a read pass gives.

    Args:
        text: the frozen text.
        rows: (read rows,), the rows of the batch that have a prompt; None: all, in their order.
        prompt: (read rows, k, hidden), the backbone's output for the prompts.
        mean: (read rows, hidden), its mean over each row's own prompt vectors.
        written: (read rows, width, hidden), the output for the positions behind the source; None: there are none.
        places: (read rows, width), which positions these are.
        is_written: (read rows, width), which of them are no filling.
        own_keys: of each layer above the prompt, the prompts' keys and values (read rows, heads for keys, k, width).
    """

    text: FrozenText
    rows: torch.Tensor | None
    prompt: torch.Tensor
    mean: torch.Tensor
    written: torch.Tensor | None
    places: torch.Tensor | None
    is_written: torch.Tensor | None
    own_keys: list[tuple[torch.Tensor, torch.Tensor]]

    def output(self) -> torch.Tensor:
        """The text's output (batch, length, hidden), with the prompts' mean at the anchors and what is written behind.

        Everywhere else it is the frozen model's own.
        """
        last = self.text.last
        assert last is not None
        rows = torch.arange(len(last), device=last.device) if self.rows is None else self.rows
        last = last.index_put((rows, self.text.anchor[rows]), self.mean.to(last.dtype))
        if self.written is None or self.places is None or self.is_written is None:
            return last
        at = rows[:, None].expand_as(self.places)[self.is_written], self.places[self.is_written]
        return last.index_put(at, self.written[self.is_written].to(last.dtype))


def read_rows(
    views: Views,
    frozen: FrozenViews,
    slots: Mapping[str, PromptSlot],
    generators: Mapping[str, nn.Module],
    names: str | Sequence[str],
    call: LateCall,
    *,
    training: bool,
    whole: bool,
) -> Read:
    """Make each row's prompt and let all of them read their texts.

    Args:
        views: trunk and tail, for the layers that the prompts go through.
        frozen: the frozen model.
        slots: where the adapters' prompts enter.
        generators: the adapters' generators.
        names: one adapter for all rows, or each row's; rows whose adapter has no generator get no prompt.
        call: the call.
        training: the mode of the layers that the prompts go through.
        whole: whether the frozen model's own output is wanted.
    """
    used = [names] if isinstance(names, str) else [name for name in dict.fromkeys(names) if name in generators]
    lowest = min(slots[name].prompt_layer for name in used)
    text = frozen_text(frozen, call, lowest, whole=whole)
    if isinstance(names, str):
        rows, own = None, text
        of_row: list[str] = [names]
    else:
        order = sorted((slots[name].prompt_layer, row) for row, name in enumerate(names) if name in generators)
        of_row = [names[row] for _, row in order]
        rows = torch.tensor([row for _, row in order], device=text.mask.device)
        own = text.rows(rows)
    prompt, valid = _prompts(slots, generators, of_row, own)
    queries, written = _queries(slots, of_row, own, prompt, valid)
    split = views.enter(PromptSlot(lowest), training)
    output, own_keys = read_pass(frozen, query_view(split), queries, own)
    k = prompt.shape[1]
    of_prompt = output[:, :k]
    if valid is None:
        mean = of_prompt.mean(1)
    else:
        weights = valid.to(of_prompt.dtype)[..., None]
        mean = (of_prompt * weights).sum(1) / weights.sum(1).clamp(min=1)
    keys = [(key[:, :, :k], value[:, :, :k]) for key, value in own_keys]
    if written is None:
        return Read(text, rows, of_prompt, mean, None, None, None, keys)
    places, is_written = written
    return Read(text, rows, of_prompt, mean, output[:, k:], places, is_written, keys)


def _prompts(
    slots: Mapping[str, PromptSlot], generators: Mapping[str, nn.Module], of_row: Sequence[str], text: FrozenText
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Each row's prompt (rows, k, hidden), and which of its vectors count where that differs."""
    if len(set(of_row)) == 1:
        name = of_row[0]
        return prompt_of(
            generators[name], slots[name], text.states[slots[name].prompt_layer], text.source, text.anchor
        ), None
    lengths = {name: int(generators[name].num_prompt_tokens) for name in set(of_row)}  # type: ignore[arg-type]
    k, states = max(lengths.values()), next(iter(text.states.values()))
    prompt = states.new_zeros(len(of_row), k, states.shape[-1])
    for name in dict.fromkeys(of_row):
        rows = torch.tensor([row for row, own in enumerate(of_row) if own == name], device=states.device)
        at = text.states[slots[name].prompt_layer][rows]
        made = prompt_of(generators[name], slots[name], at, text.source[rows], text.anchor[rows])
        prompt = prompt.index_put((rows[:, None], torch.arange(lengths[name], device=rows.device)), made)
    if len(set(lengths.values())) == 1:
        return prompt, None
    own = torch.tensor([lengths[name] for name in of_row], device=states.device)
    return prompt, torch.arange(k, device=states.device) < own[:, None]


def _queries(
    slots: Mapping[str, PromptSlot],
    of_row: Sequence[str],
    text: FrozenText,
    prompt: torch.Tensor,
    valid: torch.Tensor | None,
) -> tuple[Queries, tuple[torch.Tensor, torch.Tensor] | None]:
    """The queries of the rows' prompts and of what is written behind their sources, and where the latter stands."""
    layers = [slots[name].prompt_layer for name in of_row]
    layers = layers[:1] if len(set(layers)) == 1 else layers
    k, anchor = prompt.shape[1], text.anchor[:, None]
    columns = torch.arange(text.mask.shape[1], device=anchor.device)
    hides = columns == anchor
    written = text.continuation
    width = int(written.sum(1).max()) if _may_write(text) else 0
    if not width:
        positions = None if text.positions is None else _at(text.positions, anchor, len(prompt)).expand(-1, k)
        sees_own = None if valid is None else valid[:, None, None]
        sees_own = None if sees_own is None else sees_own.expand(-1, -1, k, -1)
        return Queries(prompt, anchor, positions, 1, sees_own, layers, hides), None
    places = torch.argsort(~written, dim=1, stable=True)[:, :width]
    is_written = written.gather(1, places)
    start = torch.stack([text.states[layer][row] for row, layer in enumerate(layers)]) if len(layers) > 1 else None
    states = text.states[layers[0]] if start is None else start
    behind = states[torch.arange(len(states), device=states.device)[:, None], places]
    all_places = torch.cat([anchor.expand(-1, k), places], 1)
    sees = is_written[:, None] & (places[:, None] <= places[..., None])
    of_prompt = torch.ones(len(places), k, dtype=torch.bool, device=places.device) if valid is None else valid
    sees_own = torch.cat(
        [
            torch.cat([of_prompt[:, None].expand(-1, k, -1), sees.new_zeros(len(sees), k, width)], 2),
            torch.cat([of_prompt[:, None].expand(-1, width, -1), sees], 2),
        ],
        1,
    )[:, None]
    positions = None if text.positions is None else _at(text.positions, all_places, len(prompt))
    hides = hides | written
    start = torch.cat([prompt, behind], 1)
    return Queries(start, all_places, positions, 1, sees_own, layers, hides, prompts=k), (places, is_written)


def _may_write(text: FrozenText) -> bool:
    return text.source is not text.mask


def _at(positions: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    return positions.expand(rows, -1).gather(1, places)
