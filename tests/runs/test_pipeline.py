"""The pipeline as an object: its stages in order, alone, and from a later one on; what each leaves for the next."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import make_rows

from lateprompt.data import Row, default_task
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.kinds import load_run
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.loop import fit
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

STAGES = ["build", "encode", "cache_states", "free_weights", "fit", "calibrate", "evaluate"]
TASK = default_task(["negative", "positive"], pair=False)
CLOCKS = {"train_seconds", "tokens_per_second", "trunk_fill_seconds", "peak_memory_bytes"}


def rows(number, start=0):
    return [Row(row["text"], None, row["label"], {}) for row in make_rows(number, start=start)]


def pipeline(model, folder, *, steps=4, **more):
    given = Rows(TASK, rows(32), rows(12, 50), {"more.csv": rows(10, 80)}, {"test.csv": rows(14, 100)})
    settings = ModelSettings(model, prompt_layer=2, device="cpu")
    recipe = RecipeSettings(max_steps=steps, batch_size=8, eval_every=2, lr=1e-2, seed=3)
    return Pipeline(settings, given, recipe, StatesSettings(str(folder) if folder else "off"), **more)


def numbers(metrics):
    return {name: value for name, value in metrics.items() if name not in CLOCKS}


def weights(tuned):
    return {
        name: value.detach().numpy().copy() for name, value in tuned.model.named_parameters() if value.requires_grad
    }


def test_run_calls_the_stages_in_their_order(masked_lm, tmp_path, monkeypatch):
    called = []
    for name in STAGES:
        stage = getattr(Pipeline, name)
        monkeypatch.setattr(Pipeline, name, lambda self, stage=stage, name=name: (called.append(name), stage(self))[1])
    whole = pipeline(masked_lm, tmp_path)
    measured = whole.run()
    assert called == STAGES
    assert measured is whole.metrics
    assert list(measured["dev_sets"]) == ["more.csv"]
    assert list(measured["test"]) == ["test.csv"]
    assert (measured["train_rows"], measured["dev_rows"], measured["steps"]) == (32, 12, 4)


def test_each_stage_leaves_what_the_next_one_needs(masked_lm, tmp_path):
    one = pipeline(masked_lm, tmp_path)
    one.build()
    assert isinstance(one.tuned, TextClassifier)
    one.encode()
    assert {name: len(feed) for name, feed in one.batches.items()} == {
        "train": 32,
        "dev": 12,
        "more.csv": 10,
        "test.csv": 14,
    }
    assert not any(isinstance(feed, CachedBatches) for feed in one.batches.values())
    one.cache_states()
    assert all(isinstance(feed, CachedBatches) for feed in one.batches.values())
    assert one.fill_seconds > 0
    before = sum(value.numel() for value in one.tuned.model.parameters())
    one.free_weights()
    assert sum(value.numel() for value in one.tuned.model.parameters()) < before
    one.fit()
    assert [entry["step"] for entry in one.result.history] == [2, 4]
    one.calibrate()
    assert one.calibrated["calibration"]["rows"] == 12
    assert one.evaluate()["accuracy"] == one.result.metrics["accuracy"]
    again = pipeline(masked_lm, tmp_path)
    assert numbers(again.run()) == numbers(one.metrics)
    assert again.fill_seconds == 0.0


def test_no_weights_are_freed_that_a_step_still_reads(masked_lm):
    one = pipeline(masked_lm, None)
    one.build()
    one.encode()
    before = sum(value.numel() for value in one.tuned.model.parameters())
    one.cache_states()
    one.free_weights()
    assert sum(value.numel() for value in one.tuned.model.parameters()) == before
    assert not any(isinstance(feed, CachedBatches) for feed in one.batches.values())
    assert one.fill_seconds == 0.0


def test_only_rows_that_training_reaches_get_states(masked_lm, tmp_path):
    one = pipeline(masked_lm, tmp_path, steps=2)
    one.build()
    one.encode()
    one.cache_states()
    assert (one.batches["train"].numbers >= 0).sum() == 16  # two batches of eight
    assert (one.batches["dev"].numbers >= 0).all()


def test_from_a_later_stage_on(masked_lm, tmp_path):
    """A model that is there (a warm start) and feeds of another pipeline take the place of `build` and `encode`."""
    first = pipeline(masked_lm, tmp_path)
    first.run()
    trained = weights(first.tuned)
    second = pipeline(masked_lm, tmp_path)
    second.tuned, second.batches = first.tuned, first.batches
    second.fit()
    assert not all(np.array_equal(value, trained[name]) for name, value in weights(second.tuned).items())
    by_hand = pipeline(masked_lm, tmp_path)
    by_hand.build()
    by_hand.encode()
    for _ in range(2):
        tuned, feeds = by_hand.tuned, by_hand.batches
        arguments = (tuned.model, tuned.readout, feeds["train"], feeds["dev"], by_hand.recipe)
        result = fit(*arguments, metrics=TASK.metrics, device=tuned.device)
    assert result.metrics["loss"] == pytest.approx(second.result.metrics["loss"], abs=1e-5)


def test_weights_of_rows(masked_lm, tmp_path):
    plain, weighted = pipeline(masked_lm, tmp_path), pipeline(masked_lm, tmp_path)
    weighted.weights = np.linspace(0, 2, 32, dtype=np.float32)
    losses = [one.run() and one.result.history[0]["train_loss"] for one in (plain, weighted)]
    assert losses[0] != losses[1]
    np.testing.assert_array_equal(weighted.batches["train"].weights, weighted.weights)  # with cached states, too
    assert weighted.batches["dev"].weights is None


def test_what_is_saved(masked_lm, tmp_path):
    one = pipeline(masked_lm, tmp_path / "states", data={"train": "rows.csv"})
    one.run()
    one.save(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == one.metrics
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["data"] == {"train": "rows.csv"}
    assert run["recipe"]["seed"] == 3
    assert {"states", "versions", "finished", "labels", "num_layers", "model_settings"} <= set(run)
    expected = one.tuned.probabilities(rows(6, 200))
    np.testing.assert_array_equal(load_run(tmp_path / "run", device="cpu").probabilities(rows(6, 200)), expected)


def test_a_checkpoint_of_other_data_is_refused(masked_lm, tmp_path):
    def train(name):
        one = pipeline(masked_lm, tmp_path / "states", data={"train": name}, checkpoint=tmp_path / "checkpoint")
        one.run()

    (tmp_path / "checkpoint").mkdir()
    train("a.csv")
    train("a.csv")
    with pytest.raises(LatePromptError, match=r"other settings \(data\)"):
        train("b.csv")


def test_sets_of_one_path_keep_their_names():
    both = Rows(TASK, rows(4), more_dev={"x": rows(1), "dev": rows(2)}, test={"x": rows(3), "y": rows(5)})
    assert {name: len(part) for name, part in both.sets().items()} == {
        "train": 4,
        "dev": 0,
        "x (validation)": 1,
        "dev (validation)": 2,
        "x (test)": 3,
        "y": 5,
    }
