"""What compare and report write: nothing that they did not make, nothing that they read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from comparison_results import write_results
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.experiments.compare import load_plan
from lateprompt.experiments.compare.folder import WRITTEN, check_results, plan_text
from lateprompt.utils.errors import LatePromptError


@pytest.fixture
def plan(tmp_path, masked_lm):
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for name in ("train", "dev"):
        write_rows(tmp_path / "data" / "sst2" / f"{name}.jsonl", make_rows(20))
    text = {"model": masked_lm, "data": str(tmp_path / "data"), "tasks": ["sst2"], "methods": ["npg"], "shots": [8]}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**text, "settings": {"prompt_layer": 2}, "dev_rows": 4}))
    return path


def test_a_plan_beside_its_results_is_not_replaced(plan, tmp_path, monkeypatch, capsys):
    before = plan.read_text()
    monkeypatch.chdir(tmp_path)
    for given in (["plan.yaml", "--output", "."], [str(plan), "--output", str(tmp_path)]):
        assert main(["compare", *given, "--quiet"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "plan.yaml', which no comparison made" in line
    (tmp_path / "lock").touch()  # also where a comparison is
    assert main(["compare", "plan.yaml", "--output", ".", "--quiet"]) == 2
    assert "plan 'plan.yaml' would be replaced by the resolved one" in capsys.readouterr().err
    assert plan.read_text() == before
    plan.write_text(plan_text(load_plan(plan, {})))  # the resolved one: nothing is lost
    assert main(["compare", "plan.yaml", "--output", ".", "--dry-run"]) == 0


@pytest.mark.parametrize("name", WRITTEN)
def test_files_that_no_comparison_made(name, tmp_path):
    (tmp_path / "other.txt").write_text("in nobody's way")
    check_results(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(LatePromptError, match=f"has '{name}', which no comparison made"):
        check_results(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["", " "])
def test_no_name(name, plan, capsys):
    assert main(["compare", str(plan), "--output", name]) == 2
    assert "is no name" in capsys.readouterr().err


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    write_results(folder)
    return folder


@pytest.mark.parametrize("option", ["--output", "--markdown", "--latex"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("results.csv", "is the table of results itself"),
        ("link.csv", "is the table of results itself"),
        ("plan.yaml", "which is read"),
        ("runs/a/predictions.jsonl", "is among the files of the runs"),
        ("", "is no name"),
        ("runs", "is a folder"),
    ],
)
def test_a_report_replaces_nothing_that_it_reads(option, name, message, results, capsys):
    (results / "plan.yaml").write_text("methods: []")
    (results / "link.csv").symlink_to("results.csv")
    (results / "runs").mkdir(exist_ok=True)
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    output = str(results / name) if name else ""
    assert main(["report", str(results), option, output]) == 2
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}


def test_a_report_through_a_link(results, tmp_path):
    (tmp_path / "page.html").write_text("old")
    (results / "report.html").symlink_to(tmp_path / "page.html")
    assert main(["report", str(results)]) == 0
    assert (results / "report.html").is_symlink()
    assert "<html" in (tmp_path / "page.html").read_text()
    assert main(["report", str(results), "--markdown", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
