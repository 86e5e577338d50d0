"""predict as a stream: order, windows, rows that cannot be predicted, and what is left when it stops half-way."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_rows, write_rows

import lateprompt.cli.predict as predict_cli
import lateprompt.predictors.predicting as predicting
from lateprompt.cli.app import main
from lateprompt.data import Row, iter_rows, read_rows
from lateprompt.data.generation_task import plain_text_task
from lateprompt.data.rows import BadRow
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.kinds import load_run
from lateprompt.predictors.outputs import PredictionFile, Survey
from lateprompt.predictors.outputs import parquet as parquet_module
from lateprompt.predictors.outputs.formats import is_prediction_file
from lateprompt.predictors.predicting import check_rows, predict_rows, predict_windows
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError

NASTY = 'a "great" film,\nwith\ttabs\r and \u2028 lines'
FORMATS = [".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".ndjson", ".txt", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory, headless, data) -> str:
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--model", headless, "--train", data["train"], "--dev", data["dev"], "--prompt-layer", "2"]
    arguments += ["--epochs", "1", "--output", str(folder), "--quiet"]
    assert main(["train", *arguments]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def tuned(run) -> TextClassifier:
    return load_run(run)


@pytest.fixture
def quick(monkeypatch, tuned):
    """The command line without loading the model again."""
    monkeypatch.setattr(predict_cli, "load", lambda *args, **options: tuned)


@pytest.fixture
def many(tmp_path) -> str:
    """Rows of many lengths."""
    return write_rows(tmp_path / "many.jsonl", [{"id": i, **row} for i, row in enumerate(make_rows(600))])


def predict(run, data, output, *more):
    return main(["predict", str(run), "--data", str(data), "--output", str(output), *more])


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


# -- the stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "window"), [(3, 7), (64, None), (1000, 1)])
def test_the_order_and_the_scores_do_not_depend_on_windows(tuned, batch_size, window):
    rows = [Row(row["text"]) for row in make_rows(50)]
    expected = tuned.probabilities(rows)
    found = list(predict_rows(tuned, iter(rows), batch_size=batch_size, window=window))
    scores = [[one.scores[label] for label in tuned.task.labels] for one in found]
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    assert [one.prediction for one in found] == [tuned.task.labels[i] for i in expected.argmax(1)]


def test_rows_are_read_when_they_are_needed(tuned, monkeypatch):
    monkeypatch.setattr(predicting, "ROWS", 200)
    read = []

    def rows():
        for i in range(10_000):
            read.append(i)
            yield Row("the film")

    windows = predict_windows(tuned, rows(), batch_size=8)
    sizes = []
    for _ in range(9):
        sizes.append(len(next(windows)))
        assert len(read) == sum(sizes)
    assert sizes[0] == 32  # early results
    assert max(sizes) == predicting.ROWS


def test_a_window_of_long_texts_is_short(tuned, monkeypatch):
    monkeypatch.setattr(predicting, "CHARACTERS", 1000)
    rows = [Row("the film " * 60) for _ in range(20)]
    assert {len(part) for part in predict_windows(tuned, rows)} == {2}


def test_probabilities_of_a_long_list_in_parts(tuned, monkeypatch):
    rows = [Row(row["text"]) for row in make_rows(30)]
    whole = tuned.probabilities(rows)
    monkeypatch.setattr("lateprompt.predictors.labelling._TOGETHER", 7)
    np.testing.assert_allclose(tuned.probabilities(rows), whole, atol=1e-6)
    assert tuned.probabilities([]).shape == (0, 2)


def test_settings_that_cannot_be_are_refused_at_once(tuned):
    for wrong in ({"on_error": "ignore"}, {"batch_size": 0}, {"window": 0}, {"beams": 2}, {"max_new_tokens": 3}):
        with pytest.raises(LatePromptError):
            predict_rows(tuned, [], **wrong)


# -- rows that cannot be predicted -------------------------------------------------------------------------------------


def test_labels_in_the_file_are_ignored(run, quick, tmp_path):
    labels = [-1, "?", ["positive"], None, 7, {"a": 1}, "unheard of"]
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a film", "label": label} for label in labels])
    assert predict(run, data, tmp_path / "out.jsonl") == 0
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["label"] for line in lines] == labels
    assert len({line["prediction"] for line in lines}) == 1


def test_stop_finds_a_late_bad_row_before_any_work(run, quick, tmp_path, capsys, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", [*make_rows(500), {"text": ""}])
    monkeypatch.setattr(TextClassifier, "batch_scores", lambda *args, **kwargs: pytest.fail("computed"))
    assert predict(run, data, tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert "rows.jsonl, line 501: 'text' is empty" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


BAD = '{"text": "", "id": 1}\n{"text": "a film", "id": 2}\nnonsense\n{"text": 5, "id": 4}\n{"text": "good", "id": 5}\n'


def test_skip_writes_the_reason_in_a_rows_place(run, quick, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(BAD)
    assert predict(run, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--on-error", "skip") == 3
    assert "3 of 5 rows could not be predicted" in capsys.readouterr().err
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line.get("id") for line in lines] == [1, 2, None, 4, 5]
    assert [line["prediction"] is None for line in lines] == [True, False, True, True, False]
    assert [("error" in line, "scores" in line) for line in lines] == [
        (one, not one) for one in (True, False, True, True, False)
    ]
    assert lines[0]["error"] == "line 1: 'text' is empty; every row needs a text"
    assert "broken JSON" in lines[2]["error"]
    only = write_rows(tmp_path / "fine.jsonl", make_rows(3))
    assert predict(run, only, tmp_path / "fine-out.jsonl", "--on-error", "skip") == 0


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_skip_in_a_table(run, quick, tmp_path, suffix):
    (tmp_path / "rows.jsonl").write_text(BAD)
    out = tmp_path / f"out{suffix}"
    assert predict(run, tmp_path / "rows.jsonl", out, "--on-error", "skip") == 3
    table = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert list(table.columns) == ["text", "id", "prediction", "score_negative", "score_positive", "error"]
    assert table["prediction"].isna().tolist() == table["error"].notna().tolist() == [True, False, True, True, False]


def refuse(word):
    """An encoder that refuses a text, as one without special tokens does where a text gives no tokens."""

    def wrap(encode):
        def refusing(rows):
            for number, row in enumerate(rows, 1):
                if word in row.text:
                    raise LatePromptError(f"row {number} gives no tokens; give it a text")
            return encode(rows)

        return refusing

    return wrap


def test_errors_that_appear_while_computing(tuned, monkeypatch):
    monkeypatch.setattr(tuned.encoder, "encode", refuse("odd")(tuned.encoder.encode), raising=False)
    texts = ["a film", "an odd one", "good", "odd", "bad", "great"]
    rows = [Row(text, source={"text": text}) for text in texts]
    found = list(predict_rows(tuned, rows, on_error="skip"))
    assert [one.source["text"] for one in found] == texts
    assert [one.error for one in found] == [
        "gives no tokens; give it a text" if "odd" in text else None for text in texts
    ]
    before = []
    with pytest.raises(LatePromptError, match="row 2: gives no tokens"):
        before.extend(predict_rows(tuned, rows))
    assert [one.prediction for one in before] == [found[0].prediction]


def test_texts_without_tokens_are_found_before_any_work(run, quick, tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuned.encoder, "encode", refuse("odd")(tuned.encoder.encode), raising=False)
    monkeypatch.setattr(type(tuned.encoder), "may_be_empty", True)
    monkeypatch.setattr(TextClassifier, "batch_scores", lambda *args, **kwargs: pytest.fail("computed"))
    data = write_rows(tmp_path / "rows.jsonl", [*make_rows(300), {"text": "odd"}])
    assert predict(run, data, tmp_path / "out.jsonl") == 2
    assert "row 301: gives no tokens" in capsys.readouterr().err


def test_scores_that_are_no_numbers(tuned, monkeypatch):
    scores = np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, 0.0]], dtype=np.float32)
    monkeypatch.setattr(TextClassifier, "batch_scores", lambda *args, **kwargs: scores)
    rows = [Row("a film")] * 3
    assert [one.error is None for one in predict_rows(tuned, rows, on_error="skip")] == [True, False, False]
    with pytest.raises(LatePromptError, match="row 2: the model's scores are no numbers"):
        list(predict_rows(tuned, rows))


def test_rows_before_a_broken_stream_are_predicted(tuned):
    def rows():
        yield from [Row("a film")] * 5
        raise LatePromptError("rows.jsonl, line 6: broken JSON")

    found = []
    with pytest.raises(LatePromptError, match="line 6"):
        found.extend(predict_rows(tuned, rows()))
    assert len(found) == 5
    bad = BadRow(9, "line", {"text": ""}, "'text' is empty")
    with pytest.raises(LatePromptError, match=r"^line 9: 'text' is empty$"):
        list(predict_rows(tuned, [Row("a film"), bad]))


def test_columns_by_name(run, quick, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [{"review": "a great film"}])
    assert predict(run, data, tmp_path / "out.jsonl") == 2
    assert predict(run, data, tmp_path / "out.jsonl", "--text-column", "review") == 0
    assert lines_of(tmp_path / "out.jsonl")[0]["review"] == "a great film"


# -- written answers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(causal_lm) -> TextWriter:
    settings = ModelSettings(causal_lm, prompt_layer=2, bottleneck_dim=8, max_length=48, max_target_length=6)
    return TextWriter.build(settings, plain_text_task(pair=False), seed=0)


def test_written_answers_in_windows(writer):
    rows = [Row(row["text"], target="not to be looked at") for row in make_rows(12)]
    expected = writer.write(rows, batch_size=5)
    found = list(predict_rows(writer, iter(rows), batch_size=5, window=5))
    assert [one.prediction for one in found] == expected
    assert {(one.scores, one.error) for one in found} == {(None, None)}


def test_a_source_without_room_for_its_answer_is_a_bad_row(writer):
    rows = [Row("say it"), Row("say it again " * 20), Row("say")]
    found = list(predict_rows(writer, rows, max_new_tokens=50, on_error="skip"))
    assert [one.error is None for one in found] == [True, False, True]
    assert "max_new_tokens 50 do not fit behind a source of" in found[1].error
    with pytest.raises(LatePromptError, match="row 2: max_new_tokens 50"):
        list(check_rows(writer, rows, max_new_tokens=50))
    assert len(list(check_rows(writer, rows))) == 3


# -- formats -----------------------------------------------------------------------------------------------------------


def read_back(path: Path) -> list[dict]:
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        separator = "," if name.endswith(".csv") else "\t"
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False).to_dict("records")
    if name.endswith(".parquet"):
        return pd.read_parquet(path).to_dict("records")
    text = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    return [json.loads(line) for line in text.decode().split("\n") if line]


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_by_extension(run, quick, tmp_path, suffix):
    rows = [{"id": "0", "text": NASTY}, *({"id": str(i), **row} for i, row in enumerate(make_rows(600), 1))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / f"out{suffix}"
    assert predict(run, data, out) == 0
    found = read_back(out)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [row["text"] for row in found[1:]] == [row["text"] for row in rows[1:]]
    scores = [row.get("scores") or {name: row[f"score_{name}"] for name in ("negative", "positive")} for row in found]
    assert all(abs(sum(map(float, one.values())) - 1) < 1e-5 for one in scores)
    if suffix not in (".txt", ""):  # our own reader reads it again, character by character
        again = read_rows(out, labelled=False)
        assert [row.text for row in again] == [row["text"] for row in rows]
    assert is_prediction_file(out)


@pytest.mark.parametrize("name", ["out.xlsx", "out.zip", "out.parquet.gz"])
def test_formats_that_are_not_written(run, quick, many, tmp_path, name, capsys):
    assert predict(run, many, tmp_path / name) == 2
    assert "give .jsonl, .csv" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_what_is_no_number_is_null(run, quick, tmp_path):
    row = '{"text": "a film", "x": NaN, "inf": -Infinity, "y": {"z": [1, Infinity, -Infinity]}}'
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    assert predict(run, tmp_path / "rows.jsonl", tmp_path / "out.jsonl") == 0
    text = (tmp_path / "out.jsonl").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (found["x"], found["y"]) == (None, {"z": [1, None, None]})
    pd.DataFrame({"text": ["a film", "b"], "x": [1.5, float("nan")]}).to_parquet(tmp_path / "rows.parquet")
    assert predict(run, tmp_path / "rows.parquet", tmp_path / "out2.jsonl") == 0
    assert "NaN" not in (tmp_path / "out2.jsonl").read_text()
    assert predict(run, tmp_path / "rows.jsonl", tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith('a film,,,"{""z"": [1, null, null]}",')


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_of_the_input_with_our_names_are_kept(run, quick, tmp_path, suffix, capsys):
    own = {
        "prediction": "mine",
        "scores": "my own",
        "score_positive": "0.1",
        "error": "E7",
        "prediction_input": "older",
    }
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a film", **own}, {"text": "b", **own}])
    out = tmp_path / f"out{suffix}"
    assert predict(run, data, out) == 0
    err = capsys.readouterr().err
    kept = {"prediction": "prediction_input_2"}
    kept |= {"scores": "scores_input"} if suffix == ".jsonl" else {"score_positive": "score_positive_input"}
    for row in read_back(out):
        assert row["prediction"] in ("negative", "positive")
        assert {name: row[kept.get(name, name)] for name in own} == own
    for name, other in kept.items():
        assert f"column {name!r} is {other!r}" in err
    assert "'error'" not in err
    # With skip the column error is ours.
    assert predict(run, data, tmp_path / f"skip{suffix}", "--on-error", "skip") == 0
    assert read_back(tmp_path / f"skip{suffix}")[0]["error_input"] == "E7"


def test_predictions_of_predictions(run, quick, many, tmp_path):
    assert predict(run, many, tmp_path / "one.csv") == 0
    assert predict(run, tmp_path / "one.csv", tmp_path / "two.csv") == 0
    assert predict(run, tmp_path / "two.csv", tmp_path / "three.csv") == 0
    table = pd.read_csv(tmp_path / "three.csv")
    assert (table["prediction"] == table["prediction_input"]).all()
    assert (table["prediction"] == table["prediction_input_2"]).all()


def test_types_of_a_parquet_file(run, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "GROUP", 2)
    rows = [
        {"text": "a", "i": 1, "f": 1, "b": True, "mixed": 1, "none": None, "nested": {"a": [1]}},
        {"text": "b", "i": 2, "f": 2.5, "b": None, "mixed": "x", "none": None, "nested": {"a": []}},
        {"text": "c", "i": None, "f": float("nan"), "b": False, "mixed": [1], "none": None, "late": 7},
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    assert predict(run, data, tmp_path / "out.parquet", "--batch-size", "1") == 0
    types = {name: str(kind) for name, kind in zip(*schema_of(tmp_path / "out.parquet"), strict=True)}
    assert types["i"] == types["late"] == "int64"
    assert (types["f"], types["b"], types["mixed"], types["none"]) == ("double", "bool", "string", "string")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert table["mixed"].tolist() == ["1", "x", "[1]"]
    assert table["nested"][0]["a"].tolist() == [1]
    assert table["late"].tolist()[2] == 7


def schema_of(path):
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    return schema.names, schema.types


def test_dates_bytes_and_decimals_in_tables(run, quick, tmp_path):
    table = pd.DataFrame({"text": ["a film"], "when": [pd.Timestamp("2026-11-25")], "raw": [b"ab"]})
    table.to_parquet(tmp_path / "rows.parquet")
    assert predict(run, tmp_path / "rows.parquet", tmp_path / "out.csv") == 0
    assert "a film,2026-11-25T00:00:00,YWI=," in (tmp_path / "out.csv").read_text()
    assert predict(run, tmp_path / "rows.parquet", tmp_path / "out.parquet") == 0
    again = pd.read_parquet(tmp_path / "out.parquet")
    assert (again["when"][0], again["raw"][0]) == (pd.Timestamp("2026-11-25"), b"ab")


def test_nanoseconds_stay_in_a_parquet_file(run, quick, tmp_path):
    when = pd.to_datetime([1_700_000_000_000_000_001, None])
    table = pd.DataFrame({"text": ["a", "b"], "when": when, "there": when.tz_localize("Europe/Berlin")})
    table["long"] = pd.to_timedelta([1, None], unit="ns")
    table.to_parquet(tmp_path / "rows.parquet")
    assert predict(run, tmp_path / "rows.parquet", tmp_path / "out.parquet") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet")[list(table)], table)


def test_a_table_of_text_has_no_nul(run, quick, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a film", "x": "a\0b"}])
    assert predict(run, data, tmp_path / "out.csv") == 0
    assert read_rows(tmp_path / "out.csv", labelled=False)[0].source["x"] == "a\ufffdb"
    assert predict(run, data, tmp_path / "out.jsonl") == 0
    assert lines_of(tmp_path / "out.jsonl")[0]["x"] == "a\0b"


def test_an_open_quote_ends_the_work_also_with_skip(run, quick, tmp_path, capsys):
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "a film,1\n" * 5 + '"open,1\n' + "a film,1\n" * 5)
    assert predict(run, data, tmp_path / "out.jsonl", "--on-error", "skip") == 2
    message = capsys.readouterr().err
    assert "line 7: broken quoting" in message
    assert "the first 5 rows" in message
    assert len(lines_of(tmp_path / "out.jsonl")) == 5


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_turns_up_late(tuned, tmp_path, monkeypatch, suffix):
    """Without a survey (rows from a pipe) the first rows say which columns a table has."""
    monkeypatch.setattr(parquet_module, "GROUP", 2)
    rows = [Row("a", source={"text": "a"}), Row("b", source={"text": "b"}), Row("c", source={"text": "c", "new": 1})]

    def write(name, survey=None):
        with PredictionFile(tmp_path / f"{name}{suffix}", labels=tuned.task.labels, survey=survey) as file:
            for part in predict_windows(tuned, rows, window=2):
                file.write(part)
        return file.rows

    with pytest.raises(LatePromptError, match=r"row 3 has a column 'new'.*\.jsonl"):
        write("unknown")
    assert len(read_back(tmp_path / f"unknown{suffix}")) == 2
    assert write("known", Survey().of(rows)) == len(read_back(tmp_path / f"known{suffix}")) == 3


# -- files that are there ----------------------------------------------------------------------------------------------


def test_a_file_of_another_kind_is_not_replaced(run, many, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lateprompt.predictors.kinds.load_run", lambda *args, **kwargs: pytest.fail("loaded"))
    contents = {
        "thesis.txt": "my life's work\n",
        "rows.csv": "text,label\na,b\n",
        "gold.jsonl": '{"prediction": "x", "text": "a"}\n',
        "list.jsonl": "[1, 2]\n",
        "bytes.parquet": "PAR1",
        "x.csv.gz": "no gzip",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert predict(run, many, tmp_path / name) == 2
        error = capsys.readouterr().err
        assert "--overwrite" in error
        assert error.count("\n") == 1
        assert (tmp_path / name).read_text() == content
    assert predict(run, many, many, "--overwrite") == 2  # never the input
    assert predict(run, many, tmp_path, "--overwrite") == 2
    assert predict(run, many, "", "--overwrite") == 2
    assert len(lines_of(many)) == 600


def test_overwrite_replaces_it(run, quick, many, tmp_path):
    (tmp_path / "thesis.txt").write_text("my life's work\n")
    assert predict(run, many, tmp_path / "thesis.txt", "--overwrite") == 0
    assert len(lines_of(tmp_path / "thesis.txt")) == 600


def stop_after(monkeypatch, windows, error):
    """Let predict run into something when some windows are written."""
    original = PredictionFile.write
    seen = []

    def write(self, predictions):
        if len(seen) == windows:
            error(self)
        seen.append(len(predictions))
        original(self, predictions)

    monkeypatch.setattr(PredictionFile, "write", write)


def fail(file):
    raise RuntimeError("a fault")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".tsv.gz"])
def test_an_earlier_prediction_stays_until_the_new_one_is_through(run, quick, many, tmp_path, suffix, monkeypatch):
    out = tmp_path / f"out{suffix}"
    few = write_rows(tmp_path / "few.jsonl", make_rows(3))
    assert predict(run, few, out) == 0
    out.chmod(0o640)
    before = out.read_bytes()
    with monkeypatch.context() as context:
        stop_after(context, 1, lambda file: os.kill(os.getpid(), signal.SIGINT))
        assert predict(run, many, out) == 130
    assert out.read_bytes() == before
    assert len(read_back(tmp_path / f"out.partial{suffix}")) == 256
    assert predict(run, many, out) == 0
    assert len(read_back(out)) == 600
    assert out.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.jsonl", "many.jsonl", out.name]


def test_a_link_stays_a_link(run, quick, many, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "there" / "out.jsonl")
    for _ in range(2):
        assert predict(run, many, link) == 0
        assert link.is_symlink()
        assert len(lines_of(tmp_path / "there" / "out.jsonl")) == 600


def test_two_at_a_time_into_one_file(tuned, tmp_path):
    rows = [Row("a film", source={"text": "a film"})]
    found = list(predict_rows(tuned, rows))
    with PredictionFile(tmp_path / "out.jsonl", labels=tuned.task.labels) as file:
        for _ in range(2):
            with (
                pytest.raises(LatePromptError, match="being written by another process"),
                PredictionFile(tmp_path / "out.jsonl", labels=tuned.task.labels),
            ):
                pass
            file.write(found)
    assert len(lines_of(tmp_path / "out.jsonl")) == 2


# -- stopping half-way -------------------------------------------------------------------------------------------------


def test_results_are_there_as_soon_as_they_are_computed(tuned, many, tmp_path):
    out = tmp_path / "out.jsonl"
    with PredictionFile(out, labels=tuned.task.labels) as file:
        for part in predict_windows(tuned, iter_rows(many, labelled=False), batch_size=8):
            file.write(part)
            assert out.read_text().endswith("\n")
            assert len(lines_of(out)) == file.rows


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".jsonl.gz"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_was_written(run, quick, many, tmp_path, capsys, monkeypatch, suffix, number, code):
    stop_after(monkeypatch, 1, lambda file: os.kill(os.getpid(), number))
    out = tmp_path / f"out{suffix}"
    assert predict(run, many, out) == code
    error = capsys.readouterr().err
    assert error == f"lateprompt: interrupted; {str(out)!r} has the first 256 rows, the rest is missing\n"
    assert len(read_back(out)) == 256


def test_an_interrupt_before_the_first_row_leaves_no_file(run, quick, many, tmp_path, capsys, monkeypatch):
    stop_after(monkeypatch, 0, lambda file: os.kill(os.getpid(), signal.SIGINT))
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert predict(run, many, tmp_path / name) == 130
        assert "nothing was written" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_a_fault_keeps_what_was_written_and_its_traceback(run, quick, many, tmp_path, capsys, monkeypatch):
    stop_after(monkeypatch, 1, fail)
    assert predict(run, many, tmp_path / "out.jsonl") == 1
    error = capsys.readouterr().err
    assert "has the first 256 rows, the rest is missing" in error
    assert "RuntimeError: a fault" in error
    assert len(lines_of(tmp_path / "out.jsonl")) == 256


def test_an_error_in_the_middle(run, quick, many, tmp_path, capsys, monkeypatch):
    """A row that only the model finds bad."""
    original = TextClassifier.batch_scores
    calls = []

    def scores(*args, **kwargs):
        found = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            found[10] = np.nan
        return found

    monkeypatch.setattr(TextClassifier, "batch_scores", scores)
    assert predict(run, many, tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert error.startswith("lateprompt: row 267: the model's scores are no numbers")
    assert error.endswith("out.jsonl' has the first 266 rows, the rest is missing\n")
    assert len(lines_of(tmp_path / "out.jsonl")) == 266


@contextmanager
def full_disk(size: int):
    """Files may have so many bytes: to a program a full disk looks the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv.gz", ".parquet"])
