"""Training from cached states ends where training with the trunk does; what may not be kept is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_rows
from safetensors.torch import load_file

from lateprompt.cli.app import main
from lateprompt.data import Row, default_task, load_task
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.state_cache import fill
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.loop import fit, rows_needed, trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings

ROWS = [Row(row["text"], None, row["label"], row) for row in make_rows(40)]
RECIPE = RecipeSettings(epochs=3, batch_size=8, lr=5e-3, seed=3)


def classifier(model, task=None, **settings):
    settings = {"prompt_layer": 2, "bottleneck_dim": 8, **settings}
    return TextClassifier.build(ModelSettings(model=model, **settings), task or load_task("sst2"), seed=3)


def train(model, states, recipe=RECIPE, **settings):
    tuned = classifier(model, **settings)
    feed = tuned.batches(ROWS)
    (feed,), _ = tuned.cached([(feed, rows_needed(feed, recipe))], states)
    fit(tuned.model, tuned.readout, feed, None, recipe, metrics=("accuracy",), device=tuned.device)
    return feed, {name: p.detach() for name, p in trainable_parameters(tuned.model).items()}


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "headless"])
@pytest.mark.parametrize("method", ["npg", "mppg", "late-lora", "npg+late-lora", "late-p-tuning-v2"])
def test_same_weights_as_with_the_trunk(kind, method, request, tmp_path):
    model = request.getfixturevalue(kind)
    feed, with_states = train(model, StatesSettings(str(tmp_path)), method=method)
    assert isinstance(feed, CachedBatches)
    plain, without = train(model, StatesSettings("off"), method=method)
    assert not isinstance(plain, CachedBatches)
    for name, value in without.items():
        assert (with_states[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("loss", ["vocabulary", "labels"])
@pytest.mark.parametrize("method", ["npg", "late-lora", "read-npg", "read-npg+late-lora"])
def test_label_words_of_several_tokens(causal_lm, method, loss, tmp_path):
    words = dict(zip(("negative", "positive"), ("really terrible film", "great"), strict=True))
    task = default_task(list(words), pair=False, label_words=list(words.values()))
    settings = {"task": task, "method": method, "loss": loss, "readout": "causal_lm"}
    feed, with_states = train(causal_lm, StatesSettings(str(tmp_path)), **settings)
    assert isinstance(feed, CachedBatches)
    plain, without = train(causal_lm, StatesSettings("off"), **settings)
    assert not isinstance(plain, CachedBatches)
    for name, value in without.items():
        assert (with_states[name] - value).norm() <= 1e-5 * value.norm(), name
    again, _ = train(causal_lm, StatesSettings(str(tmp_path)), replace(RECIPE, epochs=1), **settings)
    assert len(again.store) == len(feed.store)  # nothing was computed twice
    batch = feed.batch(np.array([0, 5]))
    assert batch.packed_states is not None
    assert batch.packed_states.shape[1] == 2


@pytest.mark.parametrize("method", ["lora", "bitfit", "full", "prompt-tuning", "npg+lora"])
def test_methods_below_the_prompt_layer_have_no_states(headless, method, tmp_path):
    feed, _ = train(headless, StatesSettings(str(tmp_path)), replace(RECIPE, epochs=1), method=method)
    assert not isinstance(feed, CachedBatches)
    assert not any(tmp_path.iterdir())


def test_the_trunk_does_not_run(masked_lm, tmp_path):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    (feed,), seconds = tuned.cached([(feed, np.arange(len(feed)))], StatesSettings(str(tmp_path)))
    assert seconds > 0
    split = tuned.layer.split_at(2)

    def never(*args, **kwargs):
        raise AssertionError("the trunk ran")

    split.trunk.__dict__["forward"] = never
    fit(tuned.model, tuned.readout, feed, feed, RECIPE, metrics=("accuracy",), device=tuned.device)
    again = classifier(masked_lm, method="fixed")
    _, seconds = again.cached([(again.batches(ROWS), np.arange(40))], StatesSettings(str(tmp_path)))
    assert seconds == 0.0


def test_only_rows_that_will_be_read_are_filled(masked_lm, tmp_path):
    short = replace(RECIPE, max_steps=2)
    feed, _ = train(masked_lm, StatesSettings(str(tmp_path)), short)
    assert (feed.numbers >= 0).sum() == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--trunk-dropout"], "--states off"),
        (["--states-dtype", "int4"], "states dtype 'int4'"),
        (["--states", ""], "states '' is no folder"),
        (["--states-limit-gb", "0"], "states_limit_gb 0"),
    ],
)
def test_settings_that_cannot_be(settings, message, masked_lm, data, tmp_path, capsys):
    base = [
        "train",
        "--model",
        masked_lm,
        "--task",
        "sst2",
        "--train",
        data["train"],
        "--output",
        str(tmp_path / "run"),
    ]
    assert main([*base, *settings]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_trunk_dropout_with_states_off(masked_lm, data, tmp_path):
    base = [
        "train",
        "--model",
        masked_lm,
        "--task",
        "sst2",
        "--train",
        data["train"],
        "--output",
        str(tmp_path / "run"),
    ]
    assert (
        main([*base, "--states", "off", "--trunk-dropout", "--max-steps", "2", "--prompt-layer", "2", "--quiet"]) == 0
    )


def test_label_words_that_cannot_be_packed_need_the_trunk(causal_lm, tmp_path, monkeypatch):
    monkeypatch.setattr("lateprompt.readouts.label_words.can_pack", lambda layer: False)
    task = default_task(["negative", "positive"], pair=False, label_words=["so terrible", "so great"])
    tuned = classifier(causal_lm, task)
    feed = tuned.batches(ROWS)
    (same,), seconds = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))
    assert same is feed
    assert seconds == 0.0


def test_what_does_not_fit_is_said(masked_lm, tmp_path, monkeypatch):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    with pytest.warns(UserWarning, match="do not fit"):
        (same,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path), states_limit_gb=1e-6))
    assert same is feed
    monkeypatch.setattr(fill, "SPARE_BYTES", 1 << 60)
    with pytest.warns(UserWarning, match="do not fit"):
        tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))


def test_states_on_the_command_line(masked_lm, data, tmp_path, capsys):
    folder = str(tmp_path / "states")
    fill = [
        "states",
        "fill",
        "--model",
        masked_lm,
        "--data",
        data["train"],
        data["dev"],
        "--task",
        "sst2",
        "--folder",
        folder,
    ]
    assert main([*fill, "--prompt-layer", "1", "2", "--json"]) == 0
    filled = json.loads(capsys.readouterr().out)
    assert [store["prompt_layer"] for store in filled] == [1, 2]
    assert filled[0]["rows"] == filled[1]["rows"] > 0
    arguments = [
        "--task",
        "sst2",
        "--train",
        data["train"],
        "--dev",
        data["dev"],
        "--max-steps",
        "4",
        "--prompt-layer",
        "2",
        "--quiet",
    ]
    for name, more in (("a", ["--states", folder]), ("b", ["--states", "off"])):
        assert main(["train", "--model", masked_lm, *arguments, "--output", str(tmp_path / name), *more]) == 0
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["trunk_fill_seconds"] == 0.0
    capsys.readouterr()
    assert main(["states", "list", "--folder", folder, "--json"]) == 0
    assert {(s["prompt_layer"], s["rows"]) for s in json.loads(capsys.readouterr().out)} == {
        (s["prompt_layer"], s["rows"]) for s in filled
    }
    assert main(["states", "list", "--folder", folder]) == 0
    assert main(["states", "verify", "--folder", folder, "--json"]) == 0
    assert all(v["dropped"] == 0 for v in json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert main(["states", "prune", "--folder", folder]) == 2
    assert main(["states", "prune", "--folder", folder, "--limit-gb", "0"]) == 0
    capsys.readouterr()
    assert main(["states", "list", "--folder", folder]) == 0
    assert "no trunk states" in capsys.readouterr().out
    assert main(["states", "fill", "--folder", folder]) == 2
    assert main(["states", "list", "--folder", str(tmp_path / "none")]) == 2
