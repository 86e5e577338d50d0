"""Sets of rows: one path for dev and test, rows that sets share, labels that the task or the training rows lack."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.data import Row
from lateprompt.data.row_checks import shared_rows
from lateprompt.runs.train import DataSettings, load_rows, load_run, train_run
from lateprompt.training import fit as fit_module
from lateprompt.training.metrics import UNKNOWN, compute_metrics
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError

RECIPE = RecipeSettings(max_steps=2, batch_size=8, eval_every=1)


def settings(model, **more):
    return ModelSettings(model, **{"method": "npg", "prompt_layer": 2, "bottleneck_dim": 4, **more})


def saved(folder, name="run.json"):
    def no_nan(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads((folder / name).read_text(), parse_constant=no_nan)


def sentences(number, start=0):
    return [{"sentence": row["text"], "label": int(row["label"] == "positive")} for row in make_rows(number, start)]


@pytest.fixture
def hub(monkeypatch):
    """A data set of the hub with three splits."""
    import datasets

    parts = {"train": (24, 0), "validation": (10, 100), "test": (14, 200), "other": (6, 300)}

    def load_dataset(name, config=None, *, split, **more):
        if name not in ("org/set", "org/more"):
            raise ValueError(name)
        number, start = parts[split]
        return datasets.Dataset.from_list(sentences(number, start + 40 * (name == "org/more")))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_one_hub_id_for_all_three(hub, masked_lm, tmp_path, monkeypatch):
    seen = []
    real = fit_module.evaluate
    monkeypatch.setattr(
        fit_module, "evaluate", lambda readout, feed, *a, **k: seen.append(len(feed)) or real(readout, feed, *a, **k)
    )
    data = DataSettings("org/set", dev=["org/set", "org/more", "org/set"], test=["org/set", "org/more"], task="sst2")
    _, measured = train_run(settings(masked_lm), data, RECIPE, tmp_path / "run")
    assert set(seen) == {10}  # weights are chosen on validation rows
    assert measured["dev_rows"] == 10
    assert set(measured["test"]) == {"org/set", "org/more"}
    assert set(measured["dev_sets"]) == {"org/more"}
    prints = {name: facts["rows"] for name, facts in saved(tmp_path / "run")["data"]["fingerprints"].items()}
    assert prints == {"train": 24, "dev": 10, "org/more (validation)": 10, "org/set": 14, "org/more (test)": 14}
    tuned = load_run(tmp_path / "run")
    for name, start in (("org/set", 200), ("org/more", 240)):
        rows = [Row(row["text"], None, row["label"], {}) for row in make_rows(14, start)]
        assert measured["test"][name]["loss"] == pytest.approx(tuned.evaluate(rows)["loss"], abs=1e-5)


def test_one_path_twice(masked_lm, data, tmp_path, capfd):
    both = DataSettings(data["train"], dev=[data["dev"]], test=[data["dev"], data["dev"]], task="sst2")
    _, measured = train_run(settings(masked_lm), both, RECIPE, tmp_path / "run")
    assert measured["test"][data["dev"]]["loss"] == pytest.approx(measured["loss"], abs=1e-6)
    line = f"lateprompt: warning: 24 of 24 rows in {data['dev']!r} are in 'dev' too"
    assert capfd.readouterr().err.count(line) == 1
    facts = saved(tmp_path / "run")["data"]
    assert facts["shared_rows"] == [{"rows": 24, "of": data["dev"], "in": "dev", "total": 24}]
    assert set(facts["fingerprints"]) == {"train", "dev", data["dev"]}


def test_shared_rows_are_counted_and_said_once(masked_lm, tmp_path, capfd):
    rows = make_rows(40)
    blanks = [{**row, "text": f"  {row['text']} "} for row in rows[:3]]
    files = {
        "train": write_rows(tmp_path / "train.jsonl", rows[:30]),
        "dev": write_rows(tmp_path / "dev.jsonl", blanks + make_rows(8, 100)),
        "test": write_rows(tmp_path / "test.jsonl", rows[28:] + make_rows(2, 100)),
    }
    given = [
        "--train",
        files["train"],
        "--dev",
        files["dev"],
        "--test",
        files["test"],
        "--task",
        "sst2",
        "--max-steps",
        "1",
    ]
    assert main(["train", "--model", masked_lm, *given, "--output", str(tmp_path / "run"), "--quiet"]) == 0
    errors = capfd.readouterr().err
    assert [line.partition(";")[0] for line in errors.splitlines() if "too" in line] == [
        "lateprompt: warning: 3 of 11 rows in 'dev' are in 'train' too",
        f"lateprompt: warning: 2 of 14 rows in {files['test']!r} are in 'train' too",
        f"lateprompt: warning: 2 of 14 rows in {files['test']!r} are in 'dev' too",
    ]
    assert [pair["rows"] for pair in saved(tmp_path / "run")["data"]["shared_rows"]] == [3, 2, 2]


def test_separate_sets_are_no_warning(masked_lm, data, tmp_path, capfd):
    rows = DataSettings(data["train"], dev=[data["dev"]], test=[data["test"]], task="sst2")
    train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run")
    assert "warning" not in capfd.readouterr().err
    assert saved(tmp_path / "run")["data"]["shared_rows"] == []


def test_pairs_are_shared_as_pairs():
    shared = shared_rows({"train": [Row("a", "b"), Row("c")], "dev": [Row("a", "c"), Row("c"), Row("a", "b ")]})
    assert shared == [{"rows": 2, "of": "dev", "in": "train", "total": 3}]


def test_labels_of_the_task_that_training_rows_lack(masked_lm, data, tmp_path, capfd):
    only = write_rows(tmp_path / "train.jsonl", [row for row in make_rows(20) if row["label"] == "positive"])
    rows = DataSettings(only, dev=[data["dev"]], test=[data["test"]], task="sst2")
    _, measured = train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run")
    assert 0 < measured["accuracy"] < 1
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize("task", ["sst2", None])
def test_labels_that_the_task_lacks_count_as_wrong(task, headless, masked_lm, data, tmp_path, capfd):
    model = masked_lm if task else headless
    odd = make_rows(20, 200)
    for row in odd[:6]:
        row["label"] = "so-so" if row["label"] == "positive" else "meh"
    odd[0]["label"] = "meh"
    test, known = write_rows(tmp_path / "odd.jsonl", odd), write_rows(tmp_path / "known.jsonl", odd[6:])
    rows = DataSettings(data["train"], dev=[test], test=[test, known], task=task)
    _, measured = train_run(settings(model), rows, RECIPE, tmp_path / "run")
    scores, right = measured["test"][test], measured["test"][known]
    assert scores["accuracy"] == pytest.approx(right["accuracy"] * 14 / 20)
    assert scores["loss"] == pytest.approx(right["loss"], abs=1e-5)  # an unknown label has none
    assert measured["accuracy"] == scores["accuracy"]  # dev alike
    assert all(math.isfinite(value) for value in scores.values())
    errors = capfd.readouterr().err
    assert f"6 of 20 rows in {test!r} have labels that the task does not have ('meh' 3, 'so-so' 3)" in errors
    assert saved(tmp_path / "run")["data"]["unknown_labels"][test] == {"meh": 3, "so-so": 3}
    saved(tmp_path / "run", "metrics.json")
    assert main(["evaluate", str(tmp_path / "run"), "--data", test, "--json"]) == 0
    out, errors = capfd.readouterr()
    assert json.loads(out)["accuracy"] == scores["accuracy"]
    assert errors.count("6 of 20 rows") == 1


def test_no_label_of_the_task_at_all(masked_lm, data, tmp_path, capfd):
    odd = write_rows(tmp_path / "odd.jsonl", [{**row, "label": "other"} for row in make_rows(6, 200)])
    rows = DataSettings(data["train"], test=[odd], task="sst2")
    _, measured = train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run")
    assert measured["test"][odd]["accuracy"] == 0
    assert all(math.isfinite(value) for value in saved(tmp_path / "run", "metrics.json")["test"][odd].values())
    with pytest.raises(LatePromptError, match="none of its 6 rows has a label of the task"):
        train_run(settings(masked_lm), DataSettings(data["train"], dev=[odd], task="sst2"), RECIPE, None)


def test_training_rows_need_labels_of_the_task(masked_lm, tmp_path):
    odd = write_rows(tmp_path / "odd.jsonl", [*make_rows(6), {"text": "a film", "label": "meh"}])
    with pytest.raises(LatePromptError, match="label 'meh'"):
        train_run(settings(masked_lm), DataSettings(odd, task="sst2"), RECIPE, None)


def test_metrics_of_unknown_labels():
    true, predicted = np.array([0, 1, UNKNOWN, 1]), np.array([0, 1, 1, 0])
    values = compute_metrics(["f1", "accuracy_f1_mean"], true, predicted, 2)
    assert values["accuracy"] == 0.5
    assert values["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # of the task's classes; the row is a false alarm
    assert values["f1"] == pytest.approx(1 / 2)
    none = compute_metrics(["f1"], np.array([UNKNOWN, UNKNOWN]), np.array([0, 1]), 2)
    assert set(none.values()) == {0.0}
    with pytest.raises(LatePromptError, match="class ids"):
        compute_metrics([], np.array([-1, UNKNOWN]), np.array([0, 1]), 2)


@pytest.mark.parametrize("kind", ["train", "dev", "test"])
def test_a_finished_run_on_other_rows_is_not_resumed(kind, masked_lm, tmp_path, monkeypatch):
    own = {
        name: write_rows(tmp_path / f"{name}.jsonl", make_rows(16, start))
        for name, start in (("train", 0), ("dev", 100), ("test", 200))
    }
    rows = DataSettings(own["train"], dev=[own["dev"]], test=[own["test"]], task="sst2")
    _, measured = train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run")
    assert train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run", resume=True)[1] == measured
    changed = make_rows(16, {"train": 0, "dev": 100, "test": 200}[kind])
    changed[3]["text"] += " indeed"
    write_rows(tmp_path / f"{kind}.jsonl", changed)
    name = {"train": "'train'", "dev": "'dev'", "test": repr(own["test"])}[kind]
    with pytest.raises(LatePromptError, match=f"finished run on other rows: {name} "):
        train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run", resume=True)
    monkeypatch.chdir(tmp_path)  # paths said in another way are the same files
    near = DataSettings("train.jsonl", dev=["dev.jsonl"], test=["./test.jsonl"], task="sst2")
    with pytest.raises(LatePromptError, match="finished run on other rows"):
        train_run(settings(masked_lm), near, RECIPE, tmp_path / "run", resume=True)


def test_an_interrupted_run_on_other_rows_is_not_resumed(masked_lm, tmp_path, monkeypatch):
    own = write_rows(tmp_path / "train.jsonl", make_rows(16))
    rows = DataSettings(own, task="sst2")
    real = fit_module.save_checkpoint

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run")
    write_rows(tmp_path / "train.jsonl", make_rows(17))
    with pytest.raises(LatePromptError, match=r"other settings \(data: train\)"):
        train_run(settings(masked_lm), rows, RECIPE, tmp_path / "run", resume=True)


@pytest.mark.parametrize(("gap", "expected"), [("NA", 1), ("nan", 1), ("<NA>", 1), ("none", 0)])
def test_labels_that_may_stand_for_none_are_said(gap, expected, tmp_path, capfd):
    path = tmp_path / "train.csv"
    path.write_text(f"text,label\na film,good\na walk,bad\na river,{gap}\n", encoding="utf-8")
    task = load_rows(DataSettings(train=str(path)), 0).task
    assert gap in task.labels
    assert capfd.readouterr().err.count("1 of 3 rows") == expected
