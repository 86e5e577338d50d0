"""The recipe: batches, optimiser, best weights, repeatability, resuming."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_rows

from lateprompt.data import Row, load_task
from lateprompt.data.batches import batch_order, sorted_batches
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.runs.environment import peak_memory_bytes, reset_peak_memory
from lateprompt.training import fit as fit_module
from lateprompt.training.checkpoint import load_checkpoint
from lateprompt.training.loop import Trainer, fit, make_optimizer, plan_steps, trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

RECIPE = RecipeSettings(epochs=3, batch_size=8, lr=5e-3, eval_every=4, seed=3)


def rows(number, start=0):
    return [Row(row["text"], None, row["label"], row) for row in make_rows(number, start)]


def classifier(model, seed=3, **settings):
    settings = {"method": "npg", "prompt_layer": 2, "bottleneck_dim": 8, "loss": "labels", **settings}
    return TextClassifier.build(ModelSettings(model=model, **settings), load_task("sst2"), seed=seed)


def run(model, recipe=RECIPE, *, checkpoint=None, **settings):
    tuned, trainer = prepared(model, recipe, checkpoint=checkpoint, **settings)
    return tuned, trainer.run()


def prepared(model, recipe=RECIPE, *, checkpoint=None, **settings):
    tuned = classifier(model, recipe.seed, **settings)
    trainer = Trainer(
        tuned.model,
        tuned.readout,
        tuned.batches(rows(40)),
        tuned.batches(rows(16, 100)),
        recipe,
        metrics=tuned.task.metrics,
        device=tuned.device,
        checkpoint=checkpoint,
    )
    return tuned, trainer


def weights(tuned):
    return {name: p.detach().clone() for name, p in trainable_parameters(tuned.model).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_every_row_once_an_epoch_and_another_order_each():
    lengths = np.random.default_rng(0).integers(3, 60, 1003)
    orders = [batch_order(lengths, 16, seed=1, epoch=epoch) for epoch in (0, 0, 1)]
    flat = [np.concatenate(order).tolist() for order in orders]
    assert sorted(flat[0]) == list(range(1003))
    assert flat[0] == flat[1] != flat[2]
    assert np.concatenate(sorted_batches(lengths, 16)).tolist() == np.argsort(lengths, kind="stable").tolist()


def test_batches_are_grouped_by_length():
    lengths = np.random.default_rng(0).integers(3, 200, 3200)
    padded = sum(len(b) * lengths[b].max() for b in batch_order(lengths, 16, seed=1, epoch=0))
    assert padded < 1.1 * lengths.sum()


def test_steps_per_epoch_count_accumulation():
    assert plan_steps(40, RecipeSettings(batch_size=8, epochs=3)) == (5, 15)
    assert plan_steps(41, RecipeSettings(batch_size=8, epochs=2, grad_accumulation=4)) == (2, 4)
    assert plan_steps(41, RecipeSettings(batch_size=8, max_steps=7)) == (6, 7)


def test_no_decay_on_biases(headless):
    tuned = classifier(headless, readout="head")
    groups = make_optimizer(trainable_parameters(tuned.model), RECIPE).param_groups
    assert {(p.ndim > 1, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "headless"])
def test_it_learns(kind, request):
    _, result = run(request.getfixturevalue(kind), replace(RECIPE, epochs=24, lr=1e-2), method="mppg")
    assert result.history[-1]["train_loss"] < 0.9 * result.history[0]["train_loss"]


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "headless"])
def test_it_repeats(kind, request):
    model = request.getfixturevalue(kind)
    first, result = run(model)
    second, again = run(model)
    assert result.metrics == again.metrics
    assert_same(weights(first), weights(second))
    other, _ = run(model, replace(RECIPE, seed=4))
    assert any(not torch.equal(a, b) for a, b in zip(weights(first).values(), weights(other).values(), strict=True))


def without_seconds(history):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def test_to_the_next_evaluation_at_a_time_is_the_same(masked_lm):
    whole, result = run(masked_lm)
    tuned, trainer = prepared(masked_lm)
    entries = []
    while (entry := trainer.run_to_evaluation()) is not None:
        entries.append(entry)
    assert without_seconds(entries) == without_seconds(result.history)
    assert trainer.finished
    assert trainer.result().metrics == result.metrics
    assert not tuned.layer.training
    assert_same(weights(whole), weights(tuned))


def test_step_by_step_is_the_same(masked_lm):
    whole, result = run(masked_lm, replace(RECIPE, max_steps=8))
    tuned, trainer = prepared(masked_lm, replace(RECIPE, max_steps=8))
    for done in range(8):
        assert (trainer.steps_done, trainer.total_steps, trainer.finished) == (done, 8, False)
        trainer.step()
        if trainer.steps_done == 4:
            trainer.evaluate()
    with pytest.raises(LatePromptError, match="all 8 steps are done"):
        trainer.step()
    trainer.evaluate()
    assert trainer.run_to_evaluation() is None  # the best weights are taken
    assert without_seconds(trainer.history) == without_seconds(result.history)
    assert_same(weights(whole), weights(tuned))
    with pytest.raises(LatePromptError, match="no step since the evaluation at step 8"):
        trainer.evaluate()


def test_a_run_that_fails_undoes_its_steps(masked_lm, monkeypatch):
    tuned, trainer = prepared(masked_lm)
    before = weights(tuned)
    trainer.step()  # at the warm-up's rate of 0
    trainer.step()
    assert any(not torch.equal(value, before[name]) for name, value in weights(tuned).items())
    monkeypatch.setattr(fit_module, "evaluate", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert_same(weights(tuned), before)


def test_runs_of_two_precisions_take_turns(masked_lm):
    """Each as if it were alone, whatever the other's Accelerator is."""
    alone = {precision: run(masked_lm, replace(RECIPE, precision=precision))[0] for precision in ("fp32", "bf16")}
    mixed = {precision: prepared(masked_lm, replace(RECIPE, precision=precision)) for precision in alone}
    while not all(trainer.finished for _, trainer in mixed.values()):
        for _, trainer in mixed.values():
            trainer.run_to_evaluation()
    for precision, (tuned, _) in mixed.items():
        assert_same(weights(tuned), weights(alone[precision]))
    assert any(not torch.equal(a, b) for a, b in zip(*(weights(t).values() for t in alone.values()), strict=True))


