"""Answers one can use: calibrated probabilities, evaluation class by class, files of mistakes, class weights."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_rows, write_rows
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from lateprompt import LatePromptClassifier, MultiTask
from lateprompt.cli.app import main
from lateprompt.data import Row
from lateprompt.predictors.assessment import OTHER, Assessment
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.runs.answers import warn_of_one_class
from lateprompt.training.calibration import Calibration
from lateprompt.training.evaluate import softmax
from lateprompt.training.settings import RecipeSettings

FAST = ["--task", "sst2", "--prompt-layer", "2", "--bottleneck-dim", "8", "--max-steps", "6", "--lr", "0.02", "--quiet"]
LABELS = ["negative", "positive"]


def train(model: str, data: dict[str, str], output: Path, *more: str) -> dict[str, Any]:
    given = ["--model", model, "--train", data["train"], "--output", str(output)]
    assert main(["train", *given, *FAST, *more]) == 0
    return json.loads((output / "metrics.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any, masked_lm: str, data: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sst2"
    train(masked_lm, data, folder, "--dev", data["dev"], "--test", data["test"])
    return Path(folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: Any) -> tuple[str, list[dict[str, str]]]:
    """A file with an unknown label and wrong ones, and its rows."""
    rows = make_rows(40, 300)
    rows[3]["label"] = "mixed"
    for row in rows[10:20]:
        row["label"] = LABELS[row["label"] == "negative"]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows), rows


def predictions(run: Path, file: str, place: Path) -> list[dict[str, Any]]:
    assert main(["predict", str(run), "--data", file, "--output", str(place)]) == 0
    return [json.loads(line) for line in place.read_text().splitlines()]


# -- calibration -----------------------------------------------------------------------------------------------------


def test_every_way_to_predict_takes_the_temperature(
    run: Path, labelled: tuple[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    saved = json.loads((run / "run.json").read_text())["calibration"]
    assert saved == metrics["calibration"]
    assert saved["rows"] == 24
    assert saved["temperature"] != pytest.approx(1.0, abs=0.01)
    assert {"ece", "ece_before"} <= set(metrics) & set(next(iter(metrics["test"].values())))
    file, rows = labelled
    classifier = TextClassifier.load(run)
    given = [Row(row["text"]) for row in rows]
    scores = classifier.scores(given)
    wanted = softmax(scores / saved["temperature"])
    np.testing.assert_allclose(classifier.probabilities(given), wanted, rtol=1e-5)
    one = predictions(run, file, tmp_path / "one.jsonl")
    found = [[line["scores"][label] for label in LABELS] for line in one]
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert [line["prediction"] for line in one] == [LABELS[i] for i in scores.argmax(1)]
    answers = MultiTask.load([run]).classify([row["text"] for row in rows])
    together = [[answer["sst2"]["scores"][label] for label in LABELS] for answer in answers]
    np.testing.assert_allclose(together, wanted, rtol=1e-4)
    estimator = LatePromptClassifier.load(run)
    np.testing.assert_allclose(estimator.predict_proba([row["text"] for row in rows]), wanted, rtol=1e-4)
    logs = estimator.predict_log_proba([row["text"] for row in rows])
    np.testing.assert_allclose(np.exp(logs), wanted, rtol=1e-4)


def test_a_run_without_a_temperature_predicts_as_before(run: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    facts = json.loads((old / "run.json").read_text())
    del facts["calibration"]
    for name in ("calibrate", "class_weight"):
        del facts["recipe"][name]
    (old / "run.json").write_text(json.dumps(facts))
    rows = [Row(row["text"]) for row in make_rows(9, 400)]
    classifier = TextClassifier.load(old)
    np.testing.assert_array_equal(classifier.probabilities(rows), softmax(classifier.scores(rows)))
    np.testing.assert_array_equal(classifier.scores(rows), TextClassifier.load(run).scores(rows))
    facts["calibration"] = {"temperature": 0}
    (old / "run.json").write_text(json.dumps(facts))
    assert main(["evaluate", str(old), "--data", "nowhere.jsonl"]) == 2


def test_it_can_be_left_out(masked_lm: str, data: dict[str, str], tmp_path: Path) -> None:
    off = train(masked_lm, data, tmp_path / "off", "--dev", data["dev"], "--calibrate", "false")
    assert off["calibration"] == {"temperature": 1.0, "rows": 0, "note": "switched off"}
    assert "ece_before" not in off
    none = train(masked_lm, data, tmp_path / "none", "--folds", "0")
    assert none["calibration"]["note"] == "no dev rows to fit a temperature on"
    assert "ece" not in none
    assert "calibration" not in json.loads((tmp_path / "none" / "run.json").read_text())


# -- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_class_by_class(
    run: Path, labelled: tuple[str, list[dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, rows = labelled
    assert main(["evaluate", str(run), "--data", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    given = [Row(row["text"], label=row["label"]) for row in rows]
    classifier = TextClassifier.load(run)
    predicted = [LABELS[i] for i in classifier.scores([Row(row.text) for row in given]).argmax(1)]
    truth = [row["label"] for row in rows]
    numbers = precision_recall_fscore_support(truth, predicted, labels=LABELS, zero_division=0)
    for place, name in enumerate(("precision", "recall", "f1", "support")):
        assert [found["classes"][label][name] for label in LABELS] == pytest.approx(list(numbers[place]))
    assert found["confusion"]["labels"] == [*LABELS, "mixed"]
    counts = confusion_matrix(truth, predicted, labels=[*LABELS, "mixed"])[:, :2]
    assert found["confusion"]["counts"] == counts.tolist()
    assert found["accuracy"] == np.mean([a == b for a, b in zip(truth, predicted, strict=True)])
    again = classifier.evaluate(given, details=True)
    assert (again["classes"], again["confusion"]) == (found["classes"], found["confusion"])
    assert set(again) == set(found) == {*classifier.evaluate(given), "classes", "confusion"}
    assert main(["evaluate", str(run), "--data", file]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("recall", "Confusion matrix", "mixed", "ece"))


def test_many_labels_are_not_shown_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    from lateprompt.cli.figures import print_assessments

    names = [f"label{i:02}" for i in range(30)]
    labels = np.arange(30).repeat(3)
    scores = np.eye(30)[labels]
    scores[:2] = np.eye(30)[7]  # two of label00
    found = Assessment(names, ["accuracy"], labels, scores, Calibration())
    print_assessments({"rows": found}, as_json=False)
    shown = capsys.readouterr().out
    assert "20 of 30 labels" in shown
    confused = shown.split("confused most")[1]
    assert [word in confused for word in ("label00", "label07", "label11")] == [True, True, False]
    unnamed = Assessment(names, ["accuracy"], np.array([-2]), scores[:1], Calibration()).details()["confusion"]
    assert unnamed["labels"][-1] == OTHER


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_most_confident_mistakes_come_first(
    run: Path, labelled: tuple[str, list[dict[str, str]]], tmp_path: Path, suffix: str
) -> None:
    import pandas as pd

    file, _ = labelled
    place = tmp_path / f"errors{suffix}"
    for _ in range(2):  # its own file is replaced
        assert main(["evaluate", str(run), "--data", file, "--errors", str(place)]) == 0
    read = {".jsonl": lambda path: pd.read_json(path, lines=True), ".csv": pd.read_csv, ".parquet": pd.read_parquet}
    lines = read[suffix](place)
    assert list(lines.columns) == ["text", "label", "expected", "prediction", "score"]
    predicted = predictions(run, file, tmp_path / "all.jsonl")
    wrong = [line for line in predicted if line["prediction"] != line["label"]]
    assert sorted(lines["text"]) == sorted(line["text"] for line in wrong)
    assert list(lines["score"]) == pytest.approx(sorted((max(w["scores"].values()) for w in wrong), reverse=True))
    assert (lines["expected"] == lines["label"]).all()
    assert (lines["expected"] != lines["prediction"]).all()


def test_files_of_errors_that_cannot_be(
    run: Path,
    data: dict[str, str],
    labelled: tuple[str, list[dict[str, str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("text,prediction,score\nmine,a,1\n")
    cases: list[tuple[list[str], str]] = [
        (["--data", labelled[0], "--errors", str(mine)], "exists and is no file of predictions"),
        (["--data", labelled[0], "--errors", labelled[0]], "rows.jsonl"),
        (["--data", labelled[0], "--errors", "-"], "give a file"),
        (["--data", labelled[0], "--errors", "errors.xlsx"], ".xlsx is not written"),
        (["--data", data["dev"], data["test"], "--errors", "errors.csv"], "give one --data"),
    ]
    for arguments, message in cases:
        assert main(["evaluate", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert mine.read_text() == "text,prediction,score\nmine,a,1\n"
    assert main(["evaluate", str(run), "--data", labelled[0], "--errors", str(mine), "--overwrite"]) == 0
    with mine.open(newline="") as file:
        assert next(csv.reader(file))[-3:] == ["expected", "prediction", "score"]


# -- class weights, and one class ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: Any) -> dict[str, str]:
    rows = make_rows(40)
    kept = [row for row in rows if row["label"] == "positive"] + [row for row in rows if row["label"] == "negative"][:5]
    return {"train": write_rows(tmp_path_factory.mktemp("uneven") / "train.jsonl", kept)}


def test_class_weights_change_the_loss_and_are_recorded(masked_lm: str, uneven: dict[str, str], tmp_path: Path) -> None:
    losses = {}
    (tmp_path / "weights.yaml").write_text("class_weight: {negative: 4, positive: 1}\n")
    cases: dict[str, list[str]] = {
        "none": [],
        "balanced": ["--class-weight", "balanced"],
        "mapping": ["--class-weight", "{negative: 4}"],
        "file": ["--config", str(tmp_path / "weights.yaml")],
    }
    for name, given in cases.items():
        train(masked_lm, uneven, tmp_path / name, *given)
        history = (tmp_path / name / "history.jsonl").read_text().splitlines()
        losses[name] = json.loads(history[-1])["train_loss"]
    assert losses["balanced"] == losses["mapping"] == losses["file"] != losses["none"]
    recorded = [json.loads((tmp_path / n / "run.json").read_text())["recipe"]["class_weight"] for n in cases]
    assert recorded == [None, "balanced", {"negative": 4.0}, {"negative": 4.0, "positive": 1.0}]
    assert LatePromptClassifier.load(tmp_path / "mapping").class_weight == {"negative": 4.0}


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("even", "class_weight 'even'"),
        ("{negative: many}", "'{negative: many}'"),
        ("{neutral: 2}", "label 'neutral', which the task does not have"),
        ("{negative: -1}", "-1"),
    ],
)
def test_class_weights_that_cannot_be(
    weight: str, message: str, masked_lm: str, uneven: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    given = ["--model", masked_lm, "--train", uneven["train"], "--output", str(tmp_path / "run"), *FAST]
    try:
        code = main(["train", *given, "--class-weight", weight])
    except SystemExit as stop:  # of the parser
        code = int(str(stop.code))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_model_of_one_class_is_told() -> None:
    labels, one = np.arange(20) % 2, np.zeros(20, dtype=np.int64)
    recipe = RecipeSettings(lr=0.3)
    with pytest.warns(UserWarning, match=r"says 'negative' of all 20 dev rows.*lr is 0\.3.*class_weight balanced"):
        warn_of_one_class(one, labels, LABELS, "dev", recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_one_class(labels, labels, LABELS, "dev", recipe)
        warn_of_one_class(one, one, LABELS, "dev", recipe)
        warn_of_one_class(one[:5], labels[:5], LABELS, "dev", recipe)


def test_train_tells_of_one_class(masked_lm: str, uneven: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    train(masked_lm, uneven, tmp_path / "run", "--class-weight", "{negative: 0}", "--lr", "0.1")
    err = capsys.readouterr().err
    assert err.count("it has learnt no more than one class") == 1
    assert "training rows" in err
