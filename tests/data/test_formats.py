"""Data as people have it: spreadsheets, archives, arrays, other encodings, and columns by other names."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pandas as pd
import pytest
from test_rows import plain, put

from lateprompt.cli.app import main
from lateprompt.data import BadRow, Row, default_task, iter_rows, load_task, read_rows
from lateprompt.runs.train import DataSettings, load_rows
from lateprompt.utils.errors import LatePromptError

AB = [("a", None, "1"), ("b", None, "2")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", " text ,\tlabel \na,1\nb,2\n"),
        ("a.csv", "\ufefftext,label\na,1\nb,2\n"),
        ("a.csv", "text,label,,\na,1,,\nb,2,,\n,,,\n,,,\n"),
        ("a.csv", ",text,,label\n,a,,1\n,b,,2\n"),
        ("a.csv", "\n,\ntext,label\na,1\nb,2\n \n"),
        ("a.csv", "text;label\na;1\nb;2\n"),
        ("a.csv", '"text";"label"\n"a";"1"\n"b";"2"\n'),
        ("a.csv", "sep=;\ntext;label\na;1\nb;2\n"),
        ("a.csv", "text\tlabel\na\t1\nb\t2\n"),
        ("a.csv", "text|label\na|1\nb|2\n"),
        ("a.csv", 'text, label\n"a", "1"\nb, 2\n'),
        ("a.csv", '"label"; "text";\n"1"; "a";\n2; b;\n'),
        ("a.tsv", "text,label\na,1\nb,2\n"),
        ("a.csv", "text,label\ra,1\rb,2\r"),
        ("a.csv", "text,label\r\na,1\r\nb,2"),
        ("a.csv", "text,label\na,1\nb,2\n".encode("utf-16")),
        ("a.CSV", "text,label\na,1\nb,2\n".encode("utf-16-be").join([b"\xfe\xff", b""])),
        ("a.jsonl", '{"text": "a", "label": 1}\r\n{"text": "b", "label": 2.0}\r\n'),
        ("a.ndjson", '{"text": "a", "label": 1}\n{"text": "b", "label": "2.0"}'),
        ("a.json", '\n [{"text": "a", "label": 1},\n\n{"text": "b", "label": 2}]\n'),
        ("a.json", '{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n'),
        ("a.csv.gz", gzip.compress(b"text;label\na;1\nb;2\n", mtime=0)),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\na\t1\n", mtime=0) + gzip.compress(b"b\t2\n", mtime=0)),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n{"text": "b", "label": 2}', mtime=0)),
        ("a.json.gz", gzip.compress(b'[{"text": "a", "label": 1}, {"text": "b", "label": 2}]', mtime=0)),
    ],
)
def test_the_same_rows_however_they_are_written(tmp_path: Path, name: str, content: str | bytes) -> None:
    rows = read_rows(put(tmp_path, name, content))
    assert plain(rows) == AB
    assert all(set(row.source) == {"text", "label"} for row in rows)


def test_an_index_column_is_kept(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": [1, 2]}).to_csv(tmp_path / "a.csv")
    assert [row.source[""] for row in read_rows(tmp_path / "a.csv")] == ["0", "1"]


def test_a_separator_in_a_text_does_not_decide(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", 'text,label\n"a;b;c;d",1\n')
    assert plain(read_rows(path)) == [("a;b;c;d", None, "1")]
    path = put(tmp_path, "b.csv", "text;label, gold\na, b;1\n")
    assert plain(read_rows(path, columns={"label": "label, gold"})) == [("a, b", None, "1")]


def test_a_text_is_longer_than_csv_allows(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", f'text,label\n"{"x" * 400_000}",1\n')
    assert len(read_rows(path)[0].text) == 400_000


def test_a_workbook(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in ([], [" text ", "label", None], ["a", 1, None], [7, 2.0], [], [None, None]):
        book.active.append(row)
    book.active.cell(row=900, column=5).font = openpyxl.styles.Font(bold=True)  # Excel's used range is larger
    book.save(tmp_path / "a.xlsx")
    rows = read_rows(tmp_path / "a.xlsx")
    assert plain(rows) == [("a", None, "1"), ("7", None, "2")]
    assert rows[1].source == {"text": 7, "label": 2}
    book.active["A3"] = None
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(LatePromptError, match="row 3: 'text' is empty"):
        read_rows(tmp_path / "a.xlsx")


def test_a_workbook_without_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("lateprompt.data.formats.sheets.import_module", missing)
    with pytest.raises(LatePromptError, match=r"openpyxl is missing; pip install lateprompt\[excel\]"):
        read_rows(put(tmp_path, "a.xlsx", b"PK\x03\x04"))


def test_class_names_in_a_parquet_file(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["positive", "negative"])
    features = datasets.Features({"text": datasets.Value("string"), "class": names})
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b"], "class": [0, 1]}, features=features).to_parquet(path)
    expected = [("a", None, "positive"), ("b", None, "negative")]
    assert plain(read_rows(path, columns={"label": "class"})) == expected
    # Not what the task's own files mean by 0 and 1.
    assert plain(read_rows(path, task=load_task("sst2"), columns={"label": "class"})) == expected
    # A run that was trained on the numbers.
    numbers = read_rows(path, task=default_task(["0", "1"], pair=False), columns={"label": "class"})
    assert [row.label for row in numbers] == ["0", "1"]
    with pytest.raises(LatePromptError, match="'positive' is none of task"):
        read_rows(path, task=default_task(["x", "y"], pair=False), columns={"label": "class"})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,class\na,1\n", ["line 1", "no column 'label'", "--label-column class"]),
        ("a.csv", "text,y\na,1\n", ["--label-column y"]),
        ("a.csv", "Text,Label\na,1\n", ["--text-column Text"]),
        ("a.csv", "review,sentiment\na,1\n", ["--text-column review"]),
        ("a.jsonl", '{"text": "a", "category": 1}', ["line 1", "--label-column category"]),
        ("a.jsonl", '{"text": "a", "target": 1}', ["line 1", "--label-column target"]),
        ("a.csv", "what a day,1\nbad,0\n", ["line 1", "the first line must name the columns"]),
        ("a.csv", "text, text \na,b\n", ["line 1", "'text' occurs twice"]),
        ("a.csv", "text,label,\na,b,1\n", ["line 2", "3 fields for 2 columns"]),
        ("a.csv", "text,label\n,\na,1\n", ["line 2", "'text' is empty"]),
        ("a.csv", "text,label\nb\xe4,1\n".encode("latin-1"), ["line 2", "not UTF-8", "iconv"]),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), ["NUL", "UTF-16", "UTF-8"]),
        ("a.csv", "text,label\na,1\n".encode("utf-16")[:-1], ["broken UTF-16"]),
        ("a.csv", b"PK\x03\x04", ["Excel workbook", ".xlsx"]),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), ["gzip", ".gz"]),
        ("a.jsonl.gz", b"{}", ["broken gzip"]),
        ("a.csv.gz", gzip.compress(b"text,label\na,1\n" * 99, mtime=0)[:-9], ["broken gzip"]),
        ("a.parquet.gz", gzip.compress(b"", mtime=0), ["gunzip"]),
        ("a.xls", b"x", [".xlsx"]),
        *(
            (name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ["git lfs pull"])
            for name in ("a.csv", "a.jsonl", "a.json", "a.parquet", "a.xlsx")
        ),
        ("a.json", '[{"text": "a", "label": 1}', ["row 2", "no end"]),
        ("a.json", '[{"text": "a", "label": 1}, {"text"', ["row 2", "broken JSON"]),
        ("a.json", '[{"text": "a", "label": 1}] []', ["follows the end"]),
        ("a.json", '[{"text": "a", "label": 1}, 2]', ["row 2", "no JSON object"]),
        ("a.json", "[" * 100_000, ["row 1", "too deep"]),
        ("a.json", "[]", ["empty"]),
        ("a.jsonl", "{" * 100_000, ["line 1", "broken JSON"]),
        ("a.jsonl", '{"a":' * 100_000, ["line 1", "too deep"]),
        ("a.jsonl", '{"text": "a", "label": 1, "x": ' + "[" * 300 + "]" * 300 + "}", ["line 1", "deeper than 100"]),
        ("a.jsonl", '{"text": "a", "label": %s}' % ("9" * 5000), ["line 1", "number"]),
        ("a.jsonl", '{"text": "a", "label": %s}' % ("9" * 1000), ["line 1", "400 digits"]),
        ("a.jsonl", '{"text": "a", "label": Infinity}', ["line 1", "label inf"]),
        ("a.jsonl", '{"text": NaN, "label": 1}', ["line 1", "'text' is empty"]),
        ("a.jsonl", '{"text": "a", "label": "\\udc00"}', ["line 1", "'label'", "surrogate"]),
        ("a.jsonl", '{"text": "a", "label": 1, "id": {"x": ["\\ud83d"]}}', ["line 1", "'id'", "surrogate"]),
        ("a.jsonl", '{"text": "a", "label": 1, "\\ud83d": 1}', ["line 1", "name of column", "surrogate"]),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: str | bytes, words: list[str]) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(LatePromptError, match=name) as error:
        read_rows(path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    message.encode()
    for word in words:
        assert word in message


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", json.dumps({"text": "😀", "label": "😀"}))
    assert plain(read_rows(path)) == [("😀", None, "😀")]


def test_no_file_that_never_ends_is_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "a.jsonl"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero"), tmp_path):
        with pytest.raises(LatePromptError, match=r"is a (pipe|device|folder)"):
            read_rows(path)
        with pytest.raises(LatePromptError, match=r"is a (pipe|device|folder)"):
            load_task(str(path))
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(LatePromptError, match="does not exist"):
            read_rows(name)
        with pytest.raises(LatePromptError, match="is unknown"):
            load_task(name)


def test_bad_rows_are_skipped(tmp_path: Path) -> None:
    lines = [b'{"text": "a", "id": 1}', b'{"text"', b'{"text": 5, "id": 2}', b"\xff", b"[1]", b"", b'{"text": "b"}']
    lines += [b'{"text": "\\ud800", "id": 3}', b'{"id": 4}']
    found = list(iter_rows(put(tmp_path, "a.jsonl", b"\n".join(lines)), labelled=False, on_error="skip"))
    assert [row.text for row in found if isinstance(row, Row)] == ["a", "b"]
    bad = {row.number: row for row in found if isinstance(row, BadRow)}
    assert sorted(bad) == [2, 3, 4, 5, 8, 9]
    assert all(row.unit == "line" and row.error and "\n" not in row.error for row in bad.values())
    assert bad[3].source == {"text": 5, "id": 2}
    json.dumps([dict(row.source) for row in bad.values()], ensure_ascii=False).encode()

    content = b'text,label\na,1\nb,1,2\n"c" d,1\nd\xff,1\n"e\nf",1\n'
    found = list(iter_rows(put(tmp_path, "a.csv", content), on_error="skip"))
    assert [row.text if isinstance(row, Row) else row.number for row in found] == ["a", 3, 4, 5, "e\nf"]
    with pytest.raises(LatePromptError, match=r"a\.csv, line 3: 3 fields"):
        list(iter_rows(tmp_path / "a.csv"))
    with pytest.raises(LatePromptError, match="on_error 'ignore'"):
        iter_rows(tmp_path / "a.csv", on_error="ignore")


@pytest.mark.parametrize("rest", ['"b,1\nc,1\nd,2\n', '"b,1\nc,1\n"d",2\ne,1\n', '"b\n', 'b,"1\n"c",1\n', 'b,1\n"'])
@pytest.mark.parametrize("before", [1, 300])
def test_rows_that_an_open_quote_takes_in_are_not_skipped(tmp_path: Path, rest: str, before: int) -> None:
    path = put(tmp_path, "a.csv", "text,label\n" + "a,1\n" * before + rest)
    found = []
    with pytest.raises(LatePromptError, match=rf"line {before + 2 + (rest[0] == 'b' and rest[2] == '1')}: .*a quote"):
        found.extend(row.text for row in iter_rows(path, on_error="skip") if isinstance(row, Row))
    assert found == ["a"] * before + (["b"] if rest.startswith("b,1") else [])


@pytest.mark.parametrize(("name", "task"), [("a.csv", None), ("a.tsv", "sst2")])
def test_nul_bytes_are_no_text(tmp_path: Path, name: str, task: str | None) -> None:
    content = b"sentence\tlabel\na\t1\nb\0\t0\nc\t1\n\0\0\0\n" if task else b"text,label\na,1\nb\0,0\nc,1\n\0\0\0\n"
    path = put(tmp_path, name, content)
    kind = None if task is None else load_task(task)
    found = list(iter_rows(path, task=kind, labelled=False, on_error="skip"))
    assert [row.text if isinstance(row, Row) else row.number for row in found] == ["a", 3, "c", 5]
    with pytest.raises(LatePromptError, match="line 3: NUL bytes"):
        read_rows(path, task=kind, labelled=False)
    # Where they are written as a character they are one.
    assert read_rows(put(tmp_path, "a.jsonl", '{"text": "a\\u0000b"}'), labelled=False)[0].text == "a\0b"


def test_space_around_names_of_columns(tmp_path: Path) -> None:
    pd.DataFrame({" text": ["a", "b"], "label ": [1, 2], " Kind ": ["x", "y"]}).to_parquet(tmp_path / "a.parquet")
    assert plain(read_rows(tmp_path / "a.parquet")) == AB
    assert (
        plain(read_rows(put(tmp_path, "a.jsonl", '{" text": "a", "label ": 1}\n{" text": "b", "label ": 2}\n'))) == AB
    )
    rows = read_rows(tmp_path / "a.parquet", columns={"label": "Kind"})
    assert [row.label for row in rows] == ["x", "y"]
    assert list(rows[0].source) == [" text", "label ", " Kind "]  # predict writes them as they were
    with pytest.raises(LatePromptError, match="this row"):
        read_rows(put(tmp_path, "b.jsonl", '{"text": "a", " target": "x"}\n{"text": "b", "label ": 2}\n'))


def test_a_column_that_occurs_twice_in_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table([["a"], ["b"], ["1"]], names=["text", "text", "label"]), tmp_path / "a.parquet")
    with pytest.raises(LatePromptError, match="'text' occurs twice"):
        read_rows(tmp_path / "a.parquet")


@pytest.mark.parametrize("row", [["#N/A", "pos"], ["good", "#DIV/0!"]])
def test_errors_of_formulas_are_no_texts(tmp_path: Path, row: list[str]) -> None:
    book = openpyxl.Workbook()
    for cells in (["text", "label"], ["good", "pos"], row, ["bad", None, None]):
        book.active.append(cells)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(LatePromptError, match=r"row 3: .* is the error '#.*' of a formula"):
        read_rows(tmp_path / "a.xlsx")
    found = list(iter_rows(tmp_path / "a.xlsx", on_error="skip"))
    assert [row.error for row in found if isinstance(row, BadRow)][-1].startswith("'label' is empty")


@pytest.mark.parametrize("label", ["-1", '"?"', "[1]", '{"a": 1}', '"other"', "NaN", "Infinity", "null", '""'])
def test_labels_are_ignored_where_none_are_needed(tmp_path: Path, label: str) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "a", "label": ' + label + '}\n{"text": "b", "label": "1.0"}')
    assert [row.label for row in read_rows(path, task=load_task("sst2"), labelled=False)] == [None, "positive"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv.gz", "a.json", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(number: int) -> int:
        path = tmp_path / f"{number}{name}"
        table = pd.DataFrame({"text": [f"a good day {i} " * 150 for i in range(number)], "label": 1})
        writers: dict[str, Callable[[], Any]] = {
            "a.jsonl": lambda: table.to_json(path, orient="records", lines=True),
            "a.json": lambda: table.to_json(path, orient="records"),
            "a.csv": lambda: table.to_csv(path, index=False),
            "a.tsv.gz": lambda: table.to_csv(path, index=False, sep="\t"),
            "a.parquet": lambda: table.to_parquet(path),
        }
        writers[name]()
        tracemalloc.start()
        count = sum(1 for _ in iter_rows(path))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == number
        return most

    peak(100)  # imports
    assert peak(12_000) < 1.3 * peak(4_000)


def test_columns_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "text,clean,class,label\nraw,a,1,x\nraw,b,2,y\n")
    chosen = {"text": "clean", "label": "class", "text_pair": None}
    assert plain(read_rows(path, columns=chosen)) == AB
    with pytest.raises(LatePromptError, match="line 1: there is no column 'gone'"):
        read_rows(path, columns={"text": "gone"})
    with pytest.raises(LatePromptError, match="'clean' is chosen for text and label"):
        read_rows(path, columns={"text": "clean", "label": "clean"})
    with pytest.raises(LatePromptError, match="columns 'txt'"):
        read_rows(path, columns={"txt": "clean"})
    with pytest.raises(LatePromptError, match="rows have one of them"):
        read_rows(path, columns={"target": "clean", "label": "class"})
    # A run remembers them, and a pair's second column makes it a pair.
    data = DataSettings(train=str(path), text_column="clean", label_column="class", text_pair_column="text")
    task = load_rows(data, 0).task
    assert task.is_pair
    assert type(task).from_dict(task.to_dict(), "again") == task
    assert plain(read_rows(path, task=task)) == [("a", "raw", "1"), ("b", "raw", "2")]
    with pytest.raises(LatePromptError, match="leave the option out"):
        load_rows(DataSettings(train=str(path), task="sst2", target_column="clean"), 0)
    assert load_rows(DataSettings(train=str(path), target_column="clean"), 0).train[0].target == "a"


def test_targets_that_look_like_classes_are_said(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "text,target\n" + "a,good\nb,bad\n" * 10)
    with pytest.warns(UserWarning, match="--label-column target"):
        load_rows(DataSettings(train=str(path)), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = load_rows(DataSettings(train=str(path), label_column="target"), 0)
    assert rows.task.labels == ("bad", "good")


def test_the_command_line_takes_columns_by_name(
    tmp_path: Path, masked_lm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(put(tmp_path, "a.csv", "review;class\na good day;1\na bad day;0\n" + "a good day;1\na bad day;0\n"))
    run = str(tmp_path / "run")
    names = ["--text-column", "review", "--label-column", "class"]
    train = ["train", "--model", masked_lm, "--train", path, "--output", run, "--max-steps", "2", "--states", "off"]
    assert main([*train, "--quiet", *names]) == 0
    assert main(["evaluate", run, "--data", path, "--json"]) == 0  # the run's columns
    other = str(put(tmp_path, "b.csv", "body,gold\na good day,1\n"))
    capsys.readouterr()
    assert main(["evaluate", run, "--data", other]) == 2
    assert "--text-column body" in capsys.readouterr().err
    assert main(["evaluate", run, "--data", other, "--text-column", "body", "--label-column", "gold"]) == 0
    fill = ["states", "fill", "--model", masked_lm, "--data", path, "--folder", str(tmp_path / "states")]
    assert main([*fill, *names]) == 0
