"""Odd values and broken files, in the estimator, through PEFT and on the command line: said in one line, or right."""

from __future__ import annotations

import os
from decimal import Decimal

import numpy as np
import pyarrow
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny_batch, tiny_model

from lateprompt import AdapterConfig, BitFitConfig, LatePromptClassifier, LatePromptConfig, LatePromptError
from lateprompt.cli.app import main
from lateprompt.data import label_name, load_task
from lateprompt.demo import run_demo
from lateprompt.estimator.inputs import as_texts, as_weights
from lateprompt.experiments.bench import BenchSettings
from lateprompt.state_cache.settings import StatesSettings

WEIGHTS = "adapter_model.safetensors"
LORA = {"peft_type": "LORA", "r": 2, "lora_dropout": 0.5}
CONFIGS = {
    "late": lambda: LatePromptConfig(num_prompt_tokens=2, bottleneck_dim=4, tuner=LORA),
    "adapter": lambda: AdapterConfig(bottleneck_dim=4),
    "bitfit": BitFitConfig,
}


@pytest.fixture(params=CONFIGS)
def adapter(request, tmp_path):
    get_peft_model(tiny_model("bert"), CONFIGS[request.param]()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("tuner", [None, LORA], ids=["prompt", "lora"])
def test_an_adapter_added_to_a_model_that_predicts_does_not_drop_out(tuner):
    def config():
        return LatePromptConfig(num_prompt_tokens=2, bottleneck_dim=4, tuner=tuner, prompt_dropout=0.5)

    batch = tiny_batch("bert")
    model = get_peft_model(tiny_model("bert"), config())
    assert torch.equal(model(**batch)[0], model(**batch)[0])  # the base model was in eval mode
    model.eval()
    model.add_adapter("second", config())
    model.set_adapter("second")
    assert torch.equal(model(**batch)[0], model(**batch)[0])
    model.train()
    assert not torch.equal(model(**batch)[0], model(**batch)[0])


def test_a_pipe_for_weights_does_not_hang_peft(adapter):
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)
    with pytest.raises(LatePromptError, match="is a pipe"):
        PeftModel.from_pretrained(tiny_model("bert"), str(adapter))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x40\0\0\0\0\0\0\0{", b""])
def test_broken_weights_are_an_error_through_peft(adapter, content):
    (adapter / WEIGHTS).write_bytes(content)
    with pytest.raises(LatePromptError, match=r"LFS pointer|truncated"):
        PeftModel.from_pretrained(tiny_model("bert"), str(adapter))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: torch.zeros(7, 7), r"have shape \(7, 7\), and this model and configuration need"),
        (lambda t: t * float("nan"), "are not finite"),
        (lambda t: t.to(torch.int32), "torch.int32, which is no float type"),
        (lambda t: torch.complex(t, t), "torch.complex64, which is no float type"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_through_peft(adapter, change, message):
    weights = load_file(adapter / WEIGHTS)
    name = sorted(weights)[0]
    save_file({**weights, name: change(weights[name])}, adapter / WEIGHTS, {"format": "pt"})
    with pytest.raises(LatePromptError, match=message):
        PeftModel.from_pretrained(tiny_model("bert"), str(adapter))


@pytest.mark.parametrize("kind", [AdapterConfig, BitFitConfig])
def test_target_modules_that_are_no_regular_expression(kind):
    with pytest.raises(LatePromptError, match=r"target_modules '\(' is no regular expression"):
        kind(target_modules="(")


@pytest.mark.parametrize("value", [float("nan"), 0, ["a"], b"x", np.array([1, 2]), object()])
def test_a_task_that_is_no_name(value):
    with pytest.raises(LatePromptError, match="is no name; give one of"):
        load_task(value)


@pytest.mark.parametrize("value", [1, "r=4", ["r"], float("nan"), b"x", np.array([1, 2])])
def test_options_that_are_no_mapping(value):
    with pytest.raises(LatePromptError, match=r"options .* is no value for it; give a mapping"):
        LatePromptClassifier(options=value).fit(["a", "b"], [0, 1])


@pytest.mark.parametrize("value", ["", " ", "a\0b"])
def test_states_in_no_folder(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LatePromptError, match="is no folder; give one, or on or off"):
        StatesSettings(value).check(trunk_dropout=False)


def test_a_seed_below_zero():
    with pytest.raises(LatePromptError, match="seed -1 is no value for it; give a whole number from 0"):
        run_demo(seed=-1, quiet=True)
    with pytest.raises(LatePromptError, match="seed -1 is no value for it; give a whole number from 0"):
        BenchSettings(seed=-1).check()
    with pytest.raises(LatePromptError, match="batch '16' is no value for it"):
        BenchSettings(batch="16").check()  # type: ignore[arg-type]


@pytest.mark.parametrize("action", ["list", "verify"])
def test_states_of_a_folder_that_nothing_was_kept_in_yet(action, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LATEPROMPT_STATES", str(tmp_path / "none"))
    assert main(["states", action]) == 0
    assert capsys.readouterr().out == f"no trunk states in {tmp_path / 'none'}\n"


def test_states_of_no_folder(capsys):
    assert main(["states", "list", "--folder", ""]) == 2
    assert "folder '' is no name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-steps", "1e2"], "lateprompt: --max-steps '1e2' is no value for it; give a whole number\n"),
        (["--quiet=yes"], "lateprompt: --quiet takes no value; leave out 'yes'\n"),
    ],
)
def test_values_that_an_option_does_not_take(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "x", "--train", "y", "--output", "z", *words])
    assert capsys.readouterr().err == message


def test_help_of_a_command_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["help", "states"])
    assert "usage: lateprompt states" in capsys.readouterr().out


def test_decimal_labels_are_saved_and_loaded(masked_lm, tmp_path):
    labels = [Decimal(1), Decimal(2)]
    classifier = LatePromptClassifier(masked_lm, method="npg", max_steps=1, states="off").fit(["good", "bad"], labels)
    classifier.save(tmp_path / "run")
    assert LatePromptClassifier.load(tmp_path / "run").classes_.tolist() == labels


def test_a_duration_is_no_label():
    with pytest.raises(LatePromptError, match="not a name"):
        label_name(np.timedelta64(5, "s"))


def test_texts_in_a_column_of_pyarrow():
    assert (
        as_texts(pyarrow.array(["a", "b"])) == as_texts(pyarrow.chunked_array([["a"], ["b"]])) == as_texts(["a", "b"])
    )


@pytest.mark.parametrize("texts", [{"a", "b"}, frozenset("ab"), {"a": 1, "b": 2}])
def test_texts_without_an_order(texts):
    with pytest.raises(LatePromptError, match="has no rows in an order"):
        as_texts(texts)


def test_a_weight_beyond_all_floats():
    with pytest.raises(LatePromptError, match="is no array of numbers"):
        as_weights([10**400, 1], 2)
