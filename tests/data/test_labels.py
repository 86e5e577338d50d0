"""One spelling of a label, wherever it comes from."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import main
from lateprompt.data import Task, default_task, label_name, load_task, read_rows, task_from_dict
from lateprompt.utils.errors import LatePromptError


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1, 1.0, "1", "1.0", " 1 ", "1.00", np.int8(1), np.float32(1), np.array(1), Decimal("1.0")), "1"),
        ((0, 0.0, -0.0, "0", "-0.0", np.uint8(0)), "0"),
        ((-1, -1.0, "-1", "-1.0"), "-1"),
        ((True, "true", "True", "TRUE ", np.bool_(True)), "true"),
        ((False, "false", " False", np.bool_(False)), "false"),
        ((0.5, "0.5", np.float32(0.5)), "0.5"),
        (("good", " good\t", np.str_("good")), "good"),
        ((None, "", "  ", float("nan"), np.float64("nan"), pd.NA, pd.NaT, np.datetime64("NaT")), None),
    ],
)
def test_spellings_of_the_same_label_agree(values: tuple[Any, ...], name: str | None) -> None:
    assert [label_name(value) for value in values] == [name] * len(values)


def test_what_may_be_a_code_stays() -> None:
    for text in ("01", "+1", "1e5", "Yes", "NO", "1.", "1.5.0", "0x1", "None", "nan"):
        assert label_name(text) == text


@pytest.mark.parametrize("value", [["a"], {"a": 1}, (1,), b"a", float("inf"), 10**500, "\ud800", object()])
def test_what_is_no_label_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(LatePromptError, match="label") as error:
        label_name(value)
    assert "\n" not in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("{0: bad, 1: good}", ("0", "1")),
        ("{no: bad, yes: good}", ("no", "yes")),
        ("{off: bad, on: good}", ("off", "on")),
        ("{False: bad, TRUE: good}", ("false", "true")),
        ("{0.0: bad, 1.0: good}", ("0", "1")),
        ("[no, yes]", ("no", "yes")),
        ("[1, 2]", ("1", "2")),
        ("[y, n]", ("y", "n")),
        ("{1:30: bad, 2001-01-01: good}", ("1:30", "2001-01-01")),
        ("{010: bad, 0x1F: good}", ("010", "0x1F")),
    ],
)
def test_labels_in_a_task_file_are_as_written(tmp_path: Path, labels: str, names: tuple[str, ...]) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(f"name: toy\nlabels: {labels}\n")
    task = load_task(str(path))
    assert task.labels == names
    # As a run folder keeps it.
    assert task_from_dict(yaml.safe_load(yaml.safe_dump(task.to_dict(), sort_keys=False)), "again") == task


def test_a_label_map_and_label_words_are_as_written(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(
        "name: toy\nlabels: [bad, good]\nlabel_words: [no, yes]\nlabel_map: {no: bad, on: good, 0: bad, 1.0: good}\n"
    )
    task = load_task(str(path))
    assert isinstance(task, Task)
    assert task.label_words == ("no", "yes")
    assert task.label_map == {"no": "bad", "on": "good", "0": "bad", "1": "good"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in (1, 1.0, "1.0", "on", "no")))
    assert [row.label for row in read_rows(rows, task=task)] == ["good"] * 4 + ["bad"]


def test_a_task_of_a_saved_run_means_the_same() -> None:
    # As the estimator of version 0.1 wrote it, for booleans and for floats.
    for saved, labels in ((["False", "True"], ("false", "true")), (["0.0", "1.0"], ("0", "1"))):
        task = task_from_dict({**default_task(["a", "b"], pair=False).to_dict(), "labels": saved}, "task.yaml")
        assert (task.labels, task.label_words) == (labels, ("a", "b"))


def test_labels_that_are_one_are_refused() -> None:
    with pytest.raises(LatePromptError, match="labels has '1' twice"):
        default_task(["1", "1.0"], pair=False)
    with pytest.raises(LatePromptError, match="label_map has 'true' twice"):
        task_from_dict({"name": "x", "labels": ["a", "b"], "label_map": {True: "a", "True": "b"}}, "x")


@pytest.mark.parametrize("words", ["{0: no, 1.0: yes}", '{"0": "no", "1": "yes"}'])
def test_a_run_of_the_command_line_scores_any_spelling(tmp_path: Path, masked_lm: str, words: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "a good day,1.0\na bad day, 0 \n" * 4)
    arguments = ["--model", masked_lm, "--train", str(rows), "--output", str(tmp_path / "run"), "--states", "off"]
    assert main(["train", *arguments, "--max-steps", "2", "--readout", "head", "--label-words", words, "--quiet"]) == 0
    task = load_task(str(tmp_path / "run/task.yaml"))
    assert (task.labels, task.label_words) == (("0", "1"), ("no", "yes"))
    estimator = LatePromptClassifier.load(tmp_path / "run")
    probabilities = estimator.predict_proba(["a good day", "a bad day"])
    assert probabilities.shape == (2, 2)
