"""The README of a run folder: a title, front matter that the hub takes, figures, and no path of this machine."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from conftest import make_rows, write_rows

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import main
from lateprompt.data import default_task, load_task, plain_text_task
from lateprompt.runs.model_card import base_name, data_name, model_card, title
from lateprompt.training.settings import ModelSettings

STEPS = ["--prompt-layer", "2", "--bottleneck-dim", "8", "--max-steps", "2", "--batch-size", "8", "--json"]


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def heading(card: str) -> str:
    (found,) = re.findall(r"^# (.*)$", card, re.M)
    return found


def check(card: str, *secrets: object) -> None:
    """No path of this machine, no address."""
    for secret in secrets:
        assert str(secret) not in card
    assert not re.search(r"(?<![\w<])/[\w.-]+/", card.replace("](https://", ""))
    assert "custom" not in card


def test_after_training(masked_lm, data, tmp_path):
    folder = tmp_path / "Tiny-RoBERTa"
    shutil.copytree(masked_lm, folder)
    arguments = ["train", "--model", str(folder), "--train", data["train"], "--task", "sst2", *STEPS]
    assert main([*arguments, "--dev", data["dev"], "--test", data["test"], "--output", str(tmp_path / "run")]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    check(card, tmp_path, data["test"], data["dev"])
    assert heading(card) == "sst2 classifier: npg late prompt on Tiny-RoBERTa"
    assert front_matter(card) == {
        "library_name": "peft",
        "base_model": "Tiny-RoBERTa",
        "pipeline_tag": "text-classification",
        "tags": ["late-prompt-tuning", "lateprompt", "text-classification"],
        "metrics": ["accuracy", "f1", "matthews_correlation"],
    }
    assert re.search(r"\| dev \| accuracy \| \d\.\d{4} \|", card)
    assert re.search(r"\| test, test.jsonl \| mcc \| -?\d\.\d{4} \|", card)
    assert "- training rows: 64" in card
    assert "`negative`, `positive`" in card
    assert 'LatePromptClassifier.load("this-folder")' in card
    assert "lateprompt predict this-folder --data" in card
    assert "## Limits" in card
    card_data = pytest.importorskip("huggingface_hub").ModelCard(card).data
    assert card_data.library_name == "peft"


def test_after_save(headless, tmp_path):
    texts, labels = zip(*((row["text"], row["label"]) for row in make_rows(16)), strict=True)
    classifier = LatePromptClassifier(headless, prompt_layer=2, bottleneck_dim=8, max_steps=2, batch_size=8)
    classifier.fit(list(texts), list(labels)).save(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    check(card, headless, tmp_path)
    assert heading(card) == f"negative / positive classifier: npg late prompt on {base_name(headless)}"
    assert "- training rows: 16" in card
    assert "without dev or test rows" in card
    LatePromptClassifier.load(tmp_path / "saved").save(tmp_path / "again")
    assert heading((tmp_path / "again" / "README.md").read_text()) == heading(card)


def test_of_a_writer(causal_lm, tmp_path):
    rows = [{"text": "the film", "target": "was great"}, {"text": "a walk", "target": "by the river"}] * 4
    train = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = ["train", "--model", causal_lm, "--train", train, "--dev", train, "--max-target-length", "8", *STEPS]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    check(card, causal_lm, tmp_path)
    assert heading(card) == f"Answers: npg late prompt on {base_name(causal_lm)}"
    assert front_matter(card)["pipeline_tag"] == "text-generation"
    assert "perplexity" in front_matter(card)["metrics"]
    assert "load_run" in card


def tuned(task, **settings):
    given = {"model": "roberta-base", "readout": "masked_lm", **settings}
    return SimpleNamespace(task=task, settings=ModelSettings(**given), trainable_parameters=1000, max_length=256)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("npg", "npg late prompt"),
        ("fixed", "fixed late prompt"),
        ("head", "linear head"),
        ("lora", "LoRA"),
        ("late-lora", "late LoRA"),
        ("npg+late-lora", "npg late prompt with late LoRA"),
        ("read-atpg", "atpg read-only late prompt"),
        ("read-npg+late-lora", "npg read-only late prompt with LoRA on the prompt's path"),
        ("full", "full tuning"),
        ("s-idpg", "S-IDPG"),
        ("prompt-tuning", "prompt tuning"),
    ],
)
def test_titles_of_methods(method, expected):
    assert title(tuned(load_task("sst2"), method=method)) == f"sst2 classifier: {expected} on roberta-base"


def test_titles_of_tasks():
    many = default_task([f"label {i}" for i in range(9)], pair=True)
    assert title(tuned(many)).startswith("label 0 / label 1 / label 2 / label 3 / … classifier: npg")
    odd = default_task(["a\nb", "`c` | <d>"], pair=False)
    assert "\n" not in title(tuned(odd))
    assert title(tuned(plain_text_task(pair=False))).startswith("Answers: ")
    assert title(tuned(replace(plain_text_task(pair=False), name="chess"))).startswith("chess answers: ")
    assert '("a text", "its pair")' in model_card(tuned(many), {}, {})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("roberta-base", "roberta-base"),
        ("org/Model-1.5", "org/Model-1.5"),
        ("/home/me/secret/MiniLM-L6", "MiniLM-L6"),
        ("/home/me/secret/MiniLM-L6/", "MiniLM-L6"),
        ("/home/me/MiniLM-L6/model", "MiniLM-L6"),
        ("/home/me/MiniLM-L6/checkpoint-500", "MiniLM-L6"),
        ("../up/MiniLM L6", "MiniLM-L6"),
        ("~/models/MiniLM-L6", "MiniLM-L6"),
        ("C:\\Users\\me\\MiniLM-L6", "MiniLM-L6"),
        ("/c/hub/models--org--name/snapshots/0123abc", "org/name"),
        ("/", "a local model"),
    ],
)
def test_the_base_models_name(model, expected):
    assert base_name(model) == expected
    card = model_card(tuned(load_task("sst2"), model=model), {"accuracy": 0.5}, {"seed": 1})
    assert ("base_model" in front_matter(card)) == (" " not in expected)
    check(card, "secret", "/home", "Users")


def test_a_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert base_name("models/mine") == "mine"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/set", "org/set"),
        ("imdb", "imdb"),
        ("/home/me/a.jsonl", "a.jsonl"),
        ("data/a.csv", "a.csv"),
        ("C:\\Users\\me\\a.csv", "a.csv"),
        ("/home/me/a|b.jsonl", "a'b.jsonl"),
    ],
)
def test_the_names_of_data(source, expected):
    assert data_name(source) == expected
    measured = {"accuracy": 1.0, "dev_sets": {source: {"f1": 0.5}}, "test": {source: {"accuracy": 0.25, "loss": 3.0}}}
    card = model_card(tuned(load_task("sst2")), measured, {})
    assert f"| test, {expected} | accuracy | 0.2500 |" in card
    assert f"| dev, {expected} | f1 | 0.5000 |" in card
    check(card)
