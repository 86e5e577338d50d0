"""A multi-label run by the command line: training, folder, evaluate, predict, many runs at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.data import MultiLabelTask, Row
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.kinds import load_run
from lateprompt.predictors.multi_label import MultiLabelClassifier
from lateprompt.predictors.multi_task import MultiTask
from lateprompt.utils.errors import LatePromptError

PLACES = ("film", "walk", "cast", "river")


def labels_of(text: str) -> list[str]:
    words = set(text.split())
    found = [name for name, own in (("good", GOOD), ("bad", BAD)) if words & set(own)]
    return [*found, *(place for place in PLACES if place in words)]


def rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    made = [{"text": row["text"], "labels": labels_of(row["text"])} for row in make_rows(number, start)]
    return [*made, {"text": "it was", "labels": []}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    sizes = {"train": (64, 0), "dev": (40, 100), "test": (30, 200)}
    return {name: write_rows(folder / f"{name}.jsonl", rows(*size)) for name, size in sizes.items()}


def train(model: str, files: dict[str, str], folder: Path, *more: str) -> str:
    arguments = ["--model", model, "--train", files["train"], "--dev", files["dev"], "--output", str(folder), "--quiet"]
    assert main(["train", *arguments, "--lr", "0.03", "--batch-size", "16", "--states", "off", *more]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any, headless: str, files: dict[str, str]) -> str:
    folder = tmp_path_factory.mktemp("run") / "tags"
    return train(headless, files, folder, "--max-steps", "60", "--test", files["test"], "--method", "read-npg")


def test_it_learns_and_leaves_a_folder(run: str, files: dict[str, str]) -> None:
    folder = Path(run)
    measured = json.loads((folder / "metrics.json").read_text())
    test = measured["test"][files["test"]]
    # Always the most frequent labels: at most .55 here.
    assert test["micro_f1"] > 0.7
    assert set(test["by_label"]) == {"good", "bad", *PLACES}
    said = json.loads((folder / "run.json").read_text())
    assert set(said["thresholds"]) == {"good", "bad", *PLACES}
    assert all(0 < value < 1 for value in said["thresholds"].values())
    card = (folder / "README.md").read_text()
    assert "Gives texts any of 6 labels" in card
    assert "| micro_f1 |" in card


def test_loading_gives_the_same_answers(run: str, files: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    tuned = load_run(run)
    assert isinstance(tuned, MultiLabelClassifier)
    assert isinstance(tuned.task, MultiLabelTask)
    texts = [Row(row["text"], labels=tuple(row["labels"])) for row in rows(30, 200)]
    probabilities = tuned.probabilities(texts)
    assert probabilities.shape == (31, 6)
    answers = tuned.answers_of(tuned.scores(texts))
    chosen = [
        [name for name, yes in zip(tuned.task.labels, row >= tuned.thresholds, strict=True) if yes]
        for row in probabilities
    ]
    assert answers == chosen

    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert main(["predict", run, "--data", files["test"], "--output", str(tmp_path / name)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == answers
    assert list(lines[0]["scores"]) == list(tuned.task.labels)
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prediction"] for row in table] == ["|".join(own) for own in answers]
    again = tmp_path / "again"
    tuned.save(again)
    assert np.array_equal(load_run(again).thresholds, tuned.thresholds)  # type: ignore[union-attr]

    capsys.readouterr()
    assert main(["evaluate", run, "--data", files["test"], "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["micro_f1"] == pytest.approx(
        json.loads((Path(run) / "metrics.json").read_text())["test"][files["test"]]["micro_f1"]
    )
    assert main(["evaluate", run, "--data", files["test"]]) == 0
    assert "threshold" in capsys.readouterr().out


def test_predicted_tables_are_read_as_rows(run: str, files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert main(["predict", run, "--data", files["test"], "--output", str(out)]) == 0
    assert main(["evaluate", run, "--data", str(out), "--label-column", "prediction"]) == 0


def test_unknown_labels_are_missed_ones(run: str, files: dict[str, str]) -> None:
    tuned = load_run(run)
    known = [Row("the film good", labels=("film", "good"))]
    more = [Row("the film good", labels=("film", "good", "new"))]
    assert tuned.evaluate(more)["subset_accuracy"] == 0
    assert tuned.evaluate(more)["micro_f1"] < tuned.evaluate(known)["micro_f1"]
    with pytest.raises(LatePromptError, match="row 1 has label 'new', which task custom does not have"):
        tuned.batches(more)


def test_it_begins_at_how_often_labels_occur(headless: str, files: dict[str, str], tmp_path: Path) -> None:
    """And without dev rows all thresholds are 0.5."""
    folder = tmp_path / "run"
    arguments = ["--model", headless, "--train", files["train"], "--output", str(folder), "--quiet", "--states", "off"]
    assert main(["train", *arguments, "--max-steps", "1", "--lr", "1e-9"]) == 0
    tuned = load_run(folder)
    shares = np.mean([[label in row["labels"] for label in tuned.task.labels] for row in rows(64)], 0)
    assert isinstance(tuned, MultiLabelClassifier)
    bias = torch.sigmoid(tuned.readout.head.bias.detach()).numpy()
    assert np.abs(bias - shares).max() < 0.01
    assert (tuned.thresholds == 0.5).all()


def test_the_same_seed_gives_the_same_weights(headless: str, files: dict[str, str], tmp_path: Path) -> None:
    folders = [train(headless, files, tmp_path / name, "--max-steps", "4") for name in ("one", "two")]
    one, two = ((Path(folder) / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == two


def test_without_dev_rows_folds_choose_the_thresholds(
    headless: str, files: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    arguments = ["--model", headless, "--train", files["train"], "--output", str(folder), "--quiet", "--folds", "2"]
    assert (
        main(["train", *arguments, "--method", "head", "--max-steps", "4", "--states", str(tmp_path / "states")]) == 0
    )
    assert "expect a micro F1 of" in capsys.readouterr().out
    measured = json.loads((folder / "metrics.json").read_text())
    assert 0 <= measured["cross_validation"]["micro_f1"] <= 1
    assert (load_run(folder).thresholds != 0.5).any()  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["head", "npg+late-lora", "full"])
def test_any_method_trains_it(headless: str, files: dict[str, str], tmp_path: Path, method: str) -> None:
    folder = train(headless, files, tmp_path / "run", "--max-steps", "2", "--method", method)
    assert load_run(folder).probabilities([Row("the film")]).shape == (1, 6)  # type: ignore[union-attr]


def test_beside_other_runs(
    run: str, headless: str, data: dict[str, str], files: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    mood = train(headless, data, tmp_path / "mood", "--max-steps", "4", "--method", "read-npg")
    texts = [row["text"] for row in rows(20, 200)]
    alone = load_run(run)
    probabilities = alone.probabilities([Row(text) for text in texts])  # type: ignore[union-attr]
    found = MultiTask.load([run, mood]).classify(texts)
    assert [answer["tags"]["label"] for answer in found] == alone.answers_of(
        alone.scores([Row(text) for text in texts])
    )  # type: ignore[union-attr]
    scores = np.array([[*answer["tags"]["scores"].values()] for answer in found])
    assert np.abs(scores - probabilities).max() < 1e-5
    assert {answer["mood"]["label"] for answer in found} <= {"positive", "negative"}
    out = tmp_path / "all.csv"
    assert main(["predict", run, mood, "--data", files["test"], "--output", str(out)]) == 0
    with out.open(newline="") as file:
        assert next(csv.DictReader(file))["tags"].split("|") == found[0]["tags"]["label"]


def test_what_cannot_be(run: str, masked_lm: str, files: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    given = ["train", "--model", masked_lm, "--train", files["train"], "--output", str(tmp_path / "x")]
    assert main([*given, "--readout", "masked_lm"]) == 2
    assert "the task is multi-label; give head" in capsys.readouterr().err
    assert main([*given, "--task", "sst2"]) == 2
    capsys.readouterr()
    assert main([*given, "--label-words", '{"film": "film"}']) == 2
    assert "several labels each" in capsys.readouterr().err
    with pytest.raises(LatePromptError, match="multi-label; load it by load_run"):
        TextClassifier.load(run)
    broken = tmp_path / "broken"
    load_run(run).save(broken)
    said = json.loads((broken / "run.json").read_text())
    said["thresholds"]["film"] = "high"
    (broken / "run.json").write_text(json.dumps(said))
    with pytest.raises(LatePromptError, match="'high' for label 'film' is no number"):
        load_run(broken)


def test_one_label_a_row_is_noticed(headless: str, tmp_path: Path, capsys: Any) -> None:
    made = [{"text": row["text"], "labels": row["label"]} for row in make_rows(8)]
    path = write_rows(tmp_path / "rows.jsonl", made)
    more = ["--max-steps", "1", "--quiet", "--states", "off"]
    assert main(["train", "--model", headless, "--train", path, "--output", str(tmp_path / "run"), *more]) == 0
    assert "all 8 rows have exactly one label" in capsys.readouterr().err


def test_its_mistakes_and_its_assessment(run: str, files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "errors.csv"
    assert main(["evaluate", run, "--data", files["test"], "--errors", str(out)]) == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    tuned = load_run(run)
    made = [Row(row["text"], labels=tuple(row["labels"])) for row in rows(30, 200)]
    assert isinstance(tuned, MultiLabelClassifier)
    found = tuned.assess(made)
    wrong = sum(set(row.labels or ()) != set(own) for row, own in zip(made, found.answers(), strict=True))
    assert 0 < len(table) == wrong == round((1 - tuned.evaluate(made)["subset_accuracy"]) * len(made))
    assert all(set(row["expected"].split("|")) != set(row["prediction"].split("|")) for row in table)
    sure = [float(row["score"]) for row in table]
    assert sure == sorted(sure, reverse=True)
    assert not {"ece", "confusion", "classes"} & {*tuned.evaluate(made)}
    assert "by_label" not in tuned.evaluate(made, details=False)
    assert tuned.calibrate(tuned.batches(made)) == {}
    assert tuned.calibration.temperature == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "tfidf"], "method 'tfidf' gives a text one label"),
        (["--method", "embedding-lr"], "method 'embedding-lr' gives a text one label"),
        (["--class-weight", "balanced"], "class_weight 'balanced' is for one label a row"),
        (["--method", "auto"], "choose by the accuracy of one label a row"),
        (["--prompt-layer", "auto"], "choose by the accuracy of one label a row"),
    ],
)
def test_what_is_for_one_label_a_row(
    headless: str, files: dict[str, str], tmp_path: Path, capsys: Any, more: list[str], said: str
) -> None:
    model = [] if "tfidf" in more else ["--model", headless]
    folder = tmp_path / "run"
    given = ["--train", files["train"], "--dev", files["dev"], "--output", str(folder), "--quiet"]
    assert main(["train", *model, *given, *more]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "run.json").exists()


def test_analyses(run: str, headless: str, files: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    """By layer they are those of micro F1; the others ask for one label a row."""
    given = ["--model", headless, "--train", files["train"], "--dev", files["dev"], "--max-steps", "2", "--quiet"]
    assert main(["analyze", "layers", *given, "--layers", "1", "--output", str(tmp_path / "layers")]) == 0
    assert any("micro_f1" in path.read_text() for path in (tmp_path / "layers").glob("*.jsonl"))
    for what in ("influence", "information"):
        assert main(["analyze", what, *given, "--layers", "1", "--output", str(tmp_path / what)]) == 2
        assert "has several labels a row" in capsys.readouterr().err
    assert main(["analyze", "instances", run, "--data", files["test"], "--output", str(tmp_path / "own")]) == 2
    assert "gives a text several labels" in capsys.readouterr().err
