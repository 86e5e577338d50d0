"""`read_pass`: queries through the layers above the prompt, reading a frozen text that never sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lateprompt.backbone.families import Family
from lateprompt.backbone.read_only.attention import Reading, TextKeys
from lateprompt.backbone.read_only.layer_call import LayerCall
from lateprompt.backbone.read_only.own_attention import reads_outside
from lateprompt.backbone.read_only.queries import Queries, window_of
from lateprompt.backbone.read_only.text import FrozenText
from lateprompt.backbone.read_only.views import FrozenViews, QueryView


def read_pass(
    frozen: FrozenViews, view: QueryView, queries: Queries, text: FrozenText
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The backbone's output (batch, queries, hidden) for queries that read a text, and their keys and values by layer.

    Args:
        frozen: the frozen model, for keys and values of the text.
        view: of the tail above the lowest prompt layer.
        queries: what goes through it.
        text: the text's states at every layer that a query goes through.
    """
    layers = range(queries.prompt_layer, frozen.num_layers)
    calls = _layer_calls(frozen, queries, text, layers)
    own_keys: list[tuple[torch.Tensor, torch.Tensor]] = []
    tail: Any = view.at(calls, own_keys)
    arguments: dict[str, Any] = {"use_cache": False} if frozen.family.causal else {}
    if hasattr(tail, "rotary_emb"):
        positions = queries.places if queries.positions is None else queries.positions
        arguments["position_ids"] = positions.expand(queries.start.shape[:2])
    output = tail(inputs_embeds=queries.start, **arguments, return_dict=True)
    return output.last_hidden_state, own_keys


def _layer_calls(frozen: FrozenViews, queries: Queries, text: FrozenText, layers: range) -> list[LayerCall]:
    family, config = frozen.family, frozen.backbone.config
    modules = frozen.layers(queries.prompt_layer)
    whole = not reads_outside(modules[0], family)
    keys = None if whole else _text_keys(frozen, modules, queries, text, layers)
    table = None
    if family.relative is not None:
        with torch.no_grad():
            table = family.relative(frozen.backbone, next(iter(text.states.values()))[:1])
    text_bias, own_bias = (None, None) if whole else _biases(table, queries.places)
    seen: dict[int | None, torch.Tensor] = {}
    calls = []
    for i, layer in enumerate(layers):
        rows, count = queries.active(layer)
        window = window_of(config, family, layer)
        if window not in seen:
            seen[window] = queries.sees_text(text.mask, family, window)
        sees = seen[window][:rows]
        sees = sees[:, :count] if sees.shape[1] > 1 else sees
        groups, own = queries.own_of(rows, count, window)
        if whole:
            states = text.states[layer][:rows]
            calls.append(
                LayerCall(
                    rows,
                    count,
                    Reading(TextKeys(), sees.expand(-1, count, -1), own, groups),
                    states,
                    text.mask[:rows],
                    _distances(table, queries.places[:rows, :count].expand(-1, count), modules[i]),
                    kernel=config._attn_implementation,
                )
            )
            continue
        assert keys is not None
        bias = None if text_bias is None else text_bias[:rows, :, :count]
        reading = Reading(_first_rows(keys[i], rows), sees, own, groups, bias, own_bias)
        calls.append(LayerCall(rows, count, reading))
    return calls


def _text_keys(
    frozen: FrozenViews, modules: list[nn.Module], queries: Queries, text: FrozenText, layers: range
) -> list[TextKeys]:
    """Of each layer, what stands for the text's keys and values: absorbed where that is less work."""
    if text.keys is not None:
        return [TextKeys(*text.keys[layer]) for layer in layers]
    states = [text.states[layer] for layer in layers]
    absorbed = [
        _absorbed(module, frozen.family, hidden, queries) for module, hidden in zip(modules, states, strict=True)
    ]
    if all(keys is not None for keys in absorbed):
        return [keys for keys in absorbed if keys is not None]
    arguments = {}
    if text.positions is not None and hasattr(frozen.backbone, "rotary_emb"):
        arguments["position_ids"] = text.positions
    return frozen.keys(queries.prompt_layer, states, arguments)


def _absorbed(module: nn.Module, family: Family, hidden: torch.Tensor, queries: Queries) -> TextKeys | None:
    """A layer's text with its projections absorbed, where it can be and is less work than computing them."""
    if not family.absorbs:
        return None
    attention: Any = module.get_submodule(family.attention_path)
    heads = getattr(attention, "num_attention_heads", None) or attention.n_heads
    length, width = hidden.shape[1:]
    # Products of a text's positions, both ways, against those of its queries, which a backward pass goes through too.
    ways = 3 if torch.is_grad_enabled() else 1
    if ways * queries.start.shape[1] * (width + heads * length) > length * width:
        return None
    key, value = (module.get_submodule(path) for path in family.projections[1:])
    if any(type(part) is not nn.Linear or part.weight.device != hidden.device for part in (key, value)):
        return None
    return TextKeys(
        hidden=hidden,
        key_weight=key.weight.detach(),  # type: ignore[operator]
        value_weight=value.weight.detach(),  # type: ignore[operator]
        key_bias=None if key.bias is None else key.bias.detach(),  # type: ignore[operator]
        value_bias=None if value.bias is None else value.bias.detach(),  # type: ignore[operator]
    )


def _first_rows(keys: TextKeys, rows: int) -> TextKeys:
    if keys.keys is not None and keys.values is not None:
        return TextKeys(keys.keys[:rows], keys.values[:rows])
    assert keys.hidden is not None
    return replace(keys, hidden=keys.hidden[:rows])


def _biases(table: torch.Tensor | None, places: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Of biases (1, heads, length, length), those of queries at `places` (batch, queries or 1) to text and queries."""
    if table is None:
        return None, None
    of_text = table[0][:, places].transpose(0, 1)
    return of_text, table[:1, :, :1, :1]


def _distances(table: torch.Tensor | None, places: torch.Tensor, module: Any) -> torch.Tensor | None:
    """Of distances (…, length, length), those among the text and queries at `places` (batch, queries)."""
    if table is None:
        return None
    table = table.reshape(table.shape[-2:])
    at = torch.cat([torch.arange(table.shape[-1], device=places.device).expand(len(places), -1), places], 1)
    heads = module.attention.self.num_attention_heads
    return table[at[:, :, None], at[:, None]].repeat_interleave(heads, 0)[None]
