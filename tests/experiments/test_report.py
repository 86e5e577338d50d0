"""The report on a comparison: its numbers, its escaping, its gaps, and the page in a real browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from comparison_results import METHODS, SEEDS, TASKS, fail, save_rows, write_results
from scipy import stats

from lateprompt.cli.app import main
from lateprompt.experiments.report import latex, main_tables, markdown, read_results, render, write_report
from lateprompt.experiments.report.aggregate import as_json, extra_tables
from lateprompt.experiments.report.curves import curves
from lateprompt.experiments.report.errors import errors
from lateprompt.experiments.report.figures import COLOURS, PALETTE, bubble_chart, line_chart, spread, width_of
from lateprompt.experiments.report.results import COLUMNS
from lateprompt.experiments.report.statistics import holm, rank_methods
from lateprompt.experiments.report.tables import count, escape_latex, escape_markdown, grid, marks

NASTY = '<script>alert("x")</script> a|b_c & 5% $d$ {e} \\f #g ~h ^i `j` *k*'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_results(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tables(folder):
    return main_tables(read_results(folder))


def scores(rows, column, **wanted) -> list[float]:
    return [float(row[column]) for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


class Parsed(HTMLParser):
    """Tags, and what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestNumbers:
    def test_one_table_per_number_of_shots(self, tables):
        assert [(table.model, table.shots, list(table.seeds)) for table in tables] == [
            ("roberta-large", 100, list(SEEDS)),
            ("roberta-large", 500, list(SEEDS)),
        ]
        assert [column.task for column in tables[0].columns] == list(TASKS)
        assert [row.method for row in tables[0].rows] == list(METHODS)

    def test_mean_and_sample_standard_deviation(self, tables, rows):
        for table in tables:
            assert len(table.cells) == len(METHODS) * len(TASKS)
            for (method, task), cell in table.cells.iterrows():
                expected = scores(rows, "test", method=method, task=task, shots=table.shots)
                assert cell["mean"] == pytest.approx(np.mean(expected))
                assert cell["std"] == pytest.approx(np.std(expected, ddof=1))

    def test_average_over_tasks(self, tables, rows):
        row = tables[1].rows[2]
        by_seed = [statistics.fmean(scores(rows, "test", method=row.method, shots=500, seed=seed)) for seed in SEEDS]
        assert row.mean == pytest.approx(statistics.fmean(by_seed))
        assert row.std == pytest.approx(statistics.stdev(by_seed))

    def test_costs(self, tables, rows):
        row = tables[0].rows[4]
        wanted = {"method": "npg", "shots": 100}
        assert row.parameters == 791_680
        assert row.tokens_per_ms == pytest.approx(np.mean(scores(rows, "tokens_per_second", **wanted)) / 1000)
        assert row.memory_bytes == max(scores(rows, "peak_memory_bytes", **wanted))

    def test_full_data_comes_last(self, tmp_path):
        write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=["full", 500, 100], files=False)
        assert [table.shots for table in main_tables(read_results(tmp_path))] == [100, 500, "full"]

    def test_dev_stands_in_for_a_column_without_test_scores(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg", "head"], tasks=["rte", "sst2"], shots=[100], files=False)
        for row in rows:
            if row["task"] == "rte":
                row["test"] = ""
        save_rows(tmp_path, rows)
        table = main_tables(read_results(tmp_path))[0]
        assert [column.split for column in table.columns] == ["dev", "test"]
        dev = [row["dev"] for row in rows if row["method"] == "npg" and row["task"] == "rte"]
        assert table.cells["mean"]["npg", "rte"] == pytest.approx(np.mean(dev))

    def test_dev_and_test_are_never_mixed(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=[100], files=False)
        rows[0]["test"] = ""
        save_rows(tmp_path, rows)
        table = main_tables(read_results(tmp_path))[0]
        assert list(table.scores.loc["npg", "rte"].dropna().index) == [21, 42]
        assert grid(table).rows[0][1][0].seeds == "2/3"

    def test_further_metrics(self, folder, rows):
        tables = extra_tables(read_results(folder))
        assert list(tables) == ["f1"]
        assert tables["f1"][0].cells["mean"]["full", "mrpc"] == pytest.approx(
            np.mean(scores(rows, "test_f1", method="full", task="mrpc", shots=100))
        )

    def test_parquet_and_csv_say_the_same(self, folder, rows, tmp_path):
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        kinds = dict.fromkeys(("dev", "test", "tokens_per_second"), float) | {"seed": int}
        typed = [{key: kinds.get(key, str)(value) for key, value in row.items()} for row in rows]
        parquet.write_table(arrow.Table.from_pylist(typed), tmp_path / "results.parquet")
        assert as_json(main_tables(read_results(tmp_path)), 0) == as_json(main_tables(read_results(folder)), 0)

    def test_means_are_exact(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=[100], files=False)
        for row, score in zip(rows, (0.8725, 0.8875, 0.9025), strict=True):  # summed up as floats: 0.88749…
            row["test"] = score
        save_rows(tmp_path, rows)
        assert grid(main_tables(read_results(tmp_path))[0]).rows[0][1][0].text == "88.8"

    def test_marks(self):
        assert marks([0.5, 0.7, np.nan, 0.6], ["50", "70", "–", "60"]) == ["", "best", "", "second"]
        assert marks([3, 1, 2], ["3", "1", "2"], more=False) == ["", "best", "second"]
        assert marks([0.701, 0.702, 0.6], ["70", "70", "60"]) == ["best", "best", "second"]
        assert marks([0.5], ["50"]) == [""]

    def test_counts(self):
        assert [count(value) for value in (20, 2050, 20_480, 791_680, 999_800, 355_359_744)] == [
            *("20", "2.05K", "20.5K", "792K", "1.00M", "355M"),
        ]


class TestRanks:
    def matrix(self, table):
        return np.array(
            [
                [table.scores.loc[row.method, (column.task, seed)] for row in table.rows]
                for column in table.columns
                for seed in table.seeds
            ]
        )

    def test_against_scipy(self, tables):
        for table in tables:
            values = self.matrix(table)
            ranking = rank_methods(table)
            assert ranking.blocks == 15
            expected = stats.rankdata(-values, axis=1).mean(axis=0)
            order = np.argsort(expected, kind="stable")
            assert [rank.method for rank in ranking.ranks] == [table.rows[i].method for i in order]
            assert [rank.mean_rank for rank in ranking.ranks] == pytest.approx(expected[order])
            friedman = stats.friedmanchisquare(*values.T)
            assert ranking.friedman_statistic == pytest.approx(friedman.statistic)
            assert ranking.friedman_p == pytest.approx(friedman.pvalue)
            pairs = [stats.wilcoxon(values[:, i], values[:, order[0]]).pvalue for i in order[1:]]
            assert [rank.p for rank in ranking.ranks[1:]] == pytest.approx(pairs)

    def test_holm(self):
        assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
        assert holm([0.9, 0.8]) == [1.0, 1.0]

    def test_too_few_blocks_are_named(self, tmp_path):
        write_results(tmp_path, tasks=["rte", "sst2"], seeds=[1, 2], shots=[100], files=False)
        ranking = rank_methods(main_tables(read_results(tmp_path))[0])
        assert ranking.blocks == 4
        assert "no difference, however clear" in ranking.notes[0]
        assert min(rank.p_adjusted for rank in ranking.ranks[1:]) > 0.05

    def test_a_block_without_some_score_is_left_out(self, tmp_path):
        rows = write_results(tmp_path, shots=[100], files=False)
        fail(rows[0], "out of memory")
        save_rows(tmp_path, rows)
        ranking = rank_methods(main_tables(read_results(tmp_path))[0])
        assert (ranking.blocks, ranking.left_out) == (14, 1)

    def test_equal_methods_have_no_p(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg", "mppg", "head"], shots=[100], files=False)
        for row in rows:
            row["test"] = 0.5
        save_rows(tmp_path, rows)
        ranking = rank_methods(main_tables(read_results(tmp_path))[0])
        assert [rank.mean_rank for rank in ranking.ranks] == [2.0, 2.0, 2.0]
        assert (ranking.friedman_p, ranking.ranks[1].p) == (None, None)


class TestFiles:
    def test_curves_are_means_over_seeds(self, folder):
        runs = read_results(folder).runs.query("task == 'rte' and shots == 100")
        found, missing = curves(runs)
        histories = [
            [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
            for run in runs.itertuples()
            if run.method == "npg"
        ]
        curve = found["npg"]
        assert (missing, set(curve["seeds"])) == (0, {3})
        assert curve.index[3] == 400
        assert curve["dev"][400] == pytest.approx(100 * np.mean([h[3]["dev_accuracy"] for h in histories]))
        assert curve["seconds"][400] == pytest.approx(np.mean([h[3]["seconds"] for h in histories]))

    def test_a_curve_ends_where_the_first_run_stopped(self, tmp_path):
        write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=[100])
        runs = read_results(tmp_path).runs
        file = runs["folder"][1] / "history.jsonl"
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:4]))
        assert list(curves(runs)[0]["npg"].index) == [100, 200, 300, 400]

    def test_errors_of_the_best_by_dev(self, folder):
        runs = read_results(folder).runs.query("task == 'sst2' and shots == 100")
        found = errors("sst2", runs)
        means = {m: np.mean(runs["dev"][runs["method"] == m]) for m in METHODS}
        assert found.method == max(means, key=means.get)
        assert (found.total, found.seeds, len(found.worst)) == (360, 3, 10)
        sure = list(found.worst["probability"])
        assert sure == sorted(sure, reverse=True)
        assert (found.worst["label"] != found.worst["prediction"]).all()

    def test_without_optional_files(self, tmp_path):
        write_results(tmp_path, tasks=["rte"], shots=[100], files=False)
        page = render(read_results(tmp_path))
        assert "18 of 18 runs left no history.jsonl" in page
        assert "left no predictions.jsonl for rte" in page

    @pytest.mark.parametrize(
        ("name", "line", "message"),
        [
            ("history.jsonl", "{broken", "broken JSON"),
            ("history.jsonl", '{"step": "soon", "dev_accuracy": 0.5}', "step 'soon' is no number"),
            ("history.jsonl", '{"step": 1, "dev_accuracy": 85.0}', "outside -1 to 1"),
            ("predictions.jsonl", '{"text": "a", "label": "x"}', "'prediction' is empty"),
        ],
    )
    def test_broken_files(self, tmp_path, name, line, message):
        write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=[100])
        results = read_results(tmp_path)
        (results.runs["folder"][0] / name).write_text(line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=message) as error:
            render(results)
        assert name in str(error.value)


