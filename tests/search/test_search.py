"""Searches on tiny models: what is tried, what is left in the run folder, going on, and what cannot be searched."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
from conftest import make_rows, write_rows

from lateprompt import LatePromptClassifier
from lateprompt.cli import main
from lateprompt.data import Row, default_task
from lateprompt.predictors.kinds import load_run
from lateprompt.runs.data import Rows
from lateprompt.runs.searching import find_settings
from lateprompt.search import searching
from lateprompt.search.choice import choose
from lateprompt.search.rows import parts_of
from lateprompt.search.settings import SearchSettings
from lateprompt.search.study import Study
from lateprompt.search.trying import Trying
from lateprompt.state_cache import layers
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

TASK = default_task(["negative", "positive"], pair=False)
RECIPE = RecipeSettings(max_steps=4, batch_size=16, seed=3)


def rows(number, start=0):
    return [Row(row["text"], None, row["label"], {}) for row in make_rows(number, start=start)]


def found(model, folder, *, tries=3, train=24, dev=0, method="auto", layer="auto", place=None, **more):
    settings = ModelSettings(model, method=method, prompt_layer=layer, device="cpu", bottleneck_dim=8, **more)
    given = Rows(TASK, rows(train), rows(dev, 500))
    search = SearchSettings(tries=tries)
    return find_settings(settings, given, RECIPE, StatesSettings(str(folder)), search, prepare=lambda: place)


def plain(result):
    """What a search has found, without times."""
    lines = [{name: value for name, value in line.items() if name != "seconds"} for line in result.records]
    return lines, asdict(result.model), asdict(result.recipe), asdict(result.choice), result.probes


def test_one_pass_keeps_the_states_of_all_layers_and_no_trunk_runs_afterwards(headless, tmp_path, monkeypatch):
    fills = []
    fill = layers.needed_states

    def counted(readout, examples):
        fills.append(len(examples))
        return fill(readout, examples)

    monkeypatch.setattr(layers, "needed_states", counted)
    result = found(headless, tmp_path / "states", tries=9)
    assert fills == [24]
    assert set(result.probes) == {1, 2, 3}
    methods = {line["method"]: line for line in result.records}
    assert {"npg", "read-npg", "late-lora", "read-npg+lora", "npg+late-lora", "late-full", "head"} <= set(methods)
    assert all(line["state"] in ("complete", "pruned") and line["score"] is not None for line in result.records)
    assert result.records[0]["method"] == "npg"
    assert result.records[0]["state"] == "complete"  # the default is never dropped
    assert [line["chosen"] for line in result.records].count(True) == 1
    assert result.choice.low <= result.choice.accuracy <= result.choice.high


def test_tries_and_seed_decide_what_is_found(headless, tmp_path):
    first, second = (found(headless, tmp_path / name, tries=9) for name in ("a", "b"))
    assert plain(first) == plain(second)
    assert len(first.records) == 9
    settings = {(line["method"], line["prompt_layer"], line["lr"]) for line in first.records}
    assert len(settings) == 9  # nothing is tried twice


def test_interrupted_search_goes_on_where_it_stopped(headless, tmp_path, monkeypatch):
    whole = found(headless, tmp_path / "states", tries=3)
    climbed, climb = [], Trying.climb

    def interrupted(self, steps):
        climbed.append(steps)
        if len(climbed) == 4:
            raise KeyboardInterrupt
        return climb(self, steps)

    place = tmp_path / "checkpoint"
    place.mkdir()
    monkeypatch.setattr(Trying, "climb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found(headless, tmp_path / "states", tries=3, place=place)
    journal = place / "search-journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 6, "wor')  # killed as it wrote
    assert [name.name for name in place.iterdir()] == ["search-journal.jsonl"]
    again = found(headless, tmp_path / "states", tries=3, place=place)
    assert climbed.count(2) <= 4  # the first one was not tried again
    assert [line["score"] for line in again.records] == [line["score"] for line in whole.records]
    assert again.model == whole.model
    with pytest.raises(LatePromptError, match="other settings or rows"):
        found(headless, tmp_path / "states", tries=3, place=place, train=23)


def test_budget_ends_the_search_and_the_default_remains(headless, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "SPARE_SECONDS", 1e9)
    settings = ModelSettings(headless, method="auto", device="cpu")
    given, states = Rows(TASK, rows(24)), StatesSettings(str(tmp_path))
    result = find_settings(settings, given, RECIPE, states, SearchSettings("1s"))
    assert [line["method"] for line in result.records] == ["npg"]
    assert result.model.method == "npg"
    assert result.choice.accuracy > 0  # measured at the first rung


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
def test_label_words_can_be_searched(kind, tmp_path, request):
    result = found(request.getfixturevalue(kind), tmp_path, tries=3, dev=12)
    assert {line["state"] for line in result.records} <= {"complete", "pruned"}
    assert result.facts["measured_on"] == "12 dev rows"


def test_layers_alone_are_searched_for_a_given_method(headless, tmp_path):
    result = found(headless, tmp_path, tries=3, method="read-npg", layer="auto")
    assert {line["method"] for line in result.records} == {"read-npg"}
    assert len({line["prompt_layer"] for line in result.records}) > 1
    fixed = found(headless, tmp_path, tries=2, layer=1)
    assert {line["prompt_layer"] for line in fixed.records} == {1}


def test_what_cannot_run_is_skipped_with_a_note(headless, tmp_path, monkeypatch):
    build = searching.FrozenRows.build

    def broken(self, settings, layer, *, seed):
        if settings.method == "late-lora":
            raise LatePromptError("method 'late-lora' cannot be")
        return build(self, settings, layer, seed=seed)

    monkeypatch.setattr(searching.FrozenRows, "build", broken)
    result = found(headless, tmp_path, tries=4)
    skipped = [line for line in result.records if line["method"] == "late-lora"]
    assert [(line["state"], line["note"]) for line in skipped] == [("skipped", "method 'late-lora' cannot be")]


def test_the_frozen_model_is_the_same_after_every_candidate(headless, tmp_path):
    settings = ModelSettings(headless, method="auto", prompt_layer="auto", device="cpu", bottleneck_dim=8)
    own = searching.Search(settings, TASK, rows(24), [], RECIPE, SearchSettings(tries=8))
    before = {name: value.clone() for name, value in own.frozen.base.named_parameters()}
    own.run(StatesSettings("off"))
    after = dict(own.frozen.base.named_parameters())
    assert list(before) == list(after)
    assert all((value == after[name]).all() for name, value in before.items())


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_default_is_kept_unless_another_is_better_by_more_than_noise():
    random = np.random.default_rng(1)
    labels = random.integers(2, size=300)
    default = np.where(random.random(300) < 0.7, labels, 1 - labels)
    level = np.where(random.random(300) < 0.7, labels, 1 - labels)
    better = np.where(random.random(300) < 0.9, labels, 1 - labels)
    assert choose(np.stack([default, default]), labels, ["accuracy"], 1).winner == 0
    slightly = default.copy()
    slightly[np.flatnonzero(default != labels)[0]] = labels[np.flatnonzero(default != labels)[0]]
    assert choose(np.stack([default, slightly]), labels, ["accuracy"], 1).winner == 0  # a row is no reason
    found = choose(np.stack([default, level, better]), labels, ["macro_f1"], 1)
    assert found.winner == 2
    assert found.low < np.mean(better == labels) < found.high


def test_expected_accuracy_is_corrected_for_the_choice():
    random = np.random.default_rng(2)
    labels = random.integers(2, size=60)
    guesses = random.integers(2, size=(40, 60))  # the best of 40 guessers looks good, and is worth .5
    found = choose(guesses, labels, ["accuracy"], 1)
    assert found.score > 0.6
    assert abs(found.accuracy - 0.5) < abs(found.score - 0.5) / 2
    assert found.low < 0.5 < found.high


def test_folds_hold_out_each_row_once():
    labels = np.array([0] * 30 + [1] * 12 + [2])
    parts = parts_of(labels, 0, seed=1)
    tested = np.concatenate([part.test for part in parts])
    assert sorted(tested) == list(range(43))
    assert all(not set(part.train) & set(part.test) for part in parts)
    (held,) = parts_of(labels, 5, seed=1)
    assert (len(held.train), held.test.tolist()) == (38, [38, 39, 40, 41, 42])


# -- the ways in ------------------------------------------------------------------------------------------------------


def test_command_leaves_an_ordinary_run_of_the_winner(headless, tmp_path, capsys):
    train, test = (
        write_rows(tmp_path / name, make_rows(n, s)) for name, n, s in (("a.jsonl", 24, 0), ("b.jsonl", 12, 90))
    )
    output = tmp_path / "run"
    words = ["train", "--model", headless, "--train", train, "--test", test, "--method", "auto", "--tries", "3"]
    words += ["--max-steps", "4", "--states", str(tmp_path / "states"), "--output", str(output)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "chosen" in shown
    assert "expected_accuracy" in shown
    metrics = json.loads((output / "metrics.json").read_text())
    run = json.loads((output / "run.json").read_text())
    lines = [json.loads(line) for line in (output / "search.jsonl").read_text().splitlines()]
    chosen = next(line for line in lines if line["chosen"])
    assert run["model_settings"]["method"] == metrics["chosen_method"] == chosen["method"]
    assert run["recipe"]["lr"] == metrics["chosen_lr"] == chosen["lr"]
    assert run["search"]["asked"] == {"method": "auto", "prompt_layer": 0.5, "lr": None}
    assert metrics["expected_low"] <= metrics["expected_accuracy"] <= metrics["expected_high"]
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == []
    assert load_run(output).settings.method == chosen["method"]
    assert main(["evaluate", str(output), "--data", test]) == 0
    before = (output / "manifest.json").read_bytes()
    assert main([*words, "--resume"]) == 0  # it has finished: nothing is trained
    assert (output / "manifest.json").read_bytes() == before
    other = [word if word != "auto" else "npg" for word in words if word not in ("--tries", "3")]
    assert main([*other[: other.index("--output")], "--prompt-layer", "auto", "--output", str(output), "--resume"]) == 2
    assert main([*words, "--overwrite"]) == 0


def test_estimator_searches(headless, tmp_path):
    texts, labels = zip(*((row["text"], row["label"]) for row in make_rows(24)), strict=True)
    more = {"max_steps": 4, "states": str(tmp_path), "bottleneck_dim": 8, "random_state": 3}
    own = LatePromptClassifier(headless, method="auto", prompt_layer="auto", tries=3, **more).fit(texts, labels)
    assert own.classifier_.settings.method == own.metrics_["chosen_method"]
    assert len(own.search_) == 3
    assert own.predict(texts[:2]).shape == (2,)
    own.save(tmp_path / "saved")
    again = LatePromptClassifier.load(tmp_path / "saved")
    assert again.method == "auto"
    assert (again.predict_proba(texts[:3]) == own.predict_proba(texts[:3])).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "auto", "--set", "r=4"], "'r' is of one"),
        (["--method", "auto", "--budget", "soon"], "'soon' is no time"),
        (["--budget", "2m"], "is for a search"),
        (["--method", "auto", "--tries", "0"], "tries"),
        (["--method", "lora", "--prompt-layer", "auto"], "'lora' does not keep"),
        (["--method", "auto", "--trunk-dropout", "--states", "off"], "leave out --trunk-dropout"),
        (["--method", "auto", "--read-only"], "leave out --read-only"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(words, said, headless, data, tmp_path, capsys):
    asked = ["train", "--model", headless, "--train", data["train"], "--output", str(tmp_path / "run"), *words]
    assert main(asked) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_texts_as_answers_cannot_be_searched(causal_lm, tmp_path, capsys):
    train = write_rows(
        tmp_path / "train.jsonl", [{"text": f"so {i}", "target": f"answer {i} of many"} for i in range(9)]
    )
    words = ["train", "--model", causal_lm, "--train", train, "--method", "auto", "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert "has texts for answers" in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(headless, data, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("optuna", "lateprompt.search.s"))]:
        if name not in ("lateprompt.search.settings",):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ["train", "--model", headless, "--train", data["train"], "--output", str(tmp_path / "run")]
    assert main([*words, "--method", "auto"]) == 2
    assert "pip install 'lateprompt[search]'" in capsys.readouterr().err


def test_study_says_that_a_journal_is_broken(tmp_path):
    journal = tmp_path / "search-journal.jsonl"
    journal.write_text("[1]\n")
    with pytest.raises(LatePromptError, match="broken"):
        Study(None, 1, journal, "{}")