def test_only_the_adapter_changes(masked_lm):
    tuned = classifier(masked_lm)
    before = {name: p.detach().clone() for name, p in tuned.model.named_parameters()}
    fit(tuned.model, tuned.readout, tuned.batches(rows(16)), None, RECIPE, metrics=("accuracy",), device=tuned.device)
    for name, parameter in tuned.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


def test_the_best_weights_are_kept(masked_lm, monkeypatch):
    values = iter([0.5, 0.9, 0.7, 0.6])
    seen = []

    def fake(readout, feed, metrics, **kwargs):
        seen.append({name: p.detach().clone() for name, p in trainable_parameters(readout.layer).items()})
        return {"accuracy": next(values), "loss": 0.0}

    monkeypatch.setattr(fit_module, "evaluate", fake)
    tuned, result = run(masked_lm)
    assert result.metrics["accuracy"] == 0.9
    for name, parameter in trainable_parameters(tuned.model.base_model.layer).items():
        assert torch.equal(parameter, seen[1][name])


def test_early_stop_waits(masked_lm, monkeypatch):
    monkeypatch.setattr(fit_module, "evaluate", lambda *a, **k: {"accuracy": 0.5, "loss": 0.0})
    _, result = run(masked_lm, replace(RECIPE, epochs=10, patience=2))
    assert result.steps == 12
    assert [entry["step"] for entry in result.history] == [4, 8, 12]


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_interrupted_run_ends_the_same(masked_lm, tmp_path, monkeypatch, stop_at):
    whole, result = run(masked_lm, method="fixed", prompt_dropout=0.3)

    class Killed(Exception):
        pass

    evaluations = 0
    real = fit_module.save_checkpoint

    def save_then_die(*args):
        nonlocal evaluations
        real(*args)
        evaluations += 1
        if evaluations == stop_at:
            raise Killed

    monkeypatch.setattr(fit_module, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        run(masked_lm, checkpoint=tmp_path / "checkpoint", method="fixed", prompt_dropout=0.3)
    monkeypatch.setattr(fit_module, "save_checkpoint", real)
    torch.manual_seed(999)
    resumed, after = run(masked_lm, checkpoint=tmp_path / "checkpoint", method="fixed", prompt_dropout=0.3)
    assert_same(weights(whole), weights(resumed))
    assert without_seconds(result.history) == without_seconds(after.history)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, masked_lm):
    folder = tmp_path / "checkpoint"
    tuned = classifier(masked_lm)
    arguments = (tuned.model, tuned.readout, tuned.batches(rows(16)), None, replace(RECIPE, eval_every=1, max_steps=2))
    fit(*arguments, metrics=("accuracy",), device=tuned.device, checkpoint=folder, settings=json.dumps({"lr": 1}))
    assert (folder / "state.json").exists()
    optimizer = make_optimizer(trainable_parameters(tuned.model), RECIPE)
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        load_checkpoint(folder, optimizer, json.dumps({"lr": 2}))
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="broken"):
        load_checkpoint(folder, optimizer, json.dumps({"lr": 1}))


def test_accumulation_is_one_large_batch(masked_lm):
    recipe = replace(RECIPE, batch_size=40, max_steps=2, eval_every=None, max_grad_norm=0.0)
    whole, parts = (classifier(masked_lm, prompt_dropout=0.0) for _ in range(2))
    for tuned, size, times in ((whole, 40, 1), (parts, 8, 5)):
        tuned.readout.layer.train = lambda mode=True, layer=tuned.readout.layer: layer  # stay without dropout
        arguments = (tuned.model, tuned.readout, tuned.batches(rows(40)), None)
        one = replace(recipe, batch_size=size, grad_accumulation=times)
        fit(*arguments, one, metrics=("accuracy",), device=tuned.device)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], atol=1e-5, rtol=1e-4)


def test_bf16_autocast_trains(masked_lm):
    _, result = run(masked_lm, replace(RECIPE, precision="bf16", max_steps=4))
    assert np.isfinite(result.history[-1]["train_loss"])


def test_a_run_that_diverges_says_so(masked_lm):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) by step 4 at lr 1e\+30; lower lr"):
        run(masked_lm, replace(RECIPE, lr=1e30, max_grad_norm=0.0, max_steps=8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("warmup_ratio", 1.0),
        ("precision", "fp8"),
        ("seed", -1),
        ("batch_size", 0),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        replace(RECIPE, **{name: value}).check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let no process reset its peak")
def test_the_peak_begins_anew():
    device = torch.device("cpu")
    reset_peak_memory()
    before = peak_memory_bytes(device)
    block = torch.ones(64, 1 << 20)  # 256 MiB
    assert peak_memory_bytes(device) > before + (200 << 20)
    del block
    reset_peak_memory()
    assert peak_memory_bytes(device) < before + (100 << 20)