def test_a_full_disk(run, quick, many, tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.setattr(parquet_module, "GROUP", 50)
    sizes = {".jsonl": 50_003, ".csv": 20_007, ".tsv.gz": 5_000, ".parquet": 110_000}
    with full_disk(sizes[suffix]):
        assert predict(run, many, tmp_path / f"out{suffix}") == 2
    error = capsys.readouterr().err
    assert "File too large" in error
    assert error.count("\n") == 1
    found = read_back(tmp_path / f"out{suffix}")
    assert 0 < len(found) < 600
    assert f"has the first {len(found)} rows, the rest is missing" in error
    assert [row["text"] for row in found] == [row["text"] for row in make_rows(600)[: len(found)]]


def test_a_full_device(run, quick, many, capsys):
    assert predict(run, many, "/dev/full") == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_pipe_is_written_to(run, quick, tmp_path):
    few = write_rows(tmp_path / "few.jsonl", make_rows(3))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert predict(run, few, pipe) == 0
    assert len(reader.communicate(timeout=60)[0].splitlines()) == 3
    assert pipe.is_fifo()


def test_the_screen(run, quick, many, capsys):
    assert predict(run, many, "-") == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["id"] for line in captured.out.splitlines()] == list(range(600))
    assert captured.err == ""