class TestBrokenTables:
    @pytest.mark.parametrize("column", COLUMNS)
    def test_missing_column(self, tmp_path, column):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], seeds=[1], shots=[100], files=False)
        path = save_rows(tmp_path, [{key: value for key, value in row.items() if key != column} for row in rows])
        with pytest.raises(ValueError, match=f"missing column '{column}' in 'results.csv'"):
            read_results(path)

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("seed", "1.5", "seed '1.5' is no whole number"),
            ("shots", "many", "shots 'many' is neither"),
            ("shots", "0", "shots '0' is neither"),
            ("test", "good", "test 'good' is no number"),
            ("test", "nan", "not a finite number"),
            ("test", "85.3", "outside -1 to 1; write 85.3 % as 0.853"),
            ("dev", "", "'dev' is empty in a run that is done"),
            ("steps", "-1", "not a number from 0"),
            ("settings", "[1]", "no JSON object"),
            ("status", "running", "status 'running' is unknown"),
            ("method", " ", "'method' is empty"),
            ("run", "../secret", "leads out of the results folder"),
            ("run", "/etc", "leads out of the results folder"),
        ],
    )
    def test_bad_value(self, tmp_path, column, value, message):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], seeds=[1], shots=[100], files=False)
        rows[0][column] = value
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            read_results(save_rows(tmp_path, rows))
        assert "results.csv, line 2" in str(error.value)

    def test_the_same_run_twice(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], seeds=[1], shots=[100], files=False)
        with pytest.raises(ValueError, match=r"line 3: method 'npg'.*already in line 2"):
            read_results(save_rows(tmp_path, rows * 2))

    def test_a_repeated_run_that_failed_first(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], seeds=[1], shots=[100], files=False)
        failed = dict(rows[0])
        fail(failed, "disk full")
        results = read_results(save_rows(tmp_path, [failed, *rows]))
        assert (len(results.done), len(results.failed)) == (1, 1)

    def test_two_primary_metrics_for_a_task(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=[100], files=False)
        rows[0]["metric"] = "mcc"
        with pytest.raises(ValueError, match="task 'rte' has the primary metrics mcc, accuracy"):
            main_tables(read_results(save_rows(tmp_path, rows)))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match="do not exist"):
            read_results(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"has no 'results\.csv'"):
            read_results(tmp_path)
        (tmp_path / "results.csv").write_text(",".join(COLUMNS) + "\n")
        with pytest.raises(ValueError, match="has no runs"):
            read_results(tmp_path)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nasty")
    rows = write_results(folder, methods=[NASTY, "npg", "mppg"], tasks=["rte", "sst2"], seeds=[1, 2])
    for row in rows:
        row["model"] = NASTY
        row["settings"] = json.dumps({NASTY: NASTY, "method": row["method"]})
        row["task"] = row["task"].replace("sst2", NASTY)
        if row["method"] != NASTY:
            line = {"text": NASTY, "text_pair": NASTY, "label": NASTY, "prediction": "<b>", "probability": 0.9}
            line["text_pair"] += "\x00\ud800"
            (folder / row["run"] / "predictions.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    fail(rows[0], NASTY)
    save_rows(folder, rows)
    return folder


class TestEscaping:
    def test_html(self, nasty):
        page = render(read_results(nasty))
        page.encode("utf-8")
        assert "alert(&#34;x&#34;)" in page
        assert "<script>alert" not in page
        assert "<b>" not in page.replace('<b title="probability of the prediction">', "")
        parsed = Parsed(page)
        assert not parsed.open
        assert [tag for tag, _ in parsed.tags].count("script") == 1
        assert not [attributes for _, attributes in parsed.tags for name in attributes if name.startswith("on")]

    def test_latex(self, nasty):
        text = latex(main_tables(read_results(nasty)))
        assert escape_latex(NASTY) in text
        assert r"a\textbar{}b\_c \& 5\% \$d\$ \{e\} \textbackslash{}f \#g" in text
        assert all(line.count("&") - line.count(r"\&") == 6 for line in text.splitlines() if line.endswith(r"\\"))

    def test_markdown(self, nasty):
        text = markdown(main_tables(read_results(nasty)))
        assert "<script" not in text
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
        assert escape_markdown("a\nb | c") == r"a b \| c"


class TestPage:
    def test_whole_and_self_contained(self, folder):
        page = render(read_results(folder))
        parsed = Parsed(page)
        assert not parsed.open
        for tag, attributes in parsed.tags:
            assert tag not in ("img", "iframe", "object", "base")
            assert not attributes.get("src")
            assert attributes.get("href", "#").startswith(("#", "data:"))
        assert "http://" not in page
        assert "https://" not in page
        assert "@import" not in page
        assert "url(" not in page
        tags = [tag for tag, _ in parsed.tags]
        assert tags.count("caption") == tags.count("table")
        assert all(attributes.get("aria-label") for tag, attributes in parsed.tags if tag == "svg")
        assert page == render(read_results(folder)), "the same results give the same page"

    def test_policy_lets_our_script_run(self, folder):
        page = render(read_results(folder))
        script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page

    def test_one_seed(self, tmp_path):
        write_results(tmp_path, seeds=[13], shots=[100])
        results = read_results(tmp_path)
        assert main_tables(results)[0].cells["std"].isna().all()
        page = render(results)
        assert "one seed (13)" in page
        assert 'class="std"' not in page
        assert "of 1 seeds" not in page

    def test_one_method(self, tmp_path):
        write_results(tmp_path, methods=["npg"], shots=[100])
        page = render(read_results(tmp_path))
        assert "Ranks need two methods or more." in page
        assert "<strong" not in page
        assert 'id="shots"' not in page

    def test_failed_runs(self, tmp_path):
        rows = write_results(tmp_path, shots=[100], files=False)
        fail(rows[0], "OutOfMemoryError: 2.00 GiB")
        page = render(read_results(save_rows(tmp_path, rows)))
        assert "OutOfMemoryError: 2.00 GiB" in page
        assert "†2/3" in page

    def test_all_runs_failed(self, tmp_path):
        rows = write_results(tmp_path, methods=["npg", "head"], tasks=["rte"], seeds=[1], files=False)
        for row in rows:
            fail(row, "broken")
        results = read_results(save_rows(tmp_path, rows))
        page = render(results)
        assert "4 of 4 runs failed" in page
        assert not Parsed(page).open
        assert np.isnan(main_tables(results)[0].rows[0].mean)

    def test_many_labels_and_many_methods(self, tmp_path):
        rows = write_results(tmp_path, methods=[f"method {i}" for i in range(16)], tasks=["rte"], shots=[100])
        for row in rows:
            lines = [{"text": f"t{i}", "label": f"l{i % 20}", "prediction": f"l{i % 19}"} for i in range(60)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / row["run"] / "predictions.jsonl").write_text(text, encoding="utf-8")
        page = render(read_results(tmp_path))
        assert "most frequent confusions of 20 labels" in page
        assert "stroke-dasharray" in page

    def test_labels_keep_apart(self):
        places = spread([10, 10, 11, 90, 200], 14, 0, 100)
        assert all(b - a >= 14 - 1e-9 for a, b in pairwise(places))
        assert places[-1] <= 100
        assert spread([5, 6], 14, 0, 10) == [0, 10]


class TestFigures:
    """What a browser shows of a figure, from its SVG; test_report_browser.py asks a browser itself."""

    @pytest.fixture
    def chart(self):
        lines = {f"method {i}": pd.Series([60 + i / 50, 65.8 + i / 50], index=[0.0, 1900.0]) for i in range(16)}
        numbers = {method: number for number, method in enumerate(lines)}
        return line_chart(lines, numbers, name="c", title="A & B", x_label="steps", y_label="$y$ <, %")

    def texts(self, svg: str) -> list[str]:
        return re.findall(r"<text[^>]*>([^<]*)</text>", svg)

    def test_texts_are_text(self, chart):
        texts = self.texts(chart.svg())
        assert [text for text in texts if text.startswith("method")] == [f"method {i}" for i in range(15, -1, -1)][::-1]
        assert {"0", "1k", "60", "62", "64", "66", "steps", "$y$ &lt;, %"} <= set(texts), "ticks are round"

    def test_no_label_lies_on_another(self, chart):
        labels = re.findall(r'<g class="label"><text[^>]* y="([\d.]+)"', chart.svg(370))
        assert len(labels) == 16
        assert all(b - a >= 13.9 for a, b in pairwise(sorted(map(float, labels))))

    def test_circles_keep_their_labels_apart(self):
        x, y = np.random.default_rng(0).uniform([0, 60], [8, 75], (12, 2)).T
        frame = pd.DataFrame({"x": x, "y": y, "size": 1e9, "note": "n"}, index=[f"name {i}" for i in range(12)])
        frame.loc["name 3", "size"] = np.nan
        numbers = {method: number for number, method in enumerate(frame.index)}
        svg = bubble_chart(frame, numbers, name="b", title="t", x_label="x", y_label="y").svg()
        found = re.findall(r'"label"><text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', svg)
        shift = {"start": 0, "middle": -0.5, "end": -1}
        boxes = []
        for style, left, bottom, text in found:
            wide = width_of(text)
            left = float(left) + wide * shift[re.search("text-anchor: (\\w+)", style)[1]]
            boxes.append((left, float(bottom), left + wide))
        assert len(boxes) == 12
        assert all(left > 0 and right < 720 for left, _, right in boxes)
        for place, (left, bottom, right) in enumerate(boxes):
            assert not [b for b in boxes[:place] if b[0] < right and left < b[2] and abs(b[1] - bottom) < 12]

    def test_colours_are_the_pages(self, chart):
        svg = chart.svg()
        assert not re.search("#[0-9a-f]{3}", re.sub('(id|href)="[^"]*"', "", svg)), "a colour without a dark one"
        used = set(re.findall(r"var\(--(\w+)\)", svg))
        assert used == {*(f"c{i}" for i in range(len(COLOURS))), "ink", "soft", "faint", "paper"}
        assert used == set(PALETTE) - {"rule", "tint", "link", "heat", "wrong"}

    def test_what_reads_it_aloud(self, chart):
        svg = chart.svg()
        assert svg.startswith('<svg viewBox="0 0 400 290" role="img" aria-label="A &amp; B"><desc>steps against $y$')
        assert "<g><title>method 3 (0: 60.1, 1900: 65.9)</title>" in svg

    def test_no_two_ids_in_a_page(self, folder):
        ids = re.findall(r' id="([^"]*)"', render(read_results(folder)))
        assert len(ids) == len(set(ids))


class TestCommand:
    def test_all_outputs(self, folder, tmp_path, capsys):
        files = [tmp_path / name for name in ("deep/report.html", "table.md", "table.tex")]
        options = ["--output", str(files[0]), "--markdown", str(files[1]), "--latex", str(files[2])]
        assert main(["report", str(folder), *options]) == 0
        assert capsys.readouterr().out == "".join(f"wrote {file}\n" for file in files)
        assert files[0].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        assert files[1].read_text(encoding="utf-8").count("| npg |") == 2
        assert files[2].read_text(encoding="utf-8").count(r"\toprule") == 2
        assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "table.md", "table.tex"]

    def test_figures(self, tmp_path, capsys):
        write_results(tmp_path / "results", methods=["npg", "lora"], tasks=["rte"], shots=[100])
        arguments = ["report", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]
        assert main(arguments) == 0
        names = [f"convergence-roberta-large-100-shots-rte-by-{unit}" for unit in ("seconds", "steps")]
        names += ["ranks-roberta-large-100-shots", "speed-roberta-large-100-shots"]
        files = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
        assert sorted(files) == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
        starts = {".pdf": b"%PDF", ".png": b"\x89PNG"}
        assert all(content.startswith(starts[Path(name).suffix]) for name, content in files.items())
        assert not (tmp_path / "results" / "report.html").exists()
        assert main(arguments) == 0, "our own files may be replaced"
        assert files == {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}

    def test_figures_replace_nothing_else(self, tmp_path, capsys):
        write_results(tmp_path / "results", methods=["npg", "lora"], tasks=["rte"], shots=[100], files=False)
        (tmp_path / "figures").mkdir()
        mine = tmp_path / "figures" / "speed-roberta-large-100-shots.pdf"
        mine.write_text("mine")
        page = tmp_path / "page.html"
        arguments = ["report", str(tmp_path / "results"), "--output", str(page), "--figures"]
        assert main([*arguments, str(mine.parent)]) == 2
        assert f"has {mine.name!r}, which no report made" in capsys.readouterr().err
        assert main([*arguments, str(mine)]) == 2
        assert "is a file; give a folder" in capsys.readouterr().err
        assert main([*arguments, str(tmp_path / "results" / "runs")]) == 2
        assert "is among the files of the runs" in capsys.readouterr().err
        assert main([*arguments, ""]) == 2
        assert "is no name" in capsys.readouterr().err
        assert [file.name for file in mine.parent.iterdir()] == [mine.name]
        assert (mine.read_text(), page.exists()) == ("mine", False)

    def test_without_matplotlib(self, folder, tmp_path):
        code = "import sys; sys.modules['matplotlib'] = None; from lateprompt.cli.app import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "report", str(folder)]
        done = subprocess.run([*command, "--output", str(tmp_path / "page.html")], capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "pip install 'lateprompt[experiments]'" in line
        assert not list(tmp_path.iterdir())
        done = subprocess.run([*command, "--markdown", str(tmp_path / "table.md")], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def test_json(self, folder, capsys):
        assert main(["report", str(folder / "results.csv"), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["failed_runs"] == 0
        table = result["tables"][0]
        assert (table["shots"], table["seeds"]) == (100, [13, 21, 42])
        assert table["methods"][4]["method"] == "npg"
        assert table["methods"][4]["scores"]["rte"]["n"] == 3
        assert not (folder / "report.html").exists()

    def test_default_page(self, tmp_path, capsys):
        write_results(tmp_path, tasks=["rte"], shots=[100], files=False)
        assert main(["report", str(tmp_path)]) == 0
        assert (tmp_path / "report.html").is_file()

    def test_errors_are_one_line(self, folder, tmp_path, capsys):
        assert main(["report", str(tmp_path / "nowhere")]) == 2
        assert main(["report", str(folder), "--output", str(tmp_path)]) == 2
        assert main(["report", str(folder), "--output", str(folder / "results.csv")]) == 2
        assert main(["report", str(folder), "--output", str(tmp_path / "a"), "--latex", str(tmp_path / "a")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 4
        assert all(line.startswith("lateprompt: ") for line in lines)
        assert not (tmp_path / "a").exists()

    def test_nothing_is_written_if_something_is_broken(self, tmp_path):
        write_results(tmp_path, methods=["npg"], tasks=["rte"], shots=[100])
        results = read_results(tmp_path)
        (results.runs["folder"][0] / "history.jsonl").write_text("{", encoding="utf-8")
        with pytest.raises(ValueError, match="broken JSON"):
            write_report(tmp_path, page=tmp_path / "a.html", markdown_file=tmp_path / "a.md")
        assert not (tmp_path / "a.md").exists()

    def test_the_core_does_not_import_the_report(self):
        code = "import sys, lateprompt, lateprompt.cli.app; print([m for m in sys.modules if '.report' in m])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
