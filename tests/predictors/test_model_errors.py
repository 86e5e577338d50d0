"""Models, methods and options on the command line and in Python that cannot be: one line, exit code 2, nothing left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import make_rows

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import main

OPTIONS = {
    "no such module": (["--method", "lora", "--set", "target_modules=[nope]"], "nope"),
    "no such module, late": (["--method", "late-lora", "--set", "target_modules=[nope]"], "finds none of"),
    "a module that LoRA cannot wrap": (["--method", "lora", "--set", "target_modules=[attention]"], "cannot put tuner"),
    "rank 0": (["--method", "late-lora", "--set", "r=0"], "`r` should be a positive integer"),
    "negative rank": (["--method", "lora", "--set", "r=-8"], "`r` should be a positive integer"),
    "huge rank": (["--method", "late-lora", "--set", "r=1000000000"], "give at most"),
    "dropout": (["--method", "lora", "--set", "lora_dropout=7.0"], "dropout"),
    "activation": (["--method", "adapter", "--set", "activation=nope"], "activation 'nope' is unknown"),
    "width": (["--method", "late-adapter", "--set", "bottleneck_dim=1000000000"], "give at most"),
    "no width": (["--method", "adapter", "--set", "bottleneck_dim=0"], "bottleneck_dim 0"),
    "tokens": (["--method", "p-tuning-v2", "--set", "tokens=1000000"], "give"),
    "tokens at the input": (["--method", "prompt-tuning", "--set", "tokens=1000000"], "give"),
    "prompt tokens": (["--num-prompt-tokens", "1000000"], "num_prompt_tokens 1000000 is too many"),
    "bottleneck": (["--bottleneck-dim", "1000000000"], "bottleneck_dim 1000000000 is too large"),
    "dropped layers": (["--method", "adapterdrop", "--set", "drop_layers=99"], "drop_layers 99"),
    "no label words": (["--readout", "masked_lm"], 'readout="head"'),
}


def train(model: str, data: dict[str, str], output: Path, *extra: str) -> int:
    rows = ["--train", data["train"], "--dev", data["dev"]]
    return main(["train", "--model", model, *rows, "--output", str(output), "--epochs", "1", *extra])


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_that_cannot_be(kind, headless, data, tmp_path, capsys):
    extra, message = OPTIONS[kind]
    assert train(headless, data, tmp_path / "run", *extra) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("files", [("tokenizer.json", "tokenizer_config.json"), ("model.safetensors",)])
def test_half_a_model(files, headless, data, tmp_path, capsys):
    model = Path(shutil.copytree(headless, tmp_path / "model"))
    for name in files:
        (model / name).unlink()
    assert train(str(model), data, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert files[0].partition(".")[0] in error
    assert "Traceback" not in error


def test_predict_looks_at_the_tokenizer_too(headless, data, tmp_path, capsys):
    model = Path(shutil.copytree(headless, tmp_path / "model"))
    assert train(str(model), data, tmp_path / "run") == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    capsys.readouterr()
    assert (
        main(["predict", str(tmp_path / "run"), "--data", data["test"], "--output", str(tmp_path / "out.jsonl")]) == 2
    )
    assert "special tokens and no word" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_the_estimator_gives_advice_for_python(headless):
    rows = make_rows(16)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    with pytest.raises(ValueError, match=r"readout=\"head\""):
        LatePromptClassifier(headless, readout="masked_lm", epochs=1).fit(texts, labels)
    with pytest.raises(ValueError, match="num_prompt_tokens 1000000 is too many"):
        LatePromptClassifier(headless, num_prompt_tokens=10**6, epochs=1).fit(texts, labels)
