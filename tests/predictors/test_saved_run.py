"""Loading a run: the base model it was trained on, finite weights, and a run file and task that can be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_rows, write_rows
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForMaskedLM

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import main
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.fingerprints import model_fingerprint
from lateprompt.run_folder.entries import MANIFEST
from lateprompt.runs.train import DataSettings, load_run, train_run
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError


def train(model, data, output, **settings):
    settings = ModelSettings(model, **{"method": "npg", "prompt_layer": 2, "bottleneck_dim": 4, **settings})
    rows = DataSettings(data["train"], dev=[data["dev"]], task="sst2")
    return train_run(settings, rows, RecipeSettings(max_steps=2, batch_size=8), output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, masked_lm, headless, data):
    """A run with label words, one with a head, and one that the estimator saved."""
    folder = tmp_path_factory.mktemp("runs")
    train(masked_lm, data, folder / "words")
    train(headless, data, folder / "head")
    rows = make_rows(16)
    fitted = LatePromptClassifier(model=headless, prompt_layer=2, bottleneck_dim=4, max_steps=1, batch_size=8)
    fitted.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(folder / "estimator")
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    return lambda name: Path(shutil.copytree(runs / name, tmp_path / name))


@pytest.fixture(scope="module")
def other(tmp_path_factory, masked_lm):
    """A model of the same shape with another weight."""
    folder = Path(shutil.copytree(masked_lm, tmp_path_factory.mktemp("other") / "model"))
    model = AutoModelForMaskedLM.from_pretrained(masked_lm)
    with torch.no_grad():
        model.roberta.encoder.layer[0].output.dense.bias[0] += 1e-3
    model.save_pretrained(folder)
    return str(folder)


def edit(folder, **changes):
    """Change values of the run file, by section__name."""
    run = json.loads((folder / "run.json").read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            run[section][name] = value
        else:
            run[section] = value
    (folder / "run.json").write_text(json.dumps(run))


# -- the base model ------------------------------------------------------------------------------------------------


def test_another_base_model_is_refused_with_a_way_round_it(copy, other, data, tmp_path, capsys):
    run = copy("words")
    saved = json.loads((run / "run.json").read_text())["base_model"]["fingerprint"]
    for command in (["evaluate"], ["predict", "--output", str(tmp_path / "out.jsonl")]):
        given = [command[0], str(run), "--data", data["dev"], "--model", other, *command[1:]]
        assert main(given) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert repr(other) in line
        assert saved in line
        assert line.count("xxh3_128:") == 2
        assert "--ignore-fingerprint" in line
        assert not (tmp_path / "out.jsonl").exists()
        assert main([*given, "--ignore-fingerprint"]) == 0
        capsys.readouterr()
    with pytest.raises(LatePromptError, match="check_model=False"):
        load_run(run, model=other)
    load_run(run, model=other, check_model=False)
    with pytest.raises(LatePromptError, match="fingerprint"):
        LatePromptClassifier.load(run, model=other)
    LatePromptClassifier.load(run, model=other, check_model=False)


def test_a_base_model_that_changed_in_its_place(copy, other, masked_lm):
    run = copy("words")
    edit(run, model_settings__model=other)
    with pytest.raises(LatePromptError, match="has other weights"):
        load_run(run)
    edit(run, model_settings__model=masked_lm, model_settings__dtype="bfloat16")
    with pytest.raises(LatePromptError, match="has other weights"):
        load_run(run)


def test_a_moved_base_model_and_runs_without_a_fingerprint(copy, masked_lm, other, tmp_path):
    run, moved = copy("words"), shutil.copytree(masked_lm, tmp_path / "moved")
    load_run(run, model=str(moved))
    content = json.loads((run / "run.json").read_text())
    del content["base_model"]
    (run / "run.json").write_text(json.dumps(content))
    load_run(run, model=other)


def test_every_kind_of_saving_keeps_it(copy, runs, masked_lm, tmp_path):
    words = TextClassifier.load(copy("words"))
    words.save(tmp_path / "saved")
    fingerprint = model_fingerprint(AutoModelForMaskedLM.from_pretrained(masked_lm))
    for folder in (runs / "words", tmp_path / "saved"):
        assert json.loads((folder / "run.json").read_text())["base_model"] == {"fingerprint": fingerprint}
    assert "fingerprint" in json.loads((runs / "estimator" / "run.json").read_text())["base_model"]
    words.release()  # weights that are not in memory are no other ones
    assert words.base_fingerprint == fingerprint
    words.save(tmp_path / "saved")


def test_a_fingerprint_sees_names_shapes_types_and_values():
    base = nn.Linear(2, 3)
    seen = {model_fingerprint(base), model_fingerprint(nn.Sequential(base)), model_fingerprint(nn.Linear(3, 2))}
    with torch.no_grad():
        base.weight[2, 1] += 1e-6
    seen.add(model_fingerprint(base))
    seen.add(model_fingerprint(base.bfloat16()))
    assert len(seen) == 5
    assert all(text.startswith("xxh3_128:") and len(text) == 41 for text in seen)
    assert model_fingerprint(base) == model_fingerprint(base)
    released = nn.Linear(2, 3)
    released.weight.data = released.weight.data.new_empty(0)
    assert model_fingerprint(released) is None


# -- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(copy, value, tmp_path):
    run = copy("words")
    weights = load_file(run / "adapter_model.safetensors")
    name = sorted(weights)[1]
    weights[name].view(-1)[-1] = value
    save_file(weights, run / "adapter_model.safetensors")
    with pytest.raises(LatePromptError, match=f"NaN or infinity in {name!r}"):
        load_run(run)
    tuned = TextClassifier.load(copy("head"))
    name, parameter = next((n, p) for n, p in tuned.model.named_parameters() if p.requires_grad)
    parameter.data.view(-1)[0] = value
    with pytest.raises(LatePromptError, match="the trained model has NaN or infinity in"):
        tuned.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# -- the run file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "changes", "named"),
    [
        ("words", {"model_settings__head_pooling": "x"}, "head_pooling 'x'"),
        ("words", {"model_settings__readout": 3}, "readout 3"),
        ("words", {"model_settings__readout": "words"}, "readout 'words'"),
        ("words", {"model_settings__readout": "causal_lm"}, "encoder; use --readout masked_lm or head"),
        ("words", {"model_settings__max_length": "many"}, "max_length 'many'"),
        ("words", {"model_settings__max_length": True}, "max_length True"),
        ("words", {"model_settings__max_length": -1}, "max_length -1"),
        ("words", {"model_settings__method": "magic"}, "method 'magic'"),
        ("words", {"model_settings__method": None}, "method None"),
        ("words", {"model_settings__options": [1]}, "options [1]"),
        ("words", {"model_settings__options": {"magic": 1}}, "no option 'magic'"),
        ("words", {"model_settings__dtype": "int4"}, "dtype 'int4'"),
        ("words", {"model_settings__model": 7}, "model 7"),
        ("words", {"model_settings__compile": "yes"}, "compile 'yes'"),
        ("words", {"model_settings__prompt_layer": 3}, "prompt_layer 3"),
        ("words", {"model_settings__prompt_layer": [2]}, "prompt_layer [2]"),
        ("words", {"model_settings__speed": 3}, "speed"),
        ("words", {"model_settings": "words"}, "model_settings: 'words' is no mapping"),
        ("words", {"model_settings": {}}, "model_settings does not fit"),
        ("words", {"base_model": 3}, "base_model: '3' is no mapping"),
        ("words", {"base_model__fingerprint": 3}, "has 3"),
        ("head", {"model_settings__head_pooling": "cls"}, "head_pooling 'cls'"),
        ("estimator", {"classes": [1, 2]}, "classes"),
        ("estimator", {"classes__values": "negative"}, "classes"),
        ("estimator", {"classes__values": [1, 2]}, "class"),
        ("estimator", {"classes__values": {"a": 1}}, "classes"),
        ("estimator", {"classes": {"kind": "M", "dtype": "fruit", "values": ["negative"]}}, "classes"),
        ("estimator", {"recipe": []}, "recipe: '[]' is no mapping"),
        ("estimator", {"recipe__lr": "fast"}, "recipe: lr 'fast'"),
        ("estimator", {"recipe__speed": 1}, "recipe does not fit"),
        ("estimator", {"estimator": "x"}, "estimator: 'x' is no mapping"),
        ("estimator", {"estimator__epochs": "ten"}, "estimator: epochs 'ten'"),
        ("estimator", {"estimator__options": 3}, "estimator"),
    ],
)
def test_an_edited_run_file(run, changes, named, copy, data, capsys):
    folder = copy(run)
    edit(folder, **changes)
    with pytest.raises(LatePromptError) as caught:
        LatePromptClassifier.load(folder)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    if run != "estimator":
        assert main(["evaluate", str(folder), "--data", data["dev"]]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert named in line


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '"x"', "{}", '{"model_settings": null}', "{" * 3000])
def test_a_run_file_that_is_none(content, copy, data, capsys):
    folder = copy("words")
    (folder / "run.json").write_text(content)
    assert main(["evaluate", str(folder), "--data", data["dev"]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "run.json" in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": ["speed"]}, "metric 'speed'"),
        ({"metrics": 3}, "metrics 3"),
        ({"labels": ["a", "b", "c"], "label_words": ["a", "b", "c"], "label_map": {}}, "head_labels 2"),
        ({"labels": "ab"}, "labels 'ab'"),
        ({"colour": "red"}, "colour"),
        ({"name": None}, "name None"),
    ],
)
def test_an_edited_task(changes, named, copy):
    folder = copy("head")
    task = yaml.safe_load((folder / "task.yaml").read_text())
    (folder / "task.yaml").write_text(yaml.safe_dump({**task, **changes}))
    with pytest.raises(LatePromptError) as caught:
        load_run(folder)
    assert named in str(caught.value)
    assert "task.yaml" in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.write_text("[" * 1500)])
def test_a_task_that_cannot_be_read(make, copy):
    folder = copy("head")
    (folder / "task.yaml").unlink()
    make(folder / "task.yaml")
    with pytest.raises(LatePromptError, match=r"task\.yaml"):
        load_run(folder)


def test_resume_of_a_finished_run_with_an_edited_run_file(copy, masked_lm, data):
    folder = copy("words")
    (folder / MANIFEST).unlink()
    settings = ModelSettings(masked_lm, prompt_layer=2, bottleneck_dim=4)
    rows = DataSettings(data["train"], dev=[data["dev"]], task="sst2")
    for changes in ({"data": 3}, {"recipe": [1]}, {"num_layers": "four"}, {"data": {"fingerprints": 3}}):
        edit(folder, **changes)
        with pytest.raises(LatePromptError):
            train_run(settings, rows, RecipeSettings(max_steps=3, batch_size=8), folder, resume=True)


def test_an_edited_checkpoint(tmp_path, masked_lm, data):
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    settings = ModelSettings(masked_lm, prompt_layer=2, bottleneck_dim=4)
    rows = DataSettings(write_rows(tmp_path / "rows.jsonl", make_rows(16)), task="sst2")
    for state in (
        {"settings": "{", "tensors": "a", "progress": {}},
        {"settings": "[]", "tensors": "a", "progress": {}},
        {"settings": "{}", "tensors": "../a", "progress": {}},
        {"settings": "{}", "tensors": "a", "progress": {"step": "many"}},
        {"settings": "{}", "tensors": "a", "progress": {"speed": 1}},
        {"settings": {}, "tensors": "a", "progress": 3},
    ):
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises(LatePromptError, match=r"checkpoint .* is broken"):
            train_run(settings, rows, RecipeSettings(max_steps=2), tmp_path / "run", resume=True)


def test_a_finished_run_with_a_long_template_is_taken_up(headless, data, tmp_path):
    """A template longer than any name of a file is no path to look for."""
    settings = ModelSettings(headless, prompt_layer=2, bottleneck_dim=4, readout="head")
    rows = DataSettings(data["train"], template="{text}" + " terrible" * 30)
    recipe = RecipeSettings(max_steps=1, batch_size=8)
    measured = train_run(settings, rows, recipe, tmp_path / "run")[1]
    assert train_run(settings, rows, recipe, tmp_path / "run", resume=True)[1] == measured
