"""The command line: train, evaluate, predict, tasks; and one clear line for whatever is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_rows, write_rows
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from lateprompt.cli.app import COMMANDS, main
from lateprompt.predictors.classifier import TextClassifier

FAST = [
    "--task",
    "sst2",
    "--prompt-layer",
    "2",
    "--bottleneck-dim",
    "8",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--quiet",
]


def train(model, data, output, *more):
    return main(
        [
            "train",
            "--model",
            model,
            "--train",
            data["train"],
            "--dev",
            data["dev"],
            "--output",
            str(output),
            *FAST,
            *more,
        ]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, masked_lm, data):
    folder = tmp_path_factory.mktemp("runs") / "sst2"
    assert train(masked_lm, data, folder, "--test", data["test"]) == 0
    return folder


def output_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_run_folder(run, data):
    names = {path.name for path in run.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "task.yaml",
        "run.json",
        "metrics.json",
        "history.jsonl",
        "README.md",
        "manifest.json",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"accuracy", "macro_f1", "mcc", "train_seconds", "tokens_per_second", "peak_memory_bytes"} <= set(metrics)
    assert metrics["trainable_parameters"] == 32 * 8 + 8 + 8 * 5 * 32 + 5 * 32
    assert metrics["trainable_parameters"] == sum(
        t.numel() for t in load_file(run / "adapter_model.safetensors").values()
    )
    assert set(metrics["test"]) == {data["test"]}
    settings = json.loads((run / "run.json").read_text())
    assert settings["model_settings"]["prompt_layer"] == 2
    assert settings["recipe"]["seed"] == 42
    assert settings["data"]["fingerprints"]["train"]["rows"] == 64
    assert settings["versions"]["torch"]
    assert [json.loads(line)["step"] for line in (run / "history.jsonl").read_text().splitlines()] == [4, 8]


def test_evaluate_agrees_with_training(run, data, capsys):
    assert main(["evaluate", str(run), "--data", data["dev"], "--json"]) == 0
    trained = json.loads((run / "metrics.json").read_text())
    found = output_of(capsys)
    for name in ("accuracy", "macro_f1", "mcc", "loss", "ece_before"):
        assert found[name] == pytest.approx(trained[name], abs=1e-5)
    assert main(["evaluate", str(run), "--data", data["dev"], data["test"], "--json"]) == 0
    assert set(output_of(capsys)) == {data["dev"], data["test"]}
    assert main(["evaluate", str(run), "--data", data["dev"]]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_predict_echoes_rows(run, data, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    assert main(["predict", str(run), "--data", data["dev"], "--output", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [json.loads(line) for line in Path(data["dev"]).read_text(encoding="utf-8").splitlines()]
    assert [(line["text"], line["label"]) for line in lines] == [(row["text"], row["label"]) for row in rows]
    for line in lines:
        assert sum(line["scores"].values()) == pytest.approx(1.0, abs=1e-4)
        assert line["prediction"] == max(line["scores"], key=line["scores"].get)
    unlabelled = write_rows(tmp_path / "new.jsonl", [{"text": "a great film", "id": 7}])
    capsys.readouterr()
    assert main(["predict", str(run), "--data", unlabelled]) == 0
    assert output_of(capsys)["id"] == 7


def test_the_run_folder_is_a_peft_adapter(run, masked_lm, data):
    base = AutoModelForMaskedLM.from_pretrained(masked_lm)
    ids = torch.arange(5, 12)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = TextClassifier.load(run).model(**batch).logits
    for model in (PeftModel.from_pretrained(base, run), AutoPeftModel.from_pretrained(run)):
        assert torch.equal(model.eval()(**batch).logits, expected)


def test_same_seed_same_run(run, masked_lm, data, tmp_path):
    assert train(masked_lm, data, tmp_path / "again") == 0
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_moved_base_model(run, data, masked_lm, headless, tmp_path, capsys):
    text = (run / "run.json").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in run.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    (moved / "run.json").write_text(text.replace(json.dumps(masked_lm), '"gone"'))
    assert main(["evaluate", str(moved), "--data", data["dev"]]) == 2
    assert "'gone' cannot be loaded" in capsys.readouterr().err
    assert main(["evaluate", str(moved), "--data", data["dev"], "--model", masked_lm]) == 0
    assert main(["evaluate", str(moved), "--data", data["dev"], "--model", headless]) == 2
    assert "no LM head" in capsys.readouterr().err


def test_a_config_file(masked_lm, data, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {masked_lm}\ntrain: {data['train']}\ntask: sst2\nepochs: 1\nmethod: mppg\nprompt_layer: 0.75\n"
    )
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run"), "--quiet", "--seed", "1"]) == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settings["model_settings"]["prompt_layer"] == 3
    assert settings["model_settings"]["method"] == "mppg"


def test_shots_take_dev_rows_from_the_rest(masked_lm, data, tmp_path):
    arguments = [
        "--model",
        masked_lm,
        "--train",
        data["train"],
        "--shots",
        "10",
        "--output",
        str(tmp_path / "run"),
        *FAST,
    ]
    assert main(["train", *arguments]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["train_rows"], metrics["dev_rows"]) == (10, 54)


def test_own_data_without_a_task(headless, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({"text": row["text"], "label": int(row["label"] == "positive")} for row in make_rows(32))
    assert (
        main(
            [
                "train",
                "--model",
                headless,
                "--train",
                str(path),
                "--output",
                str(tmp_path / "run"),
                "--epochs",
                "1",
                "--quiet",
            ]
        )
        == 0
    )
    assert main(["predict", str(tmp_path / "run"), "--data", str(path)]) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]) == {"0", "1"}


def test_a_head_run_keeps_its_head(headless, data, tmp_path, capsys):
    assert train(headless, data, tmp_path / "run", "--method", "head") == 0
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert sorted(t.numel() for t in weights.values()) == [2, 64]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", data["dev"], "--json"]) == 0
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert output_of(capsys)["loss"] == pytest.approx(trained["loss"], abs=1e-5)


def test_a_killed_run_resumes_and_ends_the_same(masked_lm, data, tmp_path, capsys):
    more = ["--epochs", "40", "--eval-every", "4"]
    assert train(masked_lm, data, tmp_path / "whole", *more) == 0
    killed = tmp_path / "killed"
    arguments = [
        "--model",
        masked_lm,
        "--train",
        data["train"],
        "--dev",
        data["dev"],
        "--output",
        str(killed),
        *FAST,
        *more,
    ]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums in another order are other bits
    process = subprocess.Popen([sys.executable, "-m", "lateprompt", "train", *arguments], env=one_thread)
    while not (killed / "checkpoint" / "state.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (killed / "metrics.json").exists()
    assert main(["evaluate", str(killed), "--data", data["dev"]]) == 2
    assert train(masked_lm, data, killed, *more) == 2
    assert "--resume" in capsys.readouterr().err
    assert train(masked_lm, data, killed, *more, "--lr", "0.5", "--resume") == 2
    assert "other settings (recipe)" in capsys.readouterr().err
    assert train(masked_lm, data, killed, *more, "--resume") == 0
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (killed / "checkpoint").exists()


def test_resume_of_a_finished_run_changes_nothing(run, masked_lm, data, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert train(masked_lm, data, run, "--test", data["test"], "--resume") == 0
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        (["--method", "lora"], "method"),
        (["--lr", "0.5", "--seed", "7"], "lr, seed"),
        (["--prompt-layer", "3"], "prompt_layer"),
        (["--readout", "head"], "readout"),
    ],
)
def test_resume_of_a_finished_run_with_other_settings(run, masked_lm, data, capsys, more, changed):
    assert train(masked_lm, data, run, "--test", data["test"], "--resume", *more) == 2
    assert f"holds a finished run with other settings ({changed})" in capsys.readouterr().err
    for same in (["--prompt-layer", "0.5"], ["--num-prompt-tokens", "5"], ["--eval-batch-size", "8"]):
        assert train(masked_lm, data, run, "--test", data["test"], "--resume", *same) == 0


def test_resume_of_a_finished_run_from_another_folder(run, masked_lm, data, monkeypatch):
    monkeypatch.chdir(Path(data["train"]).parent)
    near = {name: Path(path).name for name, path in data.items()}
    assert train(masked_lm, near, run, "--test", near["test"], "--resume") == 0


def test_what_is_wrong_is_found_before_a_good_run_is_cleared(run, masked_lm, data, tmp_path, capsys):
    good = tmp_path / "good"
    shutil.copytree(run, good)
    before = sorted(path.name for path in good.iterdir())
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\ntemplate: '{text} {mask}'\nlabels: {positive: great, negative: terrible}\nmetrics: [acc]\n"
    )
    arguments = ["train", "--model", masked_lm, "--output", str(good), "--overwrite"]
    assert main([*arguments, "--train", data["train"], "--task", str(own)]) == 2
    assert "metric 'acc' is unknown" in capsys.readouterr().err
    assert main(["tasks", "check", str(own), "--model", masked_lm]) == 2
    mixed = write_rows(tmp_path / "mixed.jsonl", [{"text": "a b", "target": "c"}, {"text": "a b", "label": "c"}])
    assert main([*arguments, "--train", str(mixed)]) == 2
    assert "mixed.jsonl, line 2: this row has a label, the rows before it a target" in capsys.readouterr().err
    assert before == sorted(path.name for path in good.iterdir())


def test_predictions_of_rows_with_what_json_has_no_word_for(run, tmp_path):
    table = pd.DataFrame({"text": ["a great film"], "when": [pd.Timestamp("2026-11-25")], "raw": [b"ab"]})
    table.to_parquet(tmp_path / "rows.parquet")
    assert (
        main(["predict", str(run), "--data", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "o.jsonl")])
        == 0
    )
    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert (row["when"], row["raw"]) == ("2026-11-25T00:00:00", "YWI=")


def test_states_of_label_words_and_long_texts(causal_lm, tmp_path, capsys):
    """What `states fill` keeps is what training asks for."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\ndecoder_template: '{text} It was {label}'\ntemplate: '{text} {mask}'\n"
        "labels: {positive: great film, negative: terrible walk}\n"
    )
    rows = [
        {"text": " ".join([word, "the film was long"] * 40), "label": label}
        for word, label in (("great", "positive"), ("bad", "negative"), ("good", "positive"), ("a", "negative"))
    ]
    train_file = str(write_rows(tmp_path / "train.jsonl", rows))
    folder = str(tmp_path / "states")
    given = ["--model", causal_lm, "--task", str(own), "--max-length", "1024"]
    fill = ["states", "fill", *given, "--data", train_file, "--folder", folder, "--json"]
    assert main([*fill, "--prompt-layer", "2", "0.5", "2"]) == 0
    (store,) = output_of(capsys)
    assert store["rows"] == 12
    settings = ["--max-steps", "1", "--batch-size", "4", "--output", str(tmp_path / "run"), "--states", folder]
    assert main(["train", *given, "--train", train_file, "--prompt-layer", "2", *settings, "--json"]) == 0
    assert output_of(capsys)["trunk_fill_seconds"] == 0.0


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"format": 1}', '{"format": "x"}'])
def test_a_broken_store_file(content, tmp_path, capsys):
    (tmp_path / "bert-p2").mkdir()
    (tmp_path / "bert-p2" / "store.json").write_text(content)
    for action in (["list"], ["verify"], ["prune", "--limit-gb", "0"]):
        assert main(["states", *action, "--folder", str(tmp_path)]) == 2
        assert "bert-p2" in capsys.readouterr().err


