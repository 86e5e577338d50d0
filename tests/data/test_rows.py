"""Readers: every format gives the same rows, and every bad input one line that says where it is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from lateprompt.data import Row, Task, load_task, read_rows, task_names

SINGLE = load_task("sst2")
PAIR = load_task("mrpc")


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def plain(rows: list[Row]) -> list[tuple[str, str | None, str | None]]:
    return [(row.text, row.text_pair, row.label) for row in rows]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    records = [
        {"text": 'a "good", long\nday', "text_pair": "x\ty", "label": "equivalent"},
        {"text": "naïve\u2028é", "text_pair": "z", "label": "not_equivalent"},
    ]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    put(tmp_path, "rows.jsonl", lines + "\n\n")
    put(tmp_path, "rows.json", "\ufeff" + lines)
    table = datasets.Dataset.from_list(records).to_pandas()
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_csv(tmp_path / "rows.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "rows.parquet")
    expected = [(record["text"], record["text_pair"], record["label"]) for record in records]
    for path in sorted(tmp_path.iterdir()):
        rows = read_rows(path, task=PAIR)
        assert plain(rows) == expected, path
        assert [dict(row.source) for row in rows] == records, path


def test_labels_are_mapped_and_extra_columns_kept(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "rows.jsonl",
        '{"text": "a", "label": 1, "id": 7}\n{"text": "b", "label": 0.0}\n{"text":"c","label":"1"}',
    )
    rows = read_rows(path, task=SINGLE)
    assert [row.label for row in rows] == ["positive", "negative", "positive"]
    assert rows[0].source["id"] == 7
    assert [row.label for row in read_rows(path)] == ["1", "0", "1"]
    path = put(tmp_path, "bool.jsonl", '{"text": "a", "label": true}')
    assert read_rows(path)[0].label == "true"


def test_labels_are_optional_where_none_are_needed(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.csv", "text,label\na,\nb,positive\n")
    assert [row.label for row in read_rows(path, task=SINGLE, labelled=False)] == [None, "positive"]
    path = put(tmp_path, "bare.csv", "text\na\n")
    assert plain(read_rows(path, task=SINGLE, labelled=False)) == [("a", None, None)]


def test_glue_files_have_no_quoting(tmp_path: Path) -> None:
    path = put(tmp_path, "train.tsv", 'sentence\tlabel\r\n" so good\t1\r\nbad "\t0\r\n')
    assert plain(read_rows(path, task=SINGLE)) == [('" so good', None, "positive"), ('bad "', None, "negative")]
    content = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t10\t11\tShe left.\tShe "went.\n'
    path = put(tmp_path, "mrpc.tsv", content)
    assert plain(read_rows(path, task=PAIR)) == [("She left.", 'She "went.', "equivalent")]
    # With our own column name it is a plain file, whose quotes are quotes.
    path = put(tmp_path, "plain.tsv", 'text\tlabel\n"a\tb"\t1\n')
    assert plain(read_rows(path, task=SINGLE)) == [("a\tb", None, "positive")]


def test_mnli_rows_without_agreement_are_left_out(tmp_path: Path) -> None:
    content = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\t-\n1\tc\td\tneutral\tneutral\n"
    path = put(tmp_path, "dev.tsv", content)
    task = load_task("mnli")
    assert plain(read_rows(path, task=task)) == [("c", "d", "neutral")]
    assert [row.label for row in read_rows(path, task=task, labelled=False)] == [None, "neutral"]


def test_a_csv_with_a_tasks_own_columns(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.csv", 'question1,question2,is_duplicate\n"a, b",c,1\n')
    assert plain(read_rows(path, task=load_task("qqp"))) == [("a, b", "c", "duplicate")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", ["empty"]),
        ("a.csv", "", ["line 1", "'text'"]),
        ("a.csv", "text,label\n", ["empty"]),
        ("a.jsonl", b'{"text": "a", "label": "positive"}\n\xff\n', ["line 2", "UTF-8"]),
        ("a.jsonl", '{"text": "a", "label": "positive"}\n{"text": \n', ["line 2", "broken JSON"]),
        ("a.jsonl", "[" * 100_000, ["line 1", "broken JSON"]),
        ("a.jsonl", '[{"text": "a"}]', ["line 1", "one object per line"]),
        ("a.jsonl", '\n\n{"txt": "a", "label": "positive"}', ["line 3", "'text' is missing", "txt, label"]),
        ("a.jsonl", '{"text": "", "label": "positive"}', ["line 1", "'text' is empty"]),
        ("a.jsonl", '{"text": " \\n", "label": "positive"}', ["line 1", "'text' is empty"]),
        ("a.jsonl", '{"text": 5, "label": "positive"}', ["line 1", "int '5', not a string"]),
        ("a.jsonl", '{"text": ["a"], "label": "positive"}', ["line 1", "list"]),
        ("a.jsonl", '{"text": "\\ud800", "label": "positive"}', ["line 1", "surrogate"]),
        ("a.jsonl", '{"text": "a"}', ["line 1", "'label' is missing"]),
        ("a.jsonl", '{"text": "a", "label": null}', ["line 1", "'label' is empty"]),
        ("a.jsonl", '{"text": "a", "label": NaN}', ["line 1", "'label' is empty"]),
        ("a.jsonl", '{"text": "a", "label": ["positive"]}', ["line 1", "list"]),
        ("a.jsonl", '{"text": "a", "label": "fine"}', ["line 1", "label 'fine'", "negative, positive"]),
        ("a.jsonl", '{"text": "a", "label": 2}', ["line 1", "label '2'", "negative, positive"]),
        ("a.csv", "text,lable\na,positive\n", ["line 1", "no column 'label'", "text, lable"]),
        ("a.csv", "text,text,label\na,b,positive\n", ["line 1", "'text' occurs twice"]),
        ("a.csv", 'text,label\n"a\nb",positive\n\nc, d,positive\n', ["line 5", "3 fields for 2 columns"]),
        ("a.csv", 'text,label\na,positive\n"b,positive\nc,positive\n', ["line 3", "broken quoting"]),
        ("a.csv", "text,label\na\n", ["line 2", "'label'"]),
        ("a.csv", "text,label\n,positive\n", ["line 2", "'text' is empty"]),
        ("a.tsv", "sentence\tlabel\na\tpositive\nb\n", ["line 3", "'label'"]),
        ("a.tsv", "sentence\tlabel\na\tb\tpositive\n", ["line 2", "3 fields"]),
        ("a.tsv", "sentence\tgold\na\tpositive\n", ["line 1", "no column 'label'", "sentence, gold"]),
        ("a.parquet", b"PAR1 not really", ["parquet"]),
        ("a.xlsx", "x", ["no readable Excel workbook"]),
        ("a.txt", "x", ["unknown suffix '.txt'", ".csv"]),
        ("a.docx", "x", ["unknown suffix '.docx'", ".jsonl"]),
        ("a", "x", ["unknown suffix ''"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: str | bytes, words: list[str]) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(ValueError, match=name) as error:
        read_rows(path, task=SINGLE)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_bad_parquet_row_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": None, "label": 0}]).to_pandas().to_parquet(path)
    with pytest.raises(ValueError, match="row 2: 'text' is empty"):
        read_rows(path, task=SINGLE)


def test_a_pair_task_needs_pairs(tmp_path: Path) -> None:
    path = put(tmp_path, "rows.jsonl", '{"text": "a", "label": "equivalent"}')
    with pytest.raises(ValueError, match=r"line 1: 'text_pair' is missing.*mrpc"):
        read_rows(path, task=PAIR)
    path = put(tmp_path, "rows.csv", "text,label\na,equivalent\n")
    with pytest.raises(ValueError, match="no column 'text_pair'"):
        read_rows(path, task=PAIR)


def test_a_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("a file is not looked for on the hub"))
    for data in (str(tmp_path / "gone.jsonl"), "data/gone.jsonl", "./gone", "gone.txt"):
        with pytest.raises(ValueError, match="does not exist"):
            read_rows(data)
    with pytest.raises(ValueError, match="is a folder"):
        read_rows(tmp_path)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    names = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    features = datasets.Features({"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")})
    features["label"] = names
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, -1]}
    calls: list[Any] = []

    def load(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows("nyu-mll/glue:mrpc", task=PAIR, labelled=False, split="test")
    assert plain(rows) == [("a", "c", "equivalent"), ("b", "d", None)]
    assert plain(read_rows("toys", labelled=False))[0] == ("a", "c", "equivalent")
    assert calls == [("nyu-mll/glue", "mrpc", "test"), ("toys", None, "train")]
    with pytest.raises(ValueError, match="row 2: 'label' is empty"):
        read_rows("org/toys-v1.1", task=PAIR)


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"'org/toys': the file does not exist, and .* hub .*\(no route\)$"):
        read_rows("org/toys")


def test_ten_thousand_rows_are_fast(tmp_path: Path) -> None:
    line = json.dumps({"text": "a good day é " * 10, "label": "positive"}, ensure_ascii=False)
    path = put(tmp_path, "rows.jsonl", "\n".join([line] * 10_000))
    start = time.perf_counter()
    assert len(read_rows(path, task=SINGLE)) == 10_000
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", task_names())
def test_the_data_of_a_task(name: str) -> None:
    folder = os.environ.get("LATEPROMPT_TASKS")
    if not folder:
        pytest.skip("LATEPROMPT_TASKS is unset: it names the folder with the ten tasks' data")
    task: Task = load_task(name)
    for part in ("train", "dev"):
        rows = read_rows(Path(folder) / name / f"{part}.jsonl", task=task)
        assert {row.label for row in rows} == set(task.labels)
        assert all((row.text_pair is not None) == task.is_pair for row in rows)
