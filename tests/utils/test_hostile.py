"""Adapters that no training wrote: each is refused in one line, at once, and leaves the model as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft_models import MASKED, first_output, late_config, late_model, plain_batch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from lateprompt import LatePromptConfig
from lateprompt.predictors.base import read_adapter_config
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 90868376\n"
HUGE = 10**9

VALUES = {
    "half a number": {"prompt_layer": "0.5x"},
    "nan": {"prompt_layer": float("nan")},
    "infinite": {"prompt_layer": float("inf")},
    "negative": {"prompt_layer": "-1"},
    "deep": {"prompt_layer": 99},
    "list for a layer": {"prompt_layer": [2]},
    "object for a layer": {"prompt_layer": {"a": 2}},
    "true for a layer": {"prompt_layer": True},
    "tokens": {"num_prompt_tokens": 10**6},
    "fixed tokens": {"num_prompt_tokens": 10**6, "generator": "fixed"},
    "pooled tokens": {"num_prompt_tokens": HUGE, "generator": "mppg"},
    "sentence tokens": {"num_prompt_tokens": 10**6, "generator": "sentence"},
    "no tokens": {"num_prompt_tokens": 0},
    "tokens as text": {"num_prompt_tokens": "many"},
    "bottleneck": {"bottleneck_dim": HUGE},
    "bottleneck of pooling": {"bottleneck_dim": HUGE, "generator": "atpg"},
    "bottleneck of a residual": {"bottleneck_dim": HUGE, "generator": "rpg"},
    "phm": {"generator": "sentence", "phm_n": HUGE},
    "labels": {"head_labels": HUGE},
    "labels as text": {"head_labels": "two"},
    "generator": {"generator": "magic"},
    "generator as a list": {"generator": ["npg"]},
    "pooling": {"head_pooling": "max"},
    "dropout": {"prompt_dropout": 1.5},
    "dropout nan": {"prompt_dropout": float("nan")},
    "modules": {"modules_to_save": 5},
    "tuner as text": {"tuner": "LORA"},
    "no type of tuner": {"tuner": {"r": 8}},
    "unknown tuner": {"tuner": {"peft_type": "MAGIC"}},
    "list for a tuner's type": {"tuner": {"peft_type": ["LORA"]}},
    "itself beneath": {"tuner": {"peft_type": "LATE_PROMPT"}},
    "rank": {"tuner": {"peft_type": "LORA", "r": HUGE}},
    "rank 0": {"tuner": {"peft_type": "LORA", "r": 0}},
    "rank as text": {"tuner": {"peft_type": "LORA", "r": "8"}},
    "pattern of ranks": {"tuner": {"peft_type": "LORA", "r": 8, "rank_pattern": {"query": HUGE}}},
    "no such module": {"tuner": {"peft_type": "LORA", "target_modules": ["nope"]}},
    "no such module, all layers": {
        "tuner": {"peft_type": "LORA", "target_modules": ["nope"]},
        "tuner_layers": "all",
    },
    "what LoRA cannot wrap": {"tuner": {"peft_type": "LORA", "target_modules": ["attention"]}},
    "what LoRA cannot wrap, all layers": {
        "tuner": {"peft_type": "LORA", "target_modules": ["query", "LayerNorm"]},
        "tuner_layers": "all",
    },
    "number for modules": {"tuner": {"peft_type": "HOULSBY_ADAPTER", "target_modules": 5}},
    "unknown option": {"tuner": {"peft_type": "LORA", "rank": 8}},
    "unknown start": {"tuner": {"peft_type": "LORA", "init_lora_weights": "magic"}},
    "width of an adapter": {"tuner": {"peft_type": "HOULSBY_ADAPTER", "bottleneck_dim": HUGE}},
    "activation": {"tuner": {"peft_type": "HOULSBY_ADAPTER", "activation": "magic"}},
    "activation as a list": {"tuner": {"peft_type": "HOULSBY_ADAPTER", "activation": ["gelu"]}},
    "rate as text": {"tuner": {"peft_type": "HOULSBY_ADAPTER", "dropout": "0.1"}},
    "layers as text": {"tuner": {"peft_type": "BITFIT", "layers_to_transform": "all"}},
    "prefix": {"generator": "none", "tuner": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**6}},
    "prefix of nothing": {"generator": "none", "tuner": {"peft_type": "PREFIX_TUNING"}},
    "prefix as text": {"generator": "none", "tuner": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": "9"}},
    "no wrapper": {"tuner": {"peft_type": "ADAPTION_PROMPT"}},
    "where": {"tuner": {"peft_type": "LORA"}, "tuner_layers": "roof"},
    "nothing": {"generator": "none"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    late_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_cannot_be(kind, folder):
    data = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**data, **VALUES[kind]}))
    base = tiny_model("bert", MASKED)
    keys, before = list(base.state_dict()), first_output(base, plain_batch("bert"))
    with pytest.raises(LatePromptError) as error:
        PeftModel.from_pretrained(base, folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500
    assert list(base.state_dict()) == keys
    assert torch.equal(first_output(base, plain_batch("bert")), before)


@pytest.mark.parametrize("kind", [kind for kind, values in VALUES.items() if "tuner" in values])
def test_a_model_with_an_adapter_keeps_it(kind):
    model, batch = late_model("bert", tuner={"peft_type": "LORA", "r": 2}), plain_batch("bert")
    before, keys = first_output(model, batch), set(model.state_dict())
    with pytest.raises(LatePromptError):
        model.add_adapter("other", late_config(MASKED, **VALUES[kind]))
    assert set(model.state_dict()) == keys
    assert torch.equal(first_output(model, batch), before)


def test_the_largest_size_is_named():
    with pytest.raises(LatePromptError, match=r"num_prompt_tokens 1000000 is too many.*64 positions; give 1 to 1024"):
        late_model("bert", num_prompt_tokens=10**6)
    with pytest.raises(LatePromptError, match=r"bottleneck_dim 1000000000 is too large.*give at most (\d+)") as error:
        late_model("bert", bottleneck_dim=HUGE)
    most = int(str(error.value).rpartition(" ")[2])
    assert 10_000 < most < 10**7


@pytest.mark.parametrize("size", [{"num_prompt_tokens": 1000}, {"bottleneck_dim": 5000}, {"head_labels": 5000}])
def test_large_sizes_that_fit(size):
    model = late_model("bert", **size)
    assert torch.isfinite(first_output(model, plain_batch("bert"))).all()


# -- files -------------------------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


FILES = {
    "pipe": (pipe, "is a pipe"),
    "device": (device, "is a device"),
    "folder": (into_folder, "is a folder"),
    "gone": (lambda path: path.unlink(), "does not exist"),
    "pointer": (lambda path: path.write_text(LFS), "git lfs pull"),
    "empty": (lambda path: path.write_text(""), "broken|truncated"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00\x01" * 10), "broken|truncated"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 3), "broken|truncated"),
}
JSON = {
    **FILES,
    "deep objects": (lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "deep lists": (lambda path: path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deeply"),
    "deep list": (lambda path: path.write_text("[" * 900 + "]" * 900), "not an object"),
    "list": (lambda path: path.write_text("[]"), "not an object"),
    "digits": (lambda path: path.write_text('{"num_prompt_tokens": ' + "9" * 10_000 + "}"), "broken"),
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("read", [LatePromptConfig.from_pretrained, read_adapter_config])
def test_configurations_that_cannot_be_read(kind, read, folder):
    break_it, message = JSON[kind]
    break_it(folder / CONFIG)
    with pytest.raises(LatePromptError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", FILES)
def test_weights_that_cannot_be_read(kind, folder):
    break_it, message = FILES[kind]
    break_it(folder / WEIGHTS)
    with pytest.raises(LatePromptError, match=message):
        read_tensors(folder / WEIGHTS, "adapter file")


def test_a_tuner_nested_deeply(folder):
    data, inner = json.loads((folder / CONFIG).read_text()), {"peft_type": "LORA"}
    for _ in range(200):
        inner = {"peft_type": "LORA", "config": inner}
    (folder / CONFIG).write_text(json.dumps({**data, "tuner": inner}))
    with pytest.raises(LatePromptError, match="levels deep"):
        LatePromptConfig.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tuner", [None, {"peft_type": "LORA", "r": 2}])
def test_weights_that_are_not_finite(value, tuner, tmp_path):
    late_model("bert", tuner=tuner).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(key for key in tensors if ("lora" if tuner else "up") in key)
    tensors[name].view(-1)[0] = value
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(LatePromptError, match=r"weights 'late_prompt_.* are not finite"):
        PeftModel.from_pretrained(tiny_model("bert", MASKED), tmp_path)


def test_the_configuration_still_loads_by_peft(saved):
    config = PeftConfig.from_pretrained(saved)
    assert isinstance(config, LatePromptConfig)
    assert config == LatePromptConfig.from_pretrained(saved) == LatePromptConfig.from_pretrained(str(saved))
    assert config.peft_type == "LATE_PROMPT"
    assert read_json(saved / CONFIG, "configuration")["peft_type"] == "LATE_PROMPT"
    get_peft_model(tiny_model("bert", MASKED), config)
