"""What the address of cached states depends on, and how far results depend on what a store held before."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import make_rows
from peft import get_peft_model
from test_fill import RECIPE, ROWS, classifier
from test_store import sequences
from tiny_models import tiny_model
from torch import nn

from lateprompt import LatePromptConfig
from lateprompt.data import Row
from lateprompt.state_cache import TrunkStates, keys
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.loop import fit, trainable_parameters
from lateprompt.utils.errors import LatePromptError


@pytest.fixture
def filled(tmp_path):
    """A folder with a filled store, its model, and a question: are the states still found?"""
    model, ids = tiny_model("bert"), sequences(5)
    TrunkStates.open(tmp_path, model, 2).fill(ids)
    return model, lambda: bool((TrunkStates.open(tmp_path, model, 2).find(ids) >= 0).all())


def test_the_same_code_finds_its_states(filled):
    _, found = filled
    assert found()


def test_another_transformers_misses(filled, monkeypatch):
    _, found = filled
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    assert not found()


@pytest.mark.parametrize("name", ["transformers.models.bert.modeling_bert", "lateprompt.backbone.split"])
def test_an_edited_modelling_file_misses(name, filled, monkeypatch, tmp_path):
    _, found = filled
    edited = tmp_path / "edited.py"
    edited.write_bytes(keys._source(name) + b"\n# another formula\n")
    monkeypatch.setattr(sys.modules[name], "__file__", str(edited))
    assert not found()


def test_a_class_of_ones_own_is_part_of_the_address(filled, monkeypatch, tmp_path):
    model, found = filled
    module = ModuleType("own_layers")
    module.__file__ = str(tmp_path / "own_layers.py")
    (tmp_path / "own_layers.py").write_text("class Wider: ...")
    monkeypatch.setitem(sys.modules, "own_layers", module)
    layer = model.encoder.layer[0]
    layer.__class__ = type("Own", (type(layer),), {"__module__": "own_layers"})
    first = keys.code_fingerprint(model)
    assert not found()
    (tmp_path / "own_layers.py").write_text("class Wider: pass")
    assert keys.code_fingerprint(model) != first


def test_the_attention_kernel_is_part_of_the_address(filled):
    model, found = filled
    model.set_attn_implementation("eager")
    assert not found()
    model.set_attn_implementation("sdpa")
    assert found()


# -- how far a store's past reaches ---------------------------------------------------------------------------------


def trained(model, folder, states_dtype, dtype, past):
    tuned = classifier(model, dtype=dtype)
    feed = tuned.batches(ROWS)
    if past:  # a few rows at a time, among shorter and longer ones
        texts = [" ".join([row["text"]] * (1 + i % 4)) for i, row in enumerate(make_rows(60, 100))]
        others = tuned.batches([Row(text, None, "positive", {}) for text in texts])
        store = TrunkStates.open(folder, tuned.model, 2, dtype=states_dtype)
        for i in range(0, 40, 3):
            store.fill([e.input_ids for e in (*feed.examples[i : i + 3], *others.examples[i : i + 7])])
    (kept,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(folder), states_dtype=states_dtype))
    assert isinstance(kept, CachedBatches)
    states = [kept.store.get([number])[0].float() for number in kept.numbers]
    recipe = replace(RECIPE, max_steps=30)
    fit(tuned.model, tuned.readout, kept, None, recipe, metrics=("accuracy",), device=tuned.device)
    return states, {name: p.detach().clone() for name, p in trainable_parameters(tuned.model).items()}


# The bounds that docs/performance.md gives: of a state's largest value, and of a parameter's norm after 30 steps.
BOUNDS = {
    ("float32", "auto"): (5e-6, 2e-5),
    ("float32", "bfloat16"): (1e-2, 1e-3),
    ("float32", "int8"): (1e-2, 1e-3),
    ("bfloat16", "auto"): (2e-2, 5e-2),
}


@pytest.mark.parametrize(("dtype", "states_dtype"), BOUNDS)
@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
def test_results_hardly_depend_on_what_the_store_held(kind, dtype, states_dtype, request, tmp_path):
    model = request.getfixturevalue(kind)
    fresh, first = trained(model, tmp_path / "fresh", states_dtype, dtype, past=False)
    used, second = trained(model, tmp_path / "used", states_dtype, dtype, past=True)
    of_states, of_parameters = BOUNDS[dtype, states_dtype]
    largest = max(state.abs().max() for state in fresh)
    assert max((a - b).abs().max() for a, b in zip(fresh, used, strict=True)) <= of_states * largest
    for name, value in first.items():
        assert (second[name] - value).norm() <= of_parameters * value.norm(), name


# -- several devices ------------------------------------------------------------------------------------------------


def replica(module: nn.Module) -> nn.Module:
    """A module as `torch.nn.parallel.replicate` copies it for a device."""
    copy = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        setattr(copy, name, parameter)
    for name, buffer in module._buffers.items():
        copy._buffers[name] = buffer
    return copy


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForSequenceClassification"])
def test_replicas_of_data_parallel_are_refused_with_advice(kind):
    model = get_peft_model(tiny_model("bert", kind), LatePromptConfig(prompt_layer=2))
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(LatePromptError, match=r"accelerate launch.*CUDA_VISIBLE_DEVICES"):
        replica(model)(**batch)
    model(**batch)  # the original works on
    assert nn.DataParallel(model)(**batch) is not None  # no GPU, or one: nothing is copied
