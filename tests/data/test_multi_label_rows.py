"""Several labels a row: how files say so, the task and its file, encoding, and samples."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from lateprompt.data import MultiLabelTask, Row, Task, few_shot, multi_label_task, read_rows, task_from_dict
from lateprompt.data.columns import with_columns
from lateprompt.data.label_columns import read_label_columns
from lateprompt.data.row_checks import check_choosing_labels, unknown_labels
from lateprompt.training.data_settings import DataSettings
from lateprompt.utils.errors import LatePromptError

ROWS = [("a warm film", ["film", "short"]), ("a dull soup", ["food"]), ("words", [])]
SETS = [("film", "short"), ("food",), ()]


def labels_of(path, **more):
    return [row.labels for row in read_rows(path, **more)]


def write_json(path, rows, column="labels"):
    path.write_text("\n".join(json.dumps({"text": text, column: labels}) for text, labels in rows))
    return path


def test_every_format_says_the_same(tmp_path):
    listed = write_json(tmp_path / "rows.jsonl", ROWS)
    joined = [("text", "labels"), *((text, "|".join(labels)) for text, labels in ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join(",".join(row) for row in joined))
    (tmp_path / "rows.tsv").write_text("\n".join("\t".join(row) for row in joined))
    pd.DataFrame(ROWS, columns=["text", "labels"]).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet"):
        assert labels_of(tmp_path / name) == SETS, name
    assert [row.label for row in read_rows(listed)] == [None, None, None]
    assert read_label_columns(listed, [], "labels").listed == [list(own) for own in SETS]


def test_labels_are_spelled_alike_and_occur_once(tmp_path):
    path = write_json(tmp_path / "rows.jsonl", [("a", [1, "1.0", True, None, " x "]), ("b", " x | 1 || x")])
    assert labels_of(path) == [("1", "true", "x"), ("x", "1")]


def test_another_column_may_hold_them(tmp_path):
    path = write_json(tmp_path / "rows.jsonl", ROWS, "tags")
    assert labels_of(path, columns={"label": "tags"}) == SETS  # lists can be nothing else
    (tmp_path / "rows.csv").write_text("text,tags\nx,a|b\n")
    assert read_rows(tmp_path / "rows.csv", columns={"label": "tags"})[0].label == "a|b"
    assert labels_of(tmp_path / "rows.csv", columns={"labels": "tags"}) == [("a", "b")]


@pytest.mark.parametrize(
    ("several", "column", "expected"),
    [
        ("several", None, {"label": None, "labels": "labels"}),
        ("several", "tags", {"label": None, "labels": "tags"}),
        ("one", None, {"label": "label"}),
        ("auto", "tags", {"label": "tags"}),
    ],
)
def test_settings_choose_the_column(several, column, expected):
    data = DataSettings("x.csv", labels_per_row=several, label_column=column)
    data.check()
    assert {name: value for name, value in data.columns.items() if name.startswith("label")} == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "labels": ["x"]}, {"text": "b"}], "line 2: 'labels' is missing .*an empty list"),
        ([{"text": "a", "labels": ["x"]}, {"text": "b", "label": "x"}], "line 2: 'labels' is missing"),
        ([{"text": "a", "label": "x"}, {"text": "b", "labels": ["x"]}], "line 2: this row has a list of labels"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": ["x"]}], "line 2: this row has a list of labels"),
        ([{"text": "a", "labels": [["x"]]}], r"line 1: column 'labels': label .* is list"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, rows, message):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(LatePromptError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_a_task_knows_its_labels(tmp_path):
    task = multi_label_task(["film", "food"], pair=False)
    path = write_json(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(LatePromptError, match=r"label 'short' is none of task custom; its labels are film, food"):
        read_rows(path, task=task)
    rows = read_rows(path, task=task, any_label=True)
    assert [row.labels for row in rows] == SETS
    assert unknown_labels(rows, task) == {"short": 1}
    assert labels_of(path, task=task, labelled=False) == [None, None, None]
    with pytest.raises(LatePromptError, match="none of its 1 rows has a label of the task, so they cannot choose"):
        check_choosing_labels(rows[2:], task, "dev.jsonl")


def test_the_task_file_round_trips():
    task = with_columns(multi_label_task(["b", "a"], pair=True, head_template="{text_pair} {text}"), {"label": "tags"})
    assert task.chosen_columns == {"labels": "tags"}
    again = task_from_dict(yaml.safe_load(yaml.safe_dump(task.to_dict())), "task.yaml")
    assert isinstance(again, MultiLabelTask)
    assert again == task
    assert not isinstance(task_from_dict({"name": "x", "labels": ["a", "b"]}, "y"), MultiLabelTask)
    written = task_from_dict({"name": "x", "labels": ["a", "b"], "multi_label": True, "metrics": ["macro_f1"]}, "y")
    assert written.metrics == ("micro_f1", "macro_f1")
    assert isinstance(written, Task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a|b", "c"]}, r"'a\|b', but \| stands between labels"),
        ({"metrics": ["accuracy"]}, "metric 'accuracy' is none of a multi-label task"),
        ({"multi_label": "yes"}, "multi_label 'yes' is no switch"),
        ({"columns": {"label": "x"}}, "columns 'label'"),
    ],
)
def test_task_files_that_do_not_fit(change, message):
    with pytest.raises(LatePromptError, match=message):
        task_from_dict({"name": "x", "labels": ["a", "b"], "multi_label": True, **change}, "task.yaml")


def test_samples_keep_the_shares_of_labels():
    random = np.random.default_rng(0)
    shares = {"often": 0.5, "half": 0.25, "rare": 0.02}
    draws = {label: random.random(1000) < share for label, share in shares.items()}
    rows = [Row(str(i), labels=tuple(label for label in shares if draws[label][i])) for i in range(1000)]
    train, dev = few_shot(rows, 100, 42, dev_size=200)
    assert (len(train), len(dev)) == (100, 200)
    assert not {row.text for row in train} & {row.text for row in dev}
    assert (train, dev) == few_shot(rows, 100, 42, dev_size=200)
    assert train != few_shot(rows, 100, 43, dev_size=200)[0]
    for label in shares:
        whole = draws[label].mean()
        for part in (train, dev):
            found = np.mean([label in (row.labels or ()) for row in part])
            assert abs(found - whole) < 0.02, (label, len(part))
    assert any(not row.labels for row in train)


def test_every_label_gets_a_row_where_there_are_enough():
    rows = [Row(f"{i}", labels=("common",)) for i in range(500)]
    rows += [Row(f"r{i}", labels=("common", f"rare {i}")) for i in range(20)]
    train, _ = few_shot(rows, 30, 1, dev_size=0)
    assert len({label for row in train for label in row.labels or ()}) == 21
    few, _ = few_shot(rows, 5, 1, dev_size=0)  # more labels than rows
    assert len(few) == 5
