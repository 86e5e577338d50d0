"""Many tasks on the same texts: all adapters' read-only prompts as one batch of queries.

A task's vectors see the text and each other, never another task's: what one answers does not depend on which others
are asked. Prompts are laid into groups of one size, short ones together, so that little is computed on filling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lateprompt.backbone.families import Family
from lateprompt.backbone.late_pass import prompt_of
from lateprompt.backbone.read_only.queries import Queries
from lateprompt.backbone.read_only.read_pass import read_pass
from lateprompt.backbone.read_only.text import FrozenText
from lateprompt.backbone.read_only.views import FrozenViews, query_view
from lateprompt.backbone.views import PromptSlot, Views


def read_tasks(
    views: Views,
    frozen: FrozenViews,
    slots: Mapping[str, PromptSlot],
    generators: Mapping[str, nn.Module],
    names: Sequence[str],
    text: FrozenText,
    anchors: Mapping[str, torch.Tensor] | None = None,
    *,
    training: bool = False,
) -> dict[str, torch.Tensor]:
    """Let the prompts of several adapters read the same texts in one pass.

    Args:
        views: trunk and tail; a tail tuner that is active lies on the path of all prompts.
        frozen: the frozen model.
        slots: where the adapters' prompts enter.
        generators: the adapters' generators.
        names: the adapters.
        text: the texts, with the states from the lowest of the prompt layers on.
        anchors: of an adapter, the positions (batch,) that its prompt stands for, where they are not `text.anchor`; the
            same tensor for adapters that have the same.
        training: the mode of the layers that the prompts go through.

    Returns:
        By adapter the mean (batch, hidden) of the backbone's output for its prompt.
    """
    places = {name: (anchors or {}).get(name, text.anchor) for name in names}
    prompts = {
        name: prompt_of(generators[name], slots[name], text.states[slots[name].prompt_layer], text.source, places[name])
        for name in names
    }
    plan = _Plan.of({name: (slots[name].prompt_layer, prompts[name].shape[1]) for name in names})
    queries = _queries(plan, prompts, places, text)
    split = views.enter(PromptSlot(queries.prompt_layer), training)
    output, _ = read_pass(frozen, query_view(split), queries, text)
    parts = output.split(plan.sizes, 1)
    return {name: part.mean(1) for name, part in zip(plan.names, parts, strict=True) if name is not None}


@dataclass(frozen=True)
class _Plan:
    """How prompts lie among the queries: in groups of equal size, sorted by prompt layer.

    Args:
        names: of each part of the queries, the adapter; None: filling.
        sizes: how many queries each part has.
        layers: of each part, the prompt layer.
        size: queries in a group.
    """

    names: list[str | None]
    sizes: list[int]
    layers: list[int]
    size: int

    @classmethod
    def of(cls, prompts: Mapping[str, tuple[int, int]]) -> _Plan:
        """Lay out prompts of which layer and length are given: the longest first, each into the first group with room.

        A group has prompts of one layer, since it enters as a whole.
        """
        size = max(length for _, length in prompts.values())
        groups: list[tuple[int, list[str]]] = []
        room: list[int] = []
        for name, (layer, length) in sorted(prompts.items(), key=lambda item: (item[1][0], -item[1][1])):
            place = next((i for i, (own, _) in enumerate(groups) if own == layer and room[i] >= length), len(groups))
            if place == len(groups):
                groups.append((layer, []))
                room.append(size)
            groups[place][1].append(name)
            room[place] -= length
        names: list[str | None] = []
        sizes: list[int] = []
        layers: list[int] = []
        for (layer, members), left in zip(groups, room, strict=True):
            names += [*members, *([None] if left else [])]
            sizes += [*(prompts[name][1] for name in members), *([left] if left else [])]
            layers += [layer] * (len(members) + bool(left))
        return cls(names, sizes, layers, size)

    def sees_own(self, device: torch.device) -> torch.Tensor | None:
        """Which queries of a group see each other (1, groups, size, size); None: all, as each group is one prompt."""
        if len(set(self.sizes)) == 1:
            return None
        part = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).view(-1, self.size)
        return (part[:, :, None] == part[:, None])[None].to(device)


def _queries(
    plan: _Plan, prompts: Mapping[str, torch.Tensor], anchors: Mapping[str, torch.Tensor], text: FrozenText
) -> Queries:
    states = next(iter(text.states.values()))
    batch, length, hidden = states.shape
    start = torch.cat(
        [
            states.new_zeros(batch, size, hidden) if name is None else prompts[name]
            for name, size in zip(plan.names, plan.sizes, strict=True)
        ],
        1,
    )
    layers = [layer for layer, size in zip(plan.layers, plan.sizes, strict=True) for _ in range(size)]
    layers = layers[:1] if len(set(layers)) == 1 else layers
    columns = torch.arange(length, device=states.device)
    own = {id(anchor): anchor for anchor in anchors.values()}
    if len(own) == 1:
        places = next(iter(own.values()))[:, None]
        hides = columns == places
    else:
        of_part = [text.anchor if name is None else anchors[name] for name in plan.names]
        sizes = torch.tensor(plan.sizes, device=states.device)
        places = torch.stack(of_part, 1).repeat_interleave(sizes, 1)
        hides = columns == places[..., None]
    positions = None if text.positions is None else text.positions.expand(batch, -1).gather(1, places)
    groups = start.shape[1] // plan.size
    sees_own = plan.sees_own(states.device)
    return Queries(start, places, positions, groups, sees_own, layers, hides, by_query=True)


def keeps_keys(family: Family, config: Any, length: int, queries: int) -> bool:
    """Whether so many queries read a text's keys and values, which the frozen model may then leave on its way.

    Fewer ones absorb the projections where the family allows it, and read the states.
    """
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    return not family.absorbs or queries * (width + heads * length) > length * width
