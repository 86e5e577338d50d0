"""Many tasks' read-only prompts in one pass: the same as each alone, with gradients, on all families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from lateprompt import LatePromptConfig
from tests.tiny_models import CONFIGS, DECODERS, tiny_batch, tiny_model

FAMILIES = tuple(CONFIGS)
TASKS: dict[str, dict[str, Any]] = {
    "a": {"prompt_layer": 2, "num_prompt_tokens": 2},
    "b": {"prompt_layer": 1, "num_prompt_tokens": 5},
    "c": {"prompt_layer": 2, "num_prompt_tokens": 3, "generator": "fixed"},
    "d": {"prompt_layer": 2, "num_prompt_tokens": 5, "generator": "mppg"},
    "e": {"prompt_layer": 1, "num_prompt_tokens": 1},
}


def many(name: str, tasks: dict[str, dict[str, Any]] = TASKS) -> Any:
    model, base = None, tiny_model(name)
    for task, settings in tasks.items():
        config = LatePromptConfig(read_only=True, zero_init=False, bottleneck_dim=8, prompt_dropout=0.0, **settings)
        if model is None:
            model = get_peft_model(base, config, adapter_name=task)
        else:
            model.add_adapter(task, config)
    assert model is not None
    return model.eval()


def anchors(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = batch["attention_mask"]
    places: torch.Tensor = (torch.arange(1, mask.shape[1] + 1) * mask).argmax(1)
    return places


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_task_reads_as_it_does_alone(name: str, keys: bool) -> None:
    model, batch = many(name), tiny_batch(name, "right")
    layer, last = model.base_model.layer, anchors(batch)
    own = {task: last if task in "abc" or name in DECODERS else last - 1 for task in TASKS}
    with torch.no_grad():
        want = {task: layer.read_call(task, **batch, anchor=own[task]).mean for task in TASKS}
        text = layer.frozen_text(1, whole=keys, keys=keys, **batch, anchor=last)
        got = layer.read_tasks(list(TASKS), text, own)
        alone = layer.read_tasks(["d", "a"], text, own)
    for task in TASKS:
        torch.testing.assert_close(got[task], want[task], atol=1e-5, rtol=1e-5)
    for task, mean in alone.items():
        torch.testing.assert_close(mean, got[task], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "mpnet", "deberta-v2", "gpt2", "llama"])
def test_gradients_are_those_of_each_alone(name: str) -> None:
    model, batch = many(name), tiny_batch(name, "right")
    layer, anchor = model.base_model.layer, anchors(batch)
    for parameter in layer.late_prompt_generators.parameters():
        parameter.requires_grad_(True)
    text = layer.frozen_text(1, keys=True, **batch, anchor=anchor)
    got = layer.read_tasks(list(TASKS), text)
    sum((mean**2).sum() for mean in got.values()).backward()
    for task in TASKS:
        own = list(layer.late_prompt_generators[task].parameters())
        mean = layer.read_call(task, **batch, anchor=anchor).mean
        for parameter, wanted in zip(own, torch.autograd.grad((mean**2).sum(), own), strict=True):
            torch.testing.assert_close(parameter.grad, wanted, atol=1e-4, rtol=1e-4)


def test_prompts_of_one_size_have_no_filling() -> None:
    model, batch = many("roberta", {task: {"prompt_layer": 1 + (task > "b")} for task in "abcd"}), tiny_batch("roberta")
    layer = model.base_model.layer
    with torch.no_grad():
        text = layer.frozen_text(1, **batch)
        got = layer.read_tasks("dcba", text)
        for task in "abcd":
            torch.testing.assert_close(got[task], layer.read_call(task, **batch).mean, atol=1e-5, rtol=1e-5)
