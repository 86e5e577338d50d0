"""Each example runs as a user starts it: in a folder of its own, on a small model and made-up rows."""

from __future__ import annotations

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_rows

from lateprompt import LatePromptClassifier

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


def run(name: str, *arguments: str, where: Path) -> str:
    """What an example prints, started in the folder `where`."""
    source = str(FOLDER.parent / "src")
    environment = {**os.environ, "PYTHONPATH": source, "LATEPROMPT_STATES": str(where / "kept")}
    command = [sys.executable, "-W", "ignore", str(FOLDER / name), *arguments]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_csv(path: Path, header: list[str], lines: list[list[str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path.name


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def labelled_lines(number: int, start: int = 0) -> list[list[str]]:
    return [[row["text"], row["label"]] for row in make_rows(number, start)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_short_and_says_how_it_is_run(name, monkeypatch):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    for arguments in ([], ["a", "b", "c", "d", "e", "f"]):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit, match=f"python examples/{name} "):
            runpy.run_path(str(FOLDER / name), run_name="__main__")


def test_classify_csv(masked_lm, tmp_path):
    lines = labelled_lines(80)
    train = write_csv(tmp_path / "train.csv", ["text", "label"], lines)
    # Texts that it has learned, mostly: what the file says of them shows whether rows and answers belong together.
    new = write_csv(tmp_path / "new.csv", ["id", "text"], [[f"n{i}", text] for i, (text, _) in enumerate(lines[:30])])
    printed = run("classify_csv.py", train, new, "labelled.csv", masked_lm, where=tmp_path)
    accuracy, majority = re.search(r"accuracy on 16 held-out rows: (\S+) \(always '\w+': (\S+)\)", printed).groups()
    assert float(accuracy) > float(majority) == 0.5
    assert "trained on 64 rows" in printed
    rows = read_csv(tmp_path / "labelled.csv")
    assert list(rows[0]) == ["id", "text", "prediction", "probability"]
    assert [(row["id"], row["text"]) for row in rows] == [(f"n{i}", line[0]) for i, line in enumerate(lines[:30])]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    right = [row["prediction"] == label for row, (_, label) in zip(rows, lines[:30], strict=True)]
    assert sum(right) > 24


def test_classify_csv_holds_out_no_text_that_it_trained_on(masked_lm, tmp_path):
    train = write_csv(tmp_path / "train.csv", ["text", "label"], labelled_lines(20) * 3)
    new = write_csv(tmp_path / "new.csv", ["text"], [["a good film"]])
    printed = run("classify_csv.py", train, new, "labelled.csv", masked_lm, where=tmp_path)
    assert "trained on 16 rows" in printed
    assert "4 held-out rows" in printed


def test_tune_decoder_writes(causal_lm, tmp_path):
    printed = run("tune_decoder.py", causal_lm, where=tmp_path)
    runs = tmp_path / "runs"
    rows, asked = read_csv(runs / "commands.csv"), read_csv(runs / "more_requests.csv")
    assert [row["text"] for row in rows] == [row["text"] for row in asked]
    assert len(asked) == 28
    assert not {row["text"] for row in asked} & {row["text"] for row in read_csv(runs / "requests.csv")}
    right = sum(row["prediction"] == known["target"] for row, known in zip(rows, asked, strict=True))
    first = f"{rows[0]['text']!r} -> {rows[0]['prediction']!r}"
    assert f"28 answers are in runs/commands.csv; the first: {first}" in printed
    assert f"right: {right} of the 28 whose answer is known" in printed
    assert (runs / "decoder" / "adapter_model.safetensors").is_file()


def test_tune_decoder_classifies(causal_lm, tmp_path):
    train = write_csv(tmp_path / "train.csv", ["text", "label"], labelled_lines(80))
    new = write_csv(tmp_path / "new.csv", ["text"], [line[:1] for line in labelled_lines(10, 200)])
    printed = run("tune_decoder.py", causal_lm, train, new, "answers.csv", where=tmp_path)
    rows = read_csv(tmp_path / "answers.csv")
    assert [row["text"] for row in rows] == [line[0] for line in labelled_lines(10, 200)]
    assert {row["prediction"] for row in rows} <= {"positive", "negative"}
    assert "10 answers are in answers.csv" in printed
    assert "right:" not in printed


def test_many_tasks(masked_lm, tmp_path):
    lines = [
        [text, label, "yes" if i % 7 < 3 else "no", "" if i % 3 else label]
        for i, (text, label) in enumerate(labelled_lines(60))
    ]
    file = write_csv(tmp_path / "rows.csv", ["text", "mood", "low", "sparse"], lines)
    printed = run("many_tasks.py", file, masked_lm, where=tmp_path)
    seconds = re.findall(r"^(\w+): (\d+\.\d) s in the layers", printed, re.M)
    assert [name for name, _ in seconds] == ["mood", "low", "sparse"]
    answers = re.findall(r"^'(.*)' (\w+): (\w+)$", printed, re.M)
    assert [name for _, name, _ in answers] == ["mood", "low", "sparse"] * 2
    for name in ("mood", "low", "sparse"):  # in one batch each row is answered as by its classifier alone
        alone = LatePromptClassifier.load(tmp_path / "runs" / name)
        told = [answer for _, task, answer in answers if task == name]
        assert told == [str(answer) for answer in alone.predict([line[0] for line in lines[:2]])]
        filled = alone.metrics_["trunk_fill_seconds"]
        assert (filled > 0) == (name == "mood")
