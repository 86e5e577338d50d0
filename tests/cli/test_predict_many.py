"""`lateprompt predict` with several runs: a column a task, and the frozen model's own state."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.data import Row
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.multi_task import MultiTask

ROWS = make_rows(9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any, headless: str, data: dict[str, str]) -> list[str]:
    place = tmp_path_factory.mktemp("runs")
    found = []
    for name, method in (("mood", "read-npg"), ("tone", "npg")):
        folder = str(place / name)
        arguments = ["--model", headless, "--train", data["train"], "--dev", data["dev"], "--prompt-layer", "2"]
        assert main(["train", *arguments, "--method", method, "--epochs", "1", "--output", folder, "--quiet"]) == 0
        found.append(folder)
    return found


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write_rows(tmp_path / "new.jsonl", [{"id": i, "mood": "?", **row} for i, row in enumerate(ROWS)])


def predict(runs: list[str], file: str, output: Path, *more: str) -> int:
    return main(["predict", *runs, "--data", file, "--output", str(output), *more])


def test_each_task_has_its_column(runs: list[str], file: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert predict(runs, file, output, "--embeddings", "--batch-size", "4") == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert list(lines[0]) == ["id", "mood_input", "text", "label", "mood", "tone", "scores", "embedding"]
    rows = [Row(row["text"]) for row in ROWS]
    for run in runs:
        name, classifier = Path(run).name, TextClassifier.load(run)
        want = classifier.probabilities(rows)
        got = [[line["scores"][name][label] for label in classifier.task.labels] for line in lines]
        np.testing.assert_allclose(got, want, atol=2e-6)
        assert [line[name] for line in lines] == [classifier.task.labels[i] for i in want.argmax(1)]
    states = MultiTask.load(runs).classify([row["text"] for row in ROWS], tasks=[], embeddings=True)
    np.testing.assert_allclose([line["embedding"] for line in lines], [s["embedding"] for s in states], atol=1e-5)
    assert predict(runs, file, output) == 0  # a file of ours is replaced


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_has_a_column_for_each_score(runs: list[str], file: str, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    assert predict(runs, file, output, "--on-error", "skip") == 0
    own = ["mood", "tone", "score_mood_negative", "score_mood_positive", "score_tone_negative", "score_tone_positive"]
    if suffix == ".csv":
        with output.open(newline="") as lines:
            table = list(csv.DictReader(lines))
        assert list(table[0]) == ["id", "mood_input", "text", "label", *own, "error"]
        assert abs(sum(float(table[0][f"score_mood_{label}"]) for label in ("negative", "positive")) - 1) < 1e-5
    assert predict(runs, file, output, "--on-error", "skip") == 0


def test_one_run_with_embeddings(runs: list[str], file: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert predict(runs[:1], file, output, "--embeddings") == 0
    first = json.loads(output.read_text().splitlines()[0])
    assert list(first)[-3:] == ["mood", "scores", "embedding"]


def test_a_row_that_no_task_can_read_is_an_error_in_its_place(runs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "good"}\n{"other": 1}\n{"text": "bad"}\n')
    output = tmp_path / "out.jsonl"
    assert predict(runs, str(file), output) == 2
    assert predict(runs, str(file), output, "--on-error", "skip") == 3
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["mood"] is None for line in lines] == [False, True, False]
    assert "error" in lines[1]


def test_mistakes_are_one_line(runs: list[str], file: str, tmp_path: Path, capsys: Any) -> None:
    for given, more, message in (
        ([runs[0], runs[0]], (), "the same name 'mood'"),
        ([runs[0], str(tmp_path / "none")], (), "none"),
        (runs, ("--beams", "2"), "beams 2"),
        (runs, ("--batch-size", "0"), "batch_size 0"),
    ):
        assert predict(given, file, tmp_path / "out.jsonl", *more) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
