"""Training from cached states frees what it does not need, gives the same weights, and puts all back when asked."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from conftest import make_rows
from peft import LoraConfig, get_peft_model

from lateprompt import LatePromptConfig, TrunkStates
from lateprompt.data import Row, load_task
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.offload import OffloadedWeights
from lateprompt.readouts import WordReadout
from lateprompt.runs.train import DataSettings, train_run
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.loop import fit, trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings

ROWS = [Row(row["text"], None, row["label"], row) for row in make_rows(24)]
RECIPE = RecipeSettings(epochs=2, batch_size=8, lr=5e-3, seed=3)


def build(model, **settings):
    settings = {"prompt_layer": 2, "bottleneck_dim": 8, **settings}
    return TextClassifier.build(ModelSettings(model=model, **settings), load_task("sst2"), seed=3)


def held(tuned):
    """Numbers of the frozen weights that are in memory."""
    return sum(p.numel() for p in tuned.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "headless"])
def test_freed_trained_and_restored(kind, loss, request, tmp_path):
    model = request.getfixturevalue(kind)
    results = {}
    for release in (True, False):
        tuned = build(model, loss=loss)
        feed = tuned.batches(ROWS)
        (feed,), _ = tuned.cached([(feed, np.arange(len(ROWS)))], StatesSettings(str(tmp_path)))
        before = held(tuned)
        frozen = {name: p.detach().clone() for name, p in tuned.model.named_parameters() if not p.requires_grad}
        if release:
            tuned.release()
            tail = sum(p.numel() for p in tuned.layer.split_at(2).tail.parameters())
            vocabulary = tuned.layer.get_input_embeddings().weight.numel()
            assert held(tuned) < before
            if kind == "headless" or loss == "labels":
                assert vocabulary == 0
            assert held(tuned) <= tail + (before // 3)
        fit(tuned.model, tuned.readout, feed, feed, RECIPE, metrics=("accuracy",), device=tuned.device)
        metrics = tuned.evaluate(feed)
        weights = {name: p.detach().clone() for name, p in trainable_parameters(tuned.model).items()}
        results[release] = weights, metrics, tuned.probabilities(ROWS[:5])  # needs the trunk: loads it again
        assert held(tuned) == before
        for name, value in tuned.model.named_parameters():
            if name in frozen:
                assert torch.equal(value, frozen[name]), name
    for name, value in results[False][0].items():
        assert torch.equal(results[True][0][name], value), name
    assert results[True][1] == results[False][1]
    assert np.array_equal(results[True][2], results[False][2])


def test_a_released_trunk_says_so(masked_lm, tmp_path):
    tuned = build(masked_lm)
    tuned.release()
    batch = tuned.batches(ROWS).batch(np.arange(4))
    with pytest.raises(ValueError, match="offloaded"):
        tuned.readout.scores(batch)
    with pytest.raises(ValueError, match="offloaded"):
        TrunkStates.open(tmp_path, tuned.model, 2)
    tuned.restore()
    assert tuned.readout.scores(batch).shape == (4, 2)


def test_a_run_releases_and_its_classifier_still_predicts(masked_lm, data, tmp_path, monkeypatch):
    released = []
    original = TextClassifier.release
    monkeypatch.setattr(TextClassifier, "release", lambda self: released.append(1) or original(self))
    settings = DataSettings(train=data["train"], dev=[data["dev"]], test=[data["dev"]], task="sst2")
    model = ModelSettings(masked_lm, prompt_layer=2, bottleneck_dim=8)
    tuned, measured = train_run(model, settings, RECIPE, None, states=StatesSettings(str(tmp_path)))
    assert released
    assert tuned.layer.trunk_offloaded  # evaluation on dev and test rows has not needed the trunk either
    assert measured["test"][data["dev"]]["accuracy"] == measured["accuracy"]
    assert tuned.probabilities(ROWS[:2]).shape == (2, 2)
    assert not tuned.layer.trunk_offloaded


def test_weights_that_are_trained_or_tied_stay(masked_lm):
    from transformers import AutoModelForMaskedLM

    base = AutoModelForMaskedLM.from_pretrained(masked_lm)
    lora = get_peft_model(base, LoraConfig(target_modules=["query"], r=2))
    model = get_peft_model(lora, LatePromptConfig(prompt_layer=2))
    layer = model.base_model.layer
    words = torch.arange(5, 7).tolist()
    readout = WordReadout(base, layer, words, "masked_lm", "vocabulary")
    released = OffloadedWeights.offload(base, layer, 2, readout)
    gc.collect()
    assert any("lora" in name and ".layer.0." in name and p.numel() for name, p in model.named_parameters())
    assert base.get_output_embeddings().weight.numel() > 0  # the vocabulary's loss needs it
    source = AutoModelForMaskedLM.from_pretrained(masked_lm)
    released.restore(source)
    ids = torch.tensor([[5, 6, 7, 8]])
    with model.disable_adapter(), lora.disable_adapter():
        assert torch.equal(base(input_ids=ids).logits, source(input_ids=ids).logits)