# -- whole processes ---------------------------------------------------------------------------------------------------


def start(*arguments, **more) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lateprompt", "predict", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.slow
def test_a_reader_that_has_enough(run, many):
    process = start(run, "--data", many, "--output", "/dev/stdout", stdout=subprocess.PIPE)
    head = subprocess.run(["head", "-n", "1"], stdin=process.stdout, capture_output=True, text=True, check=True)
    process.stdout.close()
    assert process.wait(120) in (0, 1)
    assert process.stderr.read() == ""
    assert json.loads(head.stdout)["id"] == 0


@pytest.mark.slow
def test_a_kill_leaves_whole_lines(run, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", make_rows(50_000))
    process = start(run, "--data", data, "--output", tmp_path / "out.jsonl")
    while not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").stat().st_size:
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.wait()
    *whole, _ = (tmp_path / "out.jsonl").read_text().split("\n")
    assert 0 < len(whole) < 50_000
    assert all("prediction" in json.loads(line) for line in whole)


@pytest.mark.slow
def test_two_processes_write_one_file(run, many, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = ["-m", "lateprompt", "predict", run, "--data", many, "--output", str(tmp_path / "two.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert predict(run, many, tmp_path / "one.jsonl") == 0
    one, two = lines_of(tmp_path / "one.jsonl"), lines_of(tmp_path / "two.jsonl")
    assert [line["id"] for line in two] == [line["id"] for line in one]
    assert [line["prediction"] for line in two] == [line["prediction"] for line in one]


MEASURE = """
import json, sys
from pathlib import Path
from lateprompt.predictors.outputs import PredictionFile, Survey
from lateprompt.predictors.predicting import predict_windows
from lateprompt.predictors.kinds import load_run
from lateprompt.data import iter_rows

run, data, output = sys.argv[1:]
tuned = load_run(run)
survey = Survey().of(iter_rows(data, labelled=False))
resident = {}
with PredictionFile(output, labels=tuned.task.labels, survey=survey) as file:
    for part in predict_windows(tuned, iter_rows(data, labelled=False), batch_size=64):
        file.write(part)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident[file.rows] = pages
print(json.dumps({"first": min(p for r, p in resident.items() if r >= 5_000), "most": max(resident.values())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_is_flat(run, tmp_path):
    """Rows of 4 kB: whoever held all had 80 MB more in the end. benchmarks/predict_stream.py takes a million."""
    note = "x" * 4000
    data = write_rows(
        tmp_path / "rows.jsonl", [{"text": f"the film it was bad {i}", "note": note} for i in range(25_000)]
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, run, data, str(tmp_path / "out.jsonl")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["most"] <= 1.1 * found["first"], found
