"""The states of all layers that a read-only prompt reads: kept once, shared by prompt layers, and the same result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_rows

from lateprompt.cli.app import main
from lateprompt.data import Row, load_task
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.state_cache import list_stores
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.loop import fit, rows_needed, trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings

ROWS = [Row(row["text"], None, row["label"], row) for row in make_rows(40)]
RECIPE = RecipeSettings(epochs=3, batch_size=8, lr=5e-3, seed=3)
LAYERS = 4
KINDS = ["masked_lm", "causal_lm", "headless"]


def classifier(model, prompt_layer=2, method="read-npg"):
    settings = ModelSettings(model=model, prompt_layer=prompt_layer, bottleneck_dim=8, method=method)
    return TextClassifier.build(settings, load_task("sst2"), seed=3)


def cached(tuned, states):
    feed = tuned.batches(ROWS)
    (feed,), seconds = tuned.cached([(feed, np.arange(len(feed)))], states)
    return feed, seconds


def train(model, states, **settings):
    tuned = classifier(model, **settings)
    feed = tuned.batches(ROWS)
    (feed,), _ = tuned.cached([(feed, rows_needed(feed, RECIPE))], states)
    result = fit(tuned.model, tuned.readout, feed, feed, RECIPE, metrics=("accuracy",), device=tuned.device)
    weights = {name: p.detach() for name, p in trainable_parameters(tuned.model).items()}
    return feed, weights, [entry["dev_accuracy"] for entry in result.history]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["read-npg", "read-npg+lora"])
def test_the_same_result_wherever_states_are(kind, method, request, tmp_path):
    model = request.getfixturevalue(kind)
    feed, want, accuracy = train(model, StatesSettings(str(tmp_path), states_layers="all"), method=method)
    assert len(feed.above) == LAYERS - 3
    choices = {
        "prompt": StatesSettings(str(tmp_path / "prompt"), states_layers="prompt"),
        "off": StatesSettings("off"),
        "without keys": StatesSettings(str(tmp_path), states_layers="all", keys_memory_gb=0),
        "few keys": StatesSettings(str(tmp_path), states_layers="all", keys_memory_gb=2e-5),
    }
    for name, states in choices.items():
        _, weights, other = train(model, states, method=method)
        assert weights.keys() == want.keys()
        for key, value in want.items():
            assert (weights[key] - value).norm() <= 1e-5 * value.norm() + 1e-7, (name, key)
        assert other == accuracy
    assert len(accuracy) == RECIPE.epochs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_each_layer_s_states_are_the_frozen_model_s(kind, dtype, most, request, tmp_path):
    tuned = classifier(request.getfixturevalue(kind))
    feed, _ = cached(tuned, StatesSettings(str(tmp_path), states_dtype=dtype, states_layers="all"))
    batch = feed.batch(np.array([0, 7, 12]))
    core = tuned.layer.base_layer.eval()
    with torch.no_grad(), tuned.model.disable_adapter():
        frozen = core(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    real = batch.attention_mask.bool()
    assert sorted(batch.layer_states) == [2, 3]
    for layer, states in batch.layer_states.items():
        want = frozen.hidden_states[layer][real]
        assert (states.float()[real] - want).norm() <= most * want.norm(), layer
    if kind == "headless":  # its head reads the mean of the whole model's output, kept in fp32
        weights = batch.attention_mask[..., None].float()
        want = (frozen.last_hidden_state * weights).sum(1) / weights.sum(1)
        torch.testing.assert_close(batch.pooled_states, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fill_serves_several_prompt_layers(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    states = StatesSettings(str(tmp_path), states_layers="all")
    assert cached(classifier(model, prompt_layer=2), states)[1] > 0
    assert cached(classifier(model, prompt_layer=3, method="read-fixed"), states)[1] == 0.0
    assert cached(classifier(model, prompt_layer=2, method="npg"), states)[1] == 0.0  # an ordinary late prompt too
    assert cached(classifier(model, prompt_layer=1), states)[1] > 0  # a layer that nobody has asked for


def test_auto_chooses_by_size(masked_lm, tmp_path):
    layers = {}
    feed, _ = cached(classifier(masked_lm), StatesSettings(str(tmp_path / "a"), states_layers="all"))
    size = sum(store["bytes"] for store in list_stores(tmp_path / "a"))
    for name, limit in (("room", 4 * size), ("none", 1.5 * size)):
        settings = StatesSettings(str(tmp_path / name), states_limit_gb=limit / 1e9)
        feed, _ = cached(classifier(masked_lm), settings)
        layers[name] = {store["prompt_layer"] for store in list_stores(tmp_path / name)}
        assert isinstance(feed, CachedBatches)
    assert layers == {"room": {2, 3}, "none": {2}}


@pytest.mark.parametrize("limit", [0.0, 2e-5, 1.0])
def test_keys_stay_within_their_memory(limit, masked_lm, tmp_path):
    feed, _, _ = train(masked_lm, StatesSettings(str(tmp_path), states_layers="all", keys_memory_gb=limit))
    assert feed.keys.nbytes <= limit * 1e9
    assert (feed.keys.nbytes > 0) == (limit > 0)


def fill_of(model, data, folder, *more):
    given = ["--model", model, "--task", "sst2", "--data", data["train"], data["dev"], "--folder", folder]
    return ["states", "fill", *given, "--json", *more]


def test_fill_for_read_only_prompts(headless, data, tmp_path, capsys):
    folder = str(tmp_path / "states")
    assert main(fill_of(headless, data, folder, "--prompt-layer", "2", "--read-only")) == 0
    filled = json.loads(capsys.readouterr().out)
    assert [(store["prompt_layer"], store["pooling"]) for store in filled] == [(2, None), (3, None), (4, "mean")]
    for layer in ("2", "3"):
        run = str(tmp_path / layer)
        train_it = ["train", "--model", headless, "--task", "sst2", "--train", data["train"], "--dev", data["dev"]]
        more = ["--method", "npg", "--read-only", "--max-steps", "2", "--prompt-layer", layer, "--states", folder]
        assert main([*train_it, *more, "--states-layers", "all", "--output", run, "--quiet"]) == 0
        assert json.loads((Path(run) / "metrics.json").read_text())["trunk_fill_seconds"] == 0.0
        assert json.loads((Path(run) / "run.json").read_text())["model_settings"]["method"] == "read-npg"
    capsys.readouterr()
    assert main(["states", "list", "--folder", folder]) == 0
    shown = capsys.readouterr().out
    assert "pooling" in shown
    assert "mean" in shown
    assert main(["states", "verify", "--folder", folder, "--json"]) == 0
    assert [row["dropped"] for row in json.loads(capsys.readouterr().out)] == [0, 0, 0]
    assert main(["states", "prune", "--folder", folder, "--limit-gb", "0"]) == 0
    assert not any(Path(folder).iterdir())


def test_a_damaged_pooled_store(headless, data, tmp_path, capsys):
    folder = tmp_path / "states"
    assert main(fill_of(headless, data, str(folder), "--prompt-layer", "3", "--read-only")) == 0
    (pooled,) = folder.glob("*-mean-*")
    (rows,) = pooled.glob("*.bin")
    content = bytearray(rows.read_bytes())
    content[5] ^= 255
    rows.write_bytes(bytes(content))
    capsys.readouterr()
    assert main(["states", "verify", "--folder", str(folder), "--json"]) == 0
    dropped = {row["store"]: row["dropped"] for row in json.loads(capsys.readouterr().out)}
    assert dropped.pop(pooled.name) == 1
    assert set(dropped.values()) == {0}
    facts = json.loads((pooled / "store.json").read_text())
    (pooled / "store.json").write_text(json.dumps({**facts, "pooling": "median"}))
    assert main(["states", "list", "--folder", str(folder), "--json"]) == 2
    assert "pooling 'median', expected one of cls, mean, last" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "lora", "--read-only"], "method 'lora' has no read-only form"),
        (["--states-layers", "some"], "states_layers"),
        (["--keys-memory-gb", "-1"], "keys_memory_gb"),
    ],
)
def test_flags_that_cannot_be(more, message, headless, data, tmp_path, capsys):
    given = ["train", "--model", headless, "--train", data["train"], "--output", str(tmp_path / "run")]
    assert main([*given, *more]) == 2
    assert message in capsys.readouterr().err.replace("-", "_").replace("read_only form", "read-only form")
