"""What a comparison will cost: a model in layers, made seconds by finished runs, or by a measured product.

A step crosses a layer with each of its tokens: once forward, once backward through frozen weights (to the lowest
trained place), once more for weight gradients (full tuning). Cached states leave the tail alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.experiments.compare.plan import FULL, RunSpec
from lateprompt.methods import is_late, is_linear, parse_method
from lateprompt.methods.late_prompt import tokens_of
from lateprompt.predictors.loading import load_config
from lateprompt.training.loop import plan_steps
from lateprompt.utils.names import READ_ONLY

_TOKENS = 32
"""Tokens of a text, where none was measured."""
_ROWS = 5000
"""Rows of a whole training file, where none was measured."""


def units(spec: RunSpec) -> float:
    """Layer crossings of a run's training steps, counted in tokens."""
    rows = _ROWS if spec.shots == FULL else int(spec.shots)
    if not parse_method(spec.settings.method)[0].method.reads_model:
        return 0.0
    config: Any = load_config(spec.settings.model)
    layers = int(config.num_hidden_layers)
    if is_linear(spec.settings.method):  # each text crosses the frozen model once, unless a run has kept its state
        return float(layers * rows * _TOKENS)
    low = resolve_prompt_layer(spec.settings.prompt_layer, layers)
    parts = parse_method(spec.settings.method)
    late = is_late(spec.settings.method) and spec.states.folder is not None
    crossed: float = layers - low if late else layers
    read_only = parts[0].method.read_only
    if read_only and late:  # the text is read from its states; only the prompt's vectors cross the layers
        crossed *= tokens_of(parts[0].method.name.removeprefix(READ_ONLY), spec.settings) / _TOKENS
    extra = sum(int(spec.settings.options.get("tokens", 20)) for p in parts if p.method.name == "prompt-tuning")
    forward_only = spec.settings.method == "head" or (read_only and not late)
    per_token = 1.0 if forward_only else 2.0
    if any(part.method.name == "full" for part in parts):
        per_token = 3.0
    if any(part.method.name == "s-idpg" for part in parts):
        per_token = 3.0  # the sentence's encoding is a forward pass of its own
    recipe = spec.recipe.resolved(rows, spec.settings.method)
    _, steps = plan_steps(rows, recipe)
    return crossed * per_token * steps * recipe.batch_size * recipe.grad_accumulation * (_TOKENS + extra)


def seconds_per_unit(done: Sequence[tuple[RunSpec, Mapping[str, Any]]]) -> float | None:
    """Median over finished runs of one model; None without one."""
    rates = sorted(
        result["train_seconds"] / units(spec)
        for spec, result in done
        if result.get("train_seconds") is not None and not is_linear(spec.settings.method)
    )
    return rates[len(rates) // 2] if rates else None


def product_seconds_per_unit(spec: RunSpec) -> float:
    """A layer crossing of one token, from a matrix product of the model's width measured here."""
    config: Any = load_config(spec.settings.model)
    width = int(config.hidden_size)
    left, right = torch.randn(512, width), torch.randn(width, 4 * width)
    left @ right
    started = time.perf_counter()
    for _ in range(8):
        left @ right
    flops = 8 * 2 * 512 * width * 4 * width / (time.perf_counter() - started)
    return 2 * 12 * width**2 / (0.6 * flops)  # a layer has 12 d² weights; the rest of the step takes its share


def estimate(
    specs: Sequence[RunSpec], done: Sequence[tuple[RunSpec, Mapping[str, Any]]], start_seconds: float = 8.0
) -> tuple[list[list[str]], float, str]:
    """Rows of a table (method, runs, seconds), the seconds in all, and what they were estimated from."""
    rows: dict[str, list[float]] = {}
    rates: dict[str, tuple[float, bool]] = {}
    for spec in specs:
        model = spec.settings.model
        if model not in rates:
            measured = seconds_per_unit([pair for pair in done if pair[0].settings.model == model])
            rates[model] = (product_seconds_per_unit(spec), False) if measured is None else (measured, True)
        rows.setdefault(spec.name, []).append(units(spec) * rates[model][0])
    table = [[name, str(len(values)), f"{sum(values) + start_seconds:.0f}"] for name, values in rows.items()]
    total = sum(sum(values) + start_seconds for values in rows.values())
    known = all(measured for _, measured in rates.values())
    source = "runs that have finished" if known else "a matrix product measured here: rough, until some have finished"
    return table, total, source
