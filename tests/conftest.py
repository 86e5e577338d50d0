"""Small models with tokenizers, saved as folders, and made-up rows to train them on."""

from __future__ import annotations

import copy
import functools
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may ask a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # here and in every command: two test processes share two cores
_states = tempfile.TemporaryDirectory(prefix="lateprompt-test-states-")
os.environ["LATEPROMPT_STATES"] = _states.name  # tests keep their states to themselves

import pytest
import tiny_tokenizers
import torch
from tiny_models import tiny_model

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

LONG = (
    "test_compare.py",
    "test_store.py",
    "test_predicting.py",
    "test_readme.py",
    "test_distributed.py",
    "test_startup.py",
)
"""Files that take minutes: first, so that no process waits for another at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


GOOD = ("great", "good", "positive")
BAD = ("terrible", "bad", "negative")


def save_tiny(folder: Path, name: str, auto: str, tokenizer, **overrides) -> str:
    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = tiny_model(name, auto, **{**special, **overrides})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("mlm"), "roberta", "AutoModelForMaskedLM", tiny_tokenizers.bpe_tokenizer())


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("clm"), "gpt2", "AutoModelForCausalLM", tiny_tokenizers.gpt_tokenizer())


@pytest.fixture(scope="session")
def headless(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("bert"), "bert", "AutoModel", tiny_tokenizers.wordpiece_tokenizer())


def make_rows(number: int, start: int = 0) -> list[dict[str, str]]:
    """Rows whose label is the word they hold."""
    rows = []
    for i in range(start, start + number):
        word = (GOOD if i % 2 else BAD)[i // 2 % 3]
        filler = " ".join(
            ["the film", "a long walk", "it was", "the cast", "by the river"][(i + j) % 5] for j in range(i % 4 + 1)
        )
        rows.append({"text": f"{filler} {word} {i % 7}", "label": "positive" if i % 2 else "negative"})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, str]:
    """Files of made-up rows: train, dev, test."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"train": (64, 0), "dev": (24, 100), "test": (20, 200)}
    return {name: write_rows(folder / f"{name}.jsonl", make_rows(n, start)) for name, (n, start) in sizes.items()}


@functools.cache
def _copies_of(load):
    kept = functools.cache(load)
    return lambda *args, **kwargs: copy.deepcopy(kept(*args, **kwargs))


@pytest.fixture
def loaded_once(monkeypatch):
    """Each tiny model is read from its folder once, then copied: for tests of many fits."""
    from lateprompt.predictors import base as tuned

    for name in ("load_base", "load_tokenizer"):
        monkeypatch.setattr(tuned, name, _copies_of(getattr(tuned, name)))
