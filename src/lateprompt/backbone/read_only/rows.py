"""Read-only prompts of a batch of rows: each row's adapter makes its own, and all go through the layers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lateprompt.backbone.call_context import LateCall, states_at
from lateprompt.backbone.late_pass import mean_state, prompt_of
from lateprompt.backbone.read_only.queries import Queries
from lateprompt.backbone.read_only.read_pass import read_pass
from lateprompt.backbone.read_only.text import FrozenText, frozen_text
from lateprompt.backbone.read_only.views import FrozenViews, query_view
from lateprompt.backbone.views import PromptSlot, Views
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class Behind:
    """Positions behind the sources: queries too, which see the prompt in the anchor's place.

    Args:
        states: (rows, width, hidden), at the layer after which the prompt enters.
        places: (rows, width), where they stand.
        sees: (rows or 1, width, width), which of them see each other.
        hides: (rows, length), the text's positions that they are; None: they are none of the text's.
        is_written: (rows, width), which of them are no filling; None: all.
    """

    states: torch.Tensor
    places: torch.Tensor
    sees: torch.Tensor
    hides: torch.Tensor | None = None
    is_written: torch.Tensor | None = None


@dataclass(frozen=True)
class Read:
    """What a read pass gives.

    Args:
        text: the frozen text.
        rows: (read rows,), the rows of the batch that have a prompt; None: all, in their order.
        prompt: (read rows, k, hidden), the backbone's output for the prompts.
        mean: (read rows, hidden), its mean over each row's own prompt vectors.
        written: (read rows, width, hidden), the output for the positions behind the source; None: there are none.
        behind: what these positions are.
        own_keys: of each layer above the prompt, keys and values of the prompts and of what is behind the sources
            (read rows, heads for keys, k + written, width).
    """

    text: FrozenText
    rows: torch.Tensor | None
    prompt: torch.Tensor
    mean: torch.Tensor
    written: torch.Tensor | None
    behind: Behind | None
    own_keys: list[tuple[torch.Tensor, torch.Tensor]]

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Values (read rows, …) in the order of the batch."""
        return values if self.rows is None else values[self.rows.argsort()]

    def output(self) -> torch.Tensor:
        """The text's output (batch, length, hidden), with the prompts' mean at the anchors and what is written behind.

        Everywhere else it is the frozen model's own.
        """
        last = self.text.last
        assert last is not None
        rows = torch.arange(len(last), device=last.device) if self.rows is None else self.rows
        last = last.index_put((rows, self.text.anchor[rows]), self.mean.to(last.dtype))
        if self.written is None or self.behind is None or self.behind.is_written is None:
            return last
        places, is_written = self.behind.places, self.behind.is_written
        at = rows[:, None].expand_as(places)[is_written], places[is_written]
        return last.index_put(at, self.written[is_written].to(last.dtype))


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
    behind: Behind | None = None,
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
        behind: what stands behind the sources and is not in the call's text, with one adapter for all rows; None: what
            the call's source mask leaves out there.

    Raises:
        LatePromptError: the call's states are those of one layer, and the adapters read several.
    """
    used = [names] if isinstance(names, str) else [name for name in dict.fromkeys(names) if name in generators]
    layers = sorted({slots[name].prompt_layer for name in used})
    lowest = layers[0]
    if isinstance(call.trunk_states, torch.Tensor) and len(layers) > 1:
        raise LatePromptError(
            f"trunk_states belong to one prompt layer, but adapter_names asks for {layers}; give a mapping from layers "
            "to states"
        )
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
    of_rows = [slots[name].prompt_layer for name in of_row]
    of_rows = of_rows[:1] if len(set(of_rows)) == 1 else of_rows
    if behind is None and views.family.causal:
        behind = _written(own, of_rows)
    queries = _queries(of_rows, own, prompt, valid, behind)
    split = views.enter(PromptSlot(lowest), training)
    output, own_keys = read_pass(frozen, query_view(split), queries, own)
    k = prompt.shape[1]
    of_prompt = output[:, :k]
    mean = mean_state(of_prompt, valid)
    return Read(text, rows, of_prompt, mean, None if behind is None else output[:, k:], behind, own_keys)


def _prompts(
    slots: Mapping[str, PromptSlot], generators: Mapping[str, nn.Module], of_row: Sequence[str], text: FrozenText
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Each row's prompt (rows, k, hidden), shorter ones at the right end, and which vectors count if not all do."""
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
        prompt = prompt.index_put((rows[:, None], torch.arange(k - lengths[name], k, device=rows.device)), made)
    if len(set(lengths.values())) == 1:
        return prompt, None
    own = torch.tensor([lengths[name] for name in of_row], device=states.device)
    return prompt, torch.arange(k, device=states.device) >= k - own[:, None]


def _written(text: FrozenText, layers: Sequence[int]) -> Behind | None:
    """What the texts have behind their sources, if anything: `layers` are the rows' prompt layers, or all rows' one."""
    written = text.continuation
    width = 0 if written is None else int(written.sum(1).max())
    if written is None or not width:
        return None
    places = torch.argsort(~written, dim=1, stable=True)[:, :width]
    is_written = written.gather(1, places)
    states = text.states[layers[0]]
    if len(layers) > 1:
        states = torch.stack([text.states[layer][row] for row, layer in enumerate(layers)])
    sees = is_written[:, None] & (places[:, None] <= places[..., None])
    return Behind(states_at(states, places), places, sees, written, is_written)


def _queries(
    layers: Sequence[int],
    text: FrozenText,
    prompt: torch.Tensor,
    valid: torch.Tensor | None,
    behind: Behind | None,
) -> Queries:
    """The queries of the rows' prompts, which enter after `layers`, and of what is behind their sources."""
    k, anchor = prompt.shape[1], text.anchor[:, None]
    hides = torch.arange(text.mask.shape[1], device=anchor.device) == anchor
    if behind is None:
        positions = None if text.positions is None else _at(text.positions, anchor, len(prompt)).expand(-1, k)
        sees_own = None if valid is None else valid[:, None, None].expand(-1, -1, k, -1)
        return Queries(prompt, anchor, positions, 1, sees_own, layers, hides)
    sees, width = behind.sees, behind.places.shape[1]
    of_prompt = sees.new_ones(1, k) if valid is None else valid
    rows = max(len(sees), len(of_prompt))
    nothing = sees.new_zeros(1, k, width)
    to_prompt = of_prompt[:, None].expand(rows, k + width, -1)
    to_behind = torch.cat([nothing.expand(rows, -1, -1), sees.expand(rows, -1, -1)], 1)
    places = torch.cat([anchor.expand(-1, k), behind.places], 1)
    return Queries(
        torch.cat([prompt, behind.states.to(prompt)], 1),
        places,
        None if text.positions is None else _at(text.positions, places, len(prompt)),
        1,
        torch.cat([to_prompt, to_behind], 2)[:, None],
        layers,
        hides if behind.hides is None else hides | behind.hides,
        prompts=k,
    )


def _at(positions: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    return positions.expand(rows, -1).gather(1, places)
