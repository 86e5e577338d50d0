"""Runs that go on with something else than they began with, folders that were edited, leftovers of kills."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lateprompt import LatePromptClassifier
from lateprompt.run_folder.entries import CHECKPOINT, STARTED, STATE
from lateprompt.run_folder.folder import RunFolder
from lateprompt.runs.train import DataSettings, load_run, train_run
from lateprompt.training import fit as fit_module
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import STAGING, check_output

TASK = """name: mine
labels: [negative, positive]
label_words: [bad, good]
template: "{text} It was {mask} ."
metrics: [accuracy]
"""


def train(model, data, output, *, task="sst2", resume=False, overwrite=False, **recipe):
    recipe = RecipeSettings(**{"max_steps": 3, "batch_size": 8, "eval_every": 1, "seed": 1, **recipe})
    settings = ModelSettings(model, method="npg", prompt_layer=2, bottleneck_dim=4)
    rows = DataSettings(data["train"], dev=[data["dev"]], task=str(task))
    return train_run(settings, rows, recipe, output, resume=resume, overwrite=overwrite)


@pytest.fixture
def interrupt(monkeypatch):
    """Stop the next training after a number of checkpoints; `after`, or in the middle of the next one."""
    save = fit_module.save_checkpoint

    def at(number, *, inside=False):
        seen = []

        def stop(*args):
            if inside and len(seen) == number:
                raise KeyboardInterrupt
            save(*args)
            seen.append(args)
            if not inside and len(seen) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(fit_module, "save_checkpoint", stop)
        return lambda: monkeypatch.setattr(fit_module, "save_checkpoint", save)

    return at


@pytest.fixture(scope="module")
def whole(tmp_path_factory, masked_lm, data):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(masked_lm, data, folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [("It was", "All in all"), ("[bad, good]", "[terrible, great]"), ("[accuracy]", "[mcc]")],
    ids=["template", "words", "metrics"],
)
def test_resume_with_an_edited_task_file(finished, old, new, masked_lm, data, tmp_path, interrupt):
    task = tmp_path / "task.yaml"
    task.write_text(TASK)
    if finished:
        train(masked_lm, data, tmp_path / "run", task=task)
    else:
        undo = interrupt(1)
        with pytest.raises(KeyboardInterrupt):
            train(masked_lm, data, tmp_path / "run", task=task)
        undo()
    task.write_text(TASK.replace(old, new))
    with pytest.raises(LatePromptError, match=r"task"):
        train(masked_lm, data, tmp_path / "run", task=task, resume=True)
    task.write_text(TASK.replace("name: mine", "name: renamed\ncolumns: {text: text}"))  # nothing depends on these
    train(masked_lm, data, tmp_path / "run", task=task, resume=True)


def test_an_interrupted_run_does_not_go_on_with_other_weights_of_the_model(masked_lm, data, tmp_path, interrupt):
    model = Path(shutil.copytree(masked_lm, tmp_path / "model"))
    undo = interrupt(1)
    with pytest.raises(KeyboardInterrupt):
        train(str(model), data, tmp_path / "run")
    undo()
    weights = load_file(model / "model.safetensors")
    changed = {name: value * 1.5 if "layer.0" in name else value for name, value in weights.items()}
    save_file(changed, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(LatePromptError, match="model weights"):
        train(str(model), data, tmp_path / "run", resume=True)


# -- edited runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("- negative\n- positive", "- positive\n- negative", "labels"),
        ("- terrible\n- great", "- great\n- terrible", "label_words"),
        ("It was {mask}", "So {mask}", "template"),
    ],
)
def test_a_task_that_asks_something_else_than_was_trained(old, new, named, run):
    path = run / "task.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    for load in (load_run, LatePromptClassifier.load):
        with pytest.raises(LatePromptError, match=named):
            load(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "lora"),
        ("method", "mppg"),
        ("num_prompt_tokens", 99),
        ("bottleneck_dim", 7),
        ("trunk_dropout", True),
        ("readout", "auto"),
    ],
)
def test_settings_that_the_adapter_does_not_have(name, value, run):
    content = json.loads((run / "run.json").read_text())
    content["model_settings"][name] = value
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(LatePromptError, match=r"run\.json"):
        load_run(run)


@pytest.mark.parametrize("text", ["[[]]", "3\n4", "[" * 100_000, "version https://git-lfs.github.com/spec/v1\n"])
def test_a_history_that_is_none(text, run):
    (run / "history.jsonl").write_text(text)
    with pytest.raises(LatePromptError, match=r"history\.jsonl"):
        LatePromptClassifier.load(run)


def test_a_manifest_that_is_a_pipe_is_nobodys(run, masked_lm, data):
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")
    load_run(run)  # which would wait for ever
    with pytest.raises(LatePromptError, match=r"manifest\.json"):
        train(masked_lm, data, run, overwrite=True)


# -- leftovers ---------------------------------------------------------------------------------------------------------


def test_a_kill_within_the_first_checkpoint_is_in_nobodys_way(run, masked_lm, data, interrupt):
    folder = RunFolder(run)
    with folder.locked():
        checkpoint = folder.begin(overwrite=True, resume=False)
    assert (checkpoint / STARTED).is_file()
    save_file({"x": torch.zeros(2)}, checkpoint / "tensors-1.safetensors")  # its state did not follow
    (checkpoint / ".tmpA1b2C3").write_bytes(b"half")  # safetensors' own name for a file that is being written
    (run / STAGING).mkdir()
    (run / STAGING / ".tmpZ9y8X7").write_bytes(b"half")
    train(masked_lm, data, run, overwrite=True, seed=2)
    assert not (run / CHECKPOINT).exists()
    assert not (run / STAGING).exists()


def test_a_run_that_goes_on_removes_the_leftovers_of_its_kill(masked_lm, data, tmp_path, interrupt):
    undo = interrupt(1)
    with pytest.raises(KeyboardInterrupt):
        train(masked_lm, data, tmp_path / "run")
    undo()
    assert (tmp_path / "run" / CHECKPOINT / STATE).is_file()
    (tmp_path / "run" / CHECKPOINT / ".tmpA1b2C3").write_bytes(b"half")
    train(masked_lm, data, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_folders_that_were_made_for_nothing_go(masked_lm, data, tmp_path):
    with pytest.raises(LatePromptError, match="diverged"):
        train(masked_lm, data, tmp_path / "a" / "b" / "run", lr=1e30, eval_every=3)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["~", "~/run"])
def test_a_tilde_that_no_shell_has_replaced(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LatePromptError, match="write the whole path"):
        RunFolder(name)
    with pytest.raises(LatePromptError, match="write the whole path"):
        check_output(f"{name}/x.jsonl")
    assert not any(tmp_path.iterdir())
