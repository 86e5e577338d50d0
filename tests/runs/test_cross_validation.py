"""Cross-validation: every row is scored by a model that never saw it, and the run's own weights stay as they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.data import Row, default_task
from lateprompt.predictors.kinds import load_run
from lateprompt.runs import cross_validation
from lateprompt.runs.cross_validation import fold_of_rows, folds_for, wilson_interval
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.calibration import fit_calibration
from lateprompt.training.loop import trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

TASK = default_task(["negative", "positive"], pair=False)


def trained(model, folder, folds, seed=3):
    rows = [Row(row["text"], None, row["label"], {}) for row in make_rows(30)]
    recipe = RecipeSettings(max_steps=4, batch_size=8, lr=1e-2, seed=seed, folds=folds)
    settings = ModelSettings(model, prompt_layer=2, readout="head", device="cpu")
    pipeline = Pipeline(settings, Rows(TASK, rows), recipe, StatesSettings(str(folder)))
    pipeline.run()
    return pipeline


def weights(pipeline):
    return {name: value.detach().clone() for name, value in trainable_parameters(pipeline.tuned.model).items()}


def test_folds_hold_every_class_and_every_row_once():
    labels = np.array([0] * 20 + [1] * 4 + [2])
    fold = fold_of_rows(labels, 4, seed=1)
    for label, counts in ((0, {5}), (1, {1})):
        assert set(np.bincount(fold[labels == label], minlength=4).tolist()) == counts
    assert not np.array_equal(fold, fold_of_rows(labels, 4, seed=2))


def test_a_row_is_scored_by_a_model_that_did_not_see_it(headless, tmp_path, monkeypatch):
    seen = []
    fit = cross_validation.fit
    monkeypatch.setattr(
        cross_validation, "fit", lambda m, r, part, *a, **k: (seen.append(part), fit(m, r, part, *a, **k))[1]
    )
    pipeline = trained(headless, tmp_path, 3)
    fold = fold_of_rows(pipeline.batches["train"].labels, 3, 3)
    for number, part in enumerate(seen):
        assert sorted(part.rows.tolist()) == np.flatnonzero(fold != number).tolist()
    assert len(seen) == 3
    assert np.abs(pipeline.out_of_fold.scores).min(1).all()  # no row was left out


def test_the_run_s_weights_are_those_of_a_run_without_folds(headless, tmp_path):
    alone, folded = weights(trained(headless, tmp_path, 0)), weights(trained(headless, tmp_path, 3))
    assert all(torch.equal(alone[name], folded[name]) for name in alone)


def test_weights_come_back_when_it_is_interrupted(headless, tmp_path, monkeypatch):
    pipeline = trained(headless, tmp_path, 0)
    own = weights(pipeline)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "predict_scores", stop)
    pipeline.recipe.folds = 3
    with pytest.raises(KeyboardInterrupt):
        pipeline.cross_validate()
    assert all(torch.equal(own[name], value) for name, value in weights(pipeline).items())


def test_how_many_folds():
    assert folds_for(None, rows=999, dev_rows=0, cached=True) == 3
    assert folds_for(None, rows=1000, dev_rows=0, cached=True) == 0
    assert folds_for(None, rows=60, dev_rows=5, cached=True) == 0
    assert folds_for(5, rows=5000, dev_rows=0, cached=False) == 5
    assert folds_for(None, rows=4, dev_rows=0, cached=True) == 0
    with pytest.raises(LatePromptError, match="folds 1 leave no rows"):
        RecipeSettings(folds=1).check()


def test_wilson_s_interval_stays_within_bounds():
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[0] == 0.0
    low, high = wilson_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # Wilson's of 8 in 10


def test_the_terminal_and_the_run_folder_say_what_to_expect(headless, tmp_path, capsys):
    train = write_rows(tmp_path / "train.jsonl", make_rows(30))
    command = ["train", "--model", headless, "--train", train, "--output", str(tmp_path / "run"), "--quiet"]
    assert main([*command, "--max-steps", "4"]) == 0
    assert "expect an accuracy of" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["cross_validation"]
    assert found["folds"] == 3
    low, high = found["accuracy_interval"]
    assert low <= found["accuracy"] <= high
    assert main([*command, "--max-steps", "4", "--folds", "0", "--overwrite"]) == 0
    assert "not measured" in capsys.readouterr().out


def test_without_dev_rows_the_temperature_is_that_of_rows_not_trained_on(headless, tmp_path):
    folded = trained(headless, tmp_path, 3)
    fitted, errors = fit_calibration(folded.out_of_fold.scores, folded.batches["train"].labels)
    assert fitted.temperature != 1
    assert folded.tuned.calibration == replace(fitted, source="cross-validation")
    said = {"temperature": fitted.temperature, "rows": 30, "source": "cross-validation"}
    assert {name: folded.metrics[name] for name in ("calibration", *errors)} == {"calibration": said, **errors}
    folded.save(tmp_path / "run")
    assert load_run(tmp_path / "run").calibration == folded.tuned.calibration
    assert trained(headless, tmp_path, 0).calibrated["calibration"]["rows"] == 0