def test_tasks(capsys, masked_lm, tmp_path):
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("sst2", "mnli", "trec", "qqp"))
    assert main(["tasks", "check", "sst2", "--model", masked_lm]) == 0
    own = tmp_path / "own.yaml"
    own.write_text("name: own\ntemplate: '{text} {mask}'\nlabels: {a: great, b: 'terrible!'}\n")
    capsys.readouterr()
    assert main(["tasks", "check", str(own), "--model", masked_lm]) == 2
    assert "label word 'terrible!' is" in capsys.readouterr().err
    assert main(["tasks", "check"]) == 2


def broken(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


ROW = b'{"text": "a great film", "label": "positive"}\n'
BAD_DATA = {
    "empty file": (b"", "empty"),
    "not UTF-8": (ROW + b'{"text": "caf\xe9", "label": "positive"}\n', "UTF-8"),
    "no text": (ROW + b'{"label": "positive"}\n', "line 2"),
    "no label": (ROW + b'{"text": "fine"}\n', "line 2"),
    "broken JSON": (ROW + b'{"text": "fi', "line 2"),
    "unknown label": (ROW + b'{"text": "fine", "label": "so-so"}\n', "so-so"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_rows(kind, masked_lm, data, tmp_path, capsys):
    content, expected = BAD_DATA[kind]
    path = broken(tmp_path, "rows.jsonl", content)
    assert train(masked_lm, {**data, "train": path}, tmp_path / "run") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
    assert "rows.jsonl" in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompt-layer", "4"], "prompt_layer 4 is out of range: this model has 4 layers, so choose 1..3"),
        (["--prompt-layer", "0"], "prompt_layer 0"),
        (["--prompt-layer", "deep"], "prompt_layer 'deep'"),
        (["--method", "lorra"], "method 'lorra' is unknown (did you mean 'lora'?); choose one of npg, mppg, appg"),
        (["--method", "lora", "--set", "rank=4"], "method 'lora' has no option 'rank'; choose from lora_alpha"),
        (["--method", "lora", "--set", "r"], "--set 'r' is no option; give key=value"),
        (["--method", "head"], "--readout head"),
        (["--task", "sst3"], "task 'sst3' is unknown"),
        (["--readout", "causal_lm"], "is an encoder; use --readout masked_lm or head"),
        (["--readout", "words"], "readout 'words' is unknown"),
        (["--max-length", "6"], "max_length"),
        (["--shots", "1000"], "shots 1000"),
        (["--lr", "fast"], "fast"),
        (["--dtype", "int4"], "dtype 'int4'"),
        (["--speed", "9"], "--speed"),
        (["--dev", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--model", "no-such-model"], "model 'no-such-model' cannot be loaded"),
    ],
)
def test_bad_settings_leave_nothing_behind(arguments, expected, masked_lm, data, tmp_path, capsys):
    try:
        code = train(masked_lm, data, tmp_path / "run", *arguments)
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1
    assert expected in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_model_without_lm_head_asked_for_label_words(headless, data, tmp_path, capsys):
    assert train(headless, data, tmp_path / "run", "--readout", "masked_lm") == 2
    assert "--readout head" in capsys.readouterr().err


def test_places_that_cannot_be_written(masked_lm, run, data, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert train(masked_lm, data, tmp_path / "file" / "run") == 2
    assert main(["predict", str(run), "--data", data["dev"], "--output", str(tmp_path / "file" / "out.jsonl")]) == 2
    assert train(masked_lm, data, tmp_path / "run", "--states", str(tmp_path / "file")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(str(tmp_path / "file") in line for line in lines)


def test_a_folder_that_is_not_empty(masked_lm, data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(masked_lm, data, tmp_path / "run") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "notes.txt").exists()
    assert train(masked_lm, data, tmp_path / "run", "--overwrite") == 2
    assert "'notes.txt', which no run wrote" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("adapter_model.safetensors", lambda b: b[: len(b) // 2], "truncated"),
        ("adapter_model.safetensors", lambda b: b"", "truncated"),
        ("adapter_config.json", lambda b: b.replace(b"LATE_PROMPT", b"LORA"), "peft_type 'LORA'"),
        ("adapter_config.json", lambda b: b.replace(b'"num_prompt_tokens": 5', b'"num_prompt_tokens": 6'), "has shape"),
        ("adapter_config.json", lambda b: b.replace(b'"npg"', b'"fixed"'), "does not fit"),
        ("run.json", lambda b: b[:20], "broken"),
        ("task.yaml", lambda b: b"{", "task.yaml"),
    ],
)
def test_a_broken_run_folder(name, change, expected, run, data, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        content = path.read_bytes()
        (copy / path.name).write_bytes(change(content) if path.name == name else content)
    assert main(["evaluate", str(copy), "--data", data["dev"]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert COMMANDS[name].text in " ".join(out.split())
    assert "prompt_layer" not in out


def test_without_a_command_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "train" in capsys.readouterr().err
