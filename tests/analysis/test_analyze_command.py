"""`lateprompt analyze` on tiny models: results, page and figures; it goes on; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_rows, write_rows

from lateprompt.analysis.folder import AnalysisFolder
from lateprompt.cli.app import main
from lateprompt.runs.pipeline import Pipeline
from lateprompt.utils.errors import LatePromptError

STEPS = ["--bottleneck-dim", "8", "--max-steps", "4", "--batch-size", "8", "--quiet"]


def analyze(kind: str, model: str, data: dict[str, str], output: Path, *more: str) -> int:
    own = ["--model", model, "--task", "sst2", "--train", data["train"], "--dev", data["dev"], "--output", str(output)]
    return main(["analyze", kind, *own, *STEPS, *more])


def results_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_layers_fill_all_states_in_one_pass_and_go_on(masked_lm, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "layers"
    more = ["--methods", "npg", "read-npg", "--states", str(tmp_path / "states")]
    assert analyze("layers", masked_lm, data, output, *more) == 0
    found = results_in(output)
    assert [(row["layer"], row["method"]) for row in found] == [
        (layer, method) for layer in (1, 2, 3) for method in ("npg", "read-npg")
    ]
    assert found[0]["fill_seconds"] > 0
    assert {row["fill_seconds"] for row in found[1:]} == {0.0}
    page = (output / "report.html").read_text()
    assert "Score by prompt layer" in page
    assert str(tmp_path) not in page
    assert {path.suffix for path in (output / "figures").iterdir()} == {".svg", ".png"}
    assert "read-npg" in capsys.readouterr().out

    monkeypatch.setattr(Pipeline, "fit", lambda self: pytest.fail("it is there already"))
    assert analyze("layers", masked_lm, data, output, *more) == 0
    assert results_in(output) == found
    assert analyze("layers", masked_lm, data, output, *more, "--lr", "0.01") == 2
    assert "other settings (lr)" in capsys.readouterr().err
    assert analyze("influence", masked_lm, data, output) == 2
    assert "holds an analysis of 'layers'" in capsys.readouterr().err


def test_results_of_rows_that_have_changed_are_not_mixed(masked_lm, data, tmp_path, capsys):
    own = {**data, "train": write_rows(tmp_path / "train.jsonl", make_rows(32))}
    output = tmp_path / "layers"
    assert analyze("layers", masked_lm, own, output, "--layers", "1") == 0
    write_rows(tmp_path / "train.jsonl", make_rows(40))
    assert analyze("layers", masked_lm, own, output, "--layers", "2") == 2
    assert "on other rows" in capsys.readouterr().err


def test_influence_of_a_decoder(causal_lm, data, tmp_path, capsys):
    output = tmp_path / "influence"
    assert analyze("influence", causal_lm, data, output, "--layers", "1", "3", "--seeds", "1", "2") == 0
    found = results_in(output)
    assert [(row["seed"], row["layer"], row["distance"]) for row in found] == [
        (1, 1, 3),
        (1, 3, 1),
        (2, 1, 3),
        (2, 3, 1),
    ]
    for row in found:
        assert row["gradient"]["initial"]["norm"] > 0
        assert row["removed"]["kl_bits"] > 0
        assert row["accuracy"] == pytest.approx(row["dev"])
    assert "Propagation" in (output / "report.html").read_text()


def test_information_with_and_without_a_prompt(headless, data, tmp_path, capsys):
    output = tmp_path / "information"
    assert analyze("information", headless, data, output, "--frozen-only", "--readout", "head") == 0
    frozen = results_in(output)
    assert {row["layer"] for row in frozen} == {0, 1, 2, 3, 4}
    assert analyze("information", headless, data, output, "--readout", "head", "--methods", "npg", "read-npg") == 0
    found = results_in(output)
    assert found[: len(frozen)] == frozen
    above = {(row["method"], row["pooling"], row["layer"]) for row in found[len(frozen) :]}
    states = {("npg", pooling, layer) for pooling in ("mean", "anchor") for layer in (3, 4)}
    assert above == states | {("read-npg", "prompt", 4)}
    assert all(0 <= row["interval"][0] <= row["interval"][1] <= row["label_entropy"] for row in found)


@pytest.fixture(scope="module")
def run(masked_lm, data, tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("runs") / "run")
    own = ["--model", masked_lm, "--task", "sst2", "--train", data["train"], "--dev", data["dev"]]
    assert main(["train", *own, *STEPS, "--prompt-layer", "2", "--output", place]) == 0
    return place


def test_instances_of_a_run(run, tmp_path, capsys):
    capsys.readouterr()
    output = tmp_path / "instances"
    assert main(["analyze", "instances", run, "--output", str(output), "--examples", "2"]) == 0
    out = capsys.readouterr().out
    texts = {row["text"] for row in make_rows(64)}
    neighbours = [line.split(": ", 1)[1] for line in out.splitlines() if line.startswith("  ")]
    assert len(neighbours) == 6
    assert set(neighbours) <= texts  # training texts
    rows = results_in(output)
    assert [row["vectors"] for row in rows] == ["prompts", "trunk states, mean", "trunk states, anchor"]
    assert all(abs(row["between"] + row["within"] - row["total"]) < 1e-6 for row in rows)
    assert not any(text in (output / "results.jsonl").read_text() for text in texts)
    # Once more, on other rows: its own results are replaced.
    data = write_rows(tmp_path / "rows.jsonl", make_rows(9, 300))
    assert main(["analyze", "instances", run, "--data", data, "--output", str(output), "--json"]) == 0
    assert [row["rows"] for row in results_in(output)] == [9, 9, 9]


def test_what_cannot_be_analysed_is_said(masked_lm, data, tmp_path, capsys):
    def refused(kind: str, *more: str, rows: dict[str, str] = data) -> str:
        assert analyze(kind, masked_lm, rows, tmp_path / "none", *more) == 2
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err

    assert "'lora' is the same for every prompt layer" in refused("layers", "--methods", "lora")
    assert "'late-lora' has no prompt" in refused("influence", "--methods", "late-lora")
    assert "prompt_layer '9' is out of range" in refused("layers", "--layers", "9")
    assert "has one twice" in refused("layers", "--seeds", "1", "1")
    assert main(["analyze", "layers", "--model", masked_lm, "--task", "sst2", "--train", data["train"], "--output",
                 str(tmp_path / "none")]) == 2  # fmt: skip
    assert "give --dev FILE" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LatePromptError, match="files of something else"):
        AnalysisFolder(tmp_path, "layers", {})
    file = tmp_path / "notes.txt"
    with pytest.raises(LatePromptError, match="is a file"):
        AnalysisFolder(file, "layers", {})


def test_a_broken_line_of_results_is_named(tmp_path):
    AnalysisFolder(tmp_path / "own", "layers", {}).add([{"layer": 1}])
    with (tmp_path / "own" / "results.jsonl").open("a") as results:
        results.write("{half")
    with pytest.raises(LatePromptError, match="line 2"):
        AnalysisFolder(tmp_path / "own", "layers", {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "analyze needs one of layers, influence, information, instances behind it"),
        (["layer"], "did you mean 'layers'?"),
        (
            ["layers", "--model", "m"],
            "--train, --output are needed; lateprompt analyze layers --help shows all options",
        ),
        (["instances"], "RUN, --output are needed"),
    ],
)
def test_words_that_are_missing_are_named(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
