"""Many tasks on one base model: the answers of each alone, whatever is asked together, cached or not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_rows, save_tiny
from tiny_tokenizers import wordpiece_tokenizer

import lateprompt
from lateprompt.cli.app import main
from lateprompt.data import Row
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.multi_task import MultiTask
from lateprompt.state_cache.memory import TextCache
from lateprompt.utils.errors import LatePromptError

METHODS: dict[str, list[str]] = {
    "one": ["--method", "read-npg", "--prompt-layer", "2"],
    "fixed": ["--method", "read-fixed", "--prompt-layer", "1", "--num-prompt-tokens", "7", "--max-length", "40"],
    "path": ["--method", "read-npg+lora", "--prompt-layer", "1"],
    "late": ["--method", "npg", "--prompt-layer", "2"],
    "deep": ["--method", "npg+late-lora", "--prompt-layer", "3"],
    "lora": ["--method", "lora"],
}
TEXTS = [row["text"] for row in make_rows(23)] + ["good", "the film"]


def train(model: str, data: dict[str, str], folder: Path, *more: str) -> str:
    arguments = ["--model", model, "--train", data["train"], "--dev", data["dev"], "--output", str(folder), "--quiet"]
    assert main(["train", *arguments, "--epochs", "1", "--lr", "0.01", *more]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: Any, headless: str, data: dict[str, str]) -> dict[str, str]:
    """Runs with heads, by name."""
    place = tmp_path_factory.mktemp("heads")
    return {name: train(headless, data, place / name, *options) for name, options in METHODS.items()}


@pytest.fixture(scope="module")
def words(tmp_path_factory: Any, masked_lm: str, data: dict[str, str]) -> dict[str, str]:
    """Runs with label words, and one with a head, on a masked LM."""
    place = tmp_path_factory.mktemp("words")
    runs = {name: train(masked_lm, data, place / name, *METHODS[name]) for name in ("one", "fixed", "path", "late")}
    return {**runs, "head": train(masked_lm, data, place / "head", *METHODS["one"], "--readout", "head")}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: Any, causal_lm: str, data: dict[str, str]) -> dict[str, str]:
    place = tmp_path_factory.mktemp("decoder")
    return {name: train(causal_lm, data, place / name, *METHODS[name]) for name in ("one", "fixed", "late")}


def expected(runs: dict[str, str], texts: list[str] = TEXTS) -> dict[str, np.ndarray]:
    rows = [Row(text) for text in texts]
    return {name: TextClassifier.load(folder).probabilities(rows) for name, folder in runs.items()}


def table(answers: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([list(answer[name]["scores"].values()) for answer in answers])


def check(answers: list[dict[str, Any]], wanted: dict[str, np.ndarray]) -> None:
    for name, probabilities in wanted.items():
        np.testing.assert_allclose(table(answers, name), probabilities, atol=1e-5)


@pytest.mark.parametrize("kind", ["heads", "words", "decoder"])
@pytest.mark.parametrize("cache_bytes", [0, 10**8])
def test_answers_are_those_of_each_run_alone(request: pytest.FixtureRequest, kind: str, cache_bytes: int) -> None:
    runs = request.getfixturevalue(kind)
    model = MultiTask.load(list(runs.values()), cache_bytes=cache_bytes)
    wanted = expected(runs)
    for _ in range(2):
        answers = model.classify(TEXTS, batch_size=7)
        assert list(answers[0]) == list(runs)
        check(answers, wanted)
    some = model.classify(TEXTS, tasks=["late", "one"], batch_size=5)
    assert list(some[0]) == ["late", "one"]
    check(some, {name: wanted[name] for name in ("late", "one")})


def test_the_base_model_runs_once_for_all(heads: dict[str, str]) -> None:
    chosen = [name for name in METHODS if name not in ("lora", "deep")]
    model = MultiTask.load({name: heads[name] for name in (*chosen, "deep")})
    runs: list[int] = []
    first = model.layer.base_layer.encoder.layer[0]
    first.register_forward_hook(lambda *args: runs.append(1))
    model.classify(TEXTS[:5], tasks=chosen, embeddings=True)
    assert len(runs) == 1
    model.classify(TEXTS[:5], tasks=["late"])
    assert len(runs) == 2
    model.classify(TEXTS[:5], tasks=["late", "deep"])
    assert len(runs) == 4  # a layer each


def test_embeddings_are_the_frozen_models_own(heads: dict[str, str]) -> None:
    model = MultiTask.load(heads)
    answers = model.classify(TEXTS, tasks=["one"], embeddings=True, batch_size=6)
    alone = model.classify(TEXTS, tasks=[], embeddings=True)
    base = TextClassifier.load(heads["one"])
    for text, answer, other in zip(TEXTS, answers, alone, strict=True):
        (example,) = base.encoder.encode([Row(text)])
        ids = torch.tensor(example.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            want = base.layer.base_layer(input_ids=ids).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(answer["embedding"], want.numpy(), atol=1e-5)
        np.testing.assert_allclose(other["embedding"], want.numpy(), atol=1e-5)


def test_the_cache_is_bounded_and_tells_its_hits(heads: dict[str, str]) -> None:
    model = MultiTask.load({name: heads[name] for name in ("one", "fixed")}, cache_bytes=10**8)
    model.classify(TEXTS, batch_size=4)
    different = len(set(TEXTS))
    assert model.cache_info().misses >= different
    assert model.cache_info().texts == different
    before = model.cache_info()
    model.classify(TEXTS, tasks=["fixed"])
    assert model.cache_info().hits - before.hits == len(TEXTS)
    assert model.cache_info().misses == before.misses
    small = MultiTask.load({"one": heads["one"]}, cache_bytes=before.nbytes // 4)
    check(small.classify(TEXTS), expected({"one": heads["one"]}))
    assert 0 < small.cache_info().nbytes <= before.nbytes // 4


def test_what_was_used_longest_ago_goes_first() -> None:
    cache, row = TextCache(200), (torch.zeros(20),)
    cache.put(b"a", row)
    cache.put(b"b", row)
    assert cache.get(b"a") is not None
    cache.put(b"c", row)
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    cache.put(b"large", (torch.zeros(1000),))
    assert cache.get(b"large") is None
    assert cache.info().nbytes == 160
    with pytest.raises(LatePromptError, match="cache_bytes -1"):
        TextCache(-1)


def test_threads_get_the_same(heads: dict[str, str]) -> None:
    model = MultiTask.load(heads, cache_bytes=20_000)
    wanted = expected(heads)
    names = [list(heads), ["path", "one"], ["late", "fixed"], ["deep", "path"]] * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda tasks: model.classify(TEXTS, tasks=tasks, batch_size=3), names))
    for tasks, answers in zip(names, found, strict=True):
        check(answers, {name: wanted[name] for name in tasks})


def test_other_base_models_are_refused(tmp_path: Path, heads: dict[str, str], data: dict[str, str]) -> None:
    other = save_tiny(tmp_path / "other", "bert", "AutoModel", wordpiece_tokenizer(), intermediate_size=40)
    run = train(other, data, tmp_path / "stranger", *METHODS["one"])
    with pytest.raises(LatePromptError, match=r"one.*stranger.*different base models"):
        MultiTask.load([heads["one"], run])


def test_bad_calls(heads: dict[str, str], tmp_path: Path) -> None:
    model = MultiTask.load({"one": heads["one"]})
    for call, message in (
        (lambda: model.classify(["a"], tasks=["two"]), "'two'"),
        (lambda: model.classify("a text"), "is one text"),
        (lambda: model.classify(["a"], tasks="one"), "is one name"),
        (lambda: model.classify(["a"], tasks=[]), "asks for nothing"),
        (lambda: model.classify([3]), "text '3'"),  # type: ignore[list-item]
        (lambda: model.classify(["a"], batch_size=0), "batch_size 0"),
        (lambda: MultiTask.load([]), "empty"),
        (lambda: MultiTask.load(heads["one"]), "is one folder"),
        (lambda: MultiTask.load([heads["one"], heads["one"]]), "the same name 'one'"),
        (lambda: MultiTask.load({"embedding": heads["one"]}), "'embedding' cannot be"),
        (lambda: MultiTask.load([tmp_path / "none"]), "none"),
    ):
        with pytest.raises(LatePromptError, match=message):
            call()
    assert model.classify([]) == []
    assert lateprompt.MultiTask is MultiTask
