"""The authors' checkpoints as files, and what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from test_golden import GOLDEN, base_model, read

from lateprompt.interop import authors_checkpoint as reference

PATH = GOLDEN / "roberta-npg-p2-k3.safetensors"
SETTINGS = {"generator": "npg", "prompt_layer": 2, "num_prompt_tokens": 3, "bottleneck_dim": 8}


@pytest.fixture
def weights():
    return {k.removeprefix("weight/"): v for k, v in read(PATH)[0].items() if k.startswith("weight/")}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files(suffix, weights, tmp_path):
    path = tmp_path / f"checkpoint.{suffix}"
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    ids = torch.arange(5, 13)[None]
    models = [reference.load(base_model("roberta"), source, **SETTINGS).eval() for source in (path, str(path), weights)]
    logits = [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for model in models]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    models[0].save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(models[0].unload(), tmp_path / "adapter").eval()
    assert torch.equal(again(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, logits[0])


class Trap:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_no_code_is_run(tmp_path, capsys):
    path = tmp_path / "trap.bin"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        reference.load(base_model("roberta"), path, **SETTINGS)
    torch.save({"weight": Trap()}, path)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        reference.load(base_model("roberta"), path, **SETTINGS)
    assert "a pickle was run" not in capsys.readouterr().out


def test_more_than_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "state.bin")
    with pytest.raises(ValueError, match="more than named tensors"):
        reference.load(base_model("roberta"), tmp_path / "state.bin", **SETTINGS)


def test_truncated_and_missing_files(tmp_path):
    path = tmp_path / "half.safetensors"
    path.write_bytes(PATH.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"half.safetensors' cannot be read"):
        reference.load(base_model("roberta"), path, **SETTINGS)
    with pytest.raises(ValueError, match="does not exist"):
        reference.load(base_model("roberta"), tmp_path / "none.bin", **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prompt_tokens": 4}, "num_prompt_tokens=4"),
        ({"bottleneck_dim": 16}, "bottleneck_dim=16"),
        ({"generator": "mppg"}, "generator='mppg'"),
        ({"generator": "best"}, "generator 'best' is unknown"),
        ({"prompt_layer": 4}, "prompt_layer 4 is out of range"),
    ],
)
def test_settings_that_do_not_fit(change, message, weights):
    with pytest.raises(ValueError, match=message):
        reference.load(base_model("roberta"), weights, **{**SETTINGS, **change})


def test_foreign_checkpoints(weights):
    with pytest.raises(ValueError, match=r"neither 'prompt_embedding\.weight'"):
        reference.load(base_model("roberta"), {"a": torch.zeros(1)}, **SETTINGS)
    with pytest.raises(ValueError, match=r"'encoder\.extra' is not in RobertaForMaskedLM"):
        reference.load(base_model("roberta"), {**weights, "encoder.extra": torch.zeros(1)}, **SETTINGS)
    weights["roberta.embeddings.word_embeddings.weight"] = torch.zeros(5, 32)
    with pytest.raises(ValueError, match=r"shape \(5, 32\) in the checkpoint, \(120, 32\) in the model"):
        reference.load(base_model("roberta"), weights, **SETTINGS)
