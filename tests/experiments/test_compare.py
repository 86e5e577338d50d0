"""lateprompt compare: plans, resuming, failures, the search, the table."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_rows, write_rows
from safetensors.torch import load_file, save_file

from lateprompt.cli.app import main
from lateprompt.experiments.compare import compare, load_plan
from lateprompt.experiments.compare import worker as worker_module
from lateprompt.experiments.compare.runner import cost
from lateprompt.experiments.compare.search import choices_of, choose, search_runs
from lateprompt.experiments.compare.table import result_of, row_of
from lateprompt.experiments.compare.worker import RESULT_FILE, run_one
from lateprompt.experiments.report import read_results, render
from lateprompt.methods import NAMES, is_linear
from lateprompt.predictors import classifier as classifier_module

ROOT = Path(__file__).parents[2]
CLOCKS = ("train_seconds", "tokens_per_second", "peak_memory_bytes", "trunk_fill_seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files of two tasks."""
    data = tmp_path_factory.mktemp("tasks")
    for number, task in enumerate(("sst2", "mr")):
        (data / task).mkdir()
        write_rows(data / task / "train.jsonl", make_rows(60, number))
        write_rows(data / task / "dev.jsonl", make_rows(20, 100 + number))
    return data


def write_plan(path: Path, model: str, data: Path, changes: dict | None = None) -> Path:
    plan = {
        "model": {"model": model, "name": "tiny"},
        "data": str(data),
        "tasks": ["sst2", "mr"],
        "methods": ["npg", {"method": "late-lora", "set": {"r": 4}}],
        "shots": [16],
        "seeds": [1, 2],
        "dev_rows": 12,
        "recipe": {"max_steps": 4, "batch_size": 8, "eval_every": 2},
        "settings": {"prompt_layer": 2, "bottleneck_dim": 8},
        "states": {"states": str(path.parent / "states")},
        **(changes or {}),
    }
    path.write_text(yaml.safe_dump({key: value for key, value in plan.items() if value is not None}))
    return path


def plan_of(tmp_path: Path, headless: str, tasks_folder: Path, **changes):
    return load_plan(write_plan(tmp_path / "plan.yaml", headless, tasks_folder, changes), {})


def table(results: Path) -> list[dict[str, str]]:
    with (results / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def test_a_comparison_and_its_report(headless, folder, tmp_path, capsys, monkeypatch):
    plan = write_plan(tmp_path / "plan.yaml", headless, folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    assert main(["compare", str(plan), "--output", str(tmp_path / "results"), "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "minutes of one process" in shown
    rows = table(tmp_path / "results")
    assert [(row["task"], row["method"], row["seed"]) for row in rows] == [
        (task, method, seed) for task in ("sst2", "mr") for method in ("npg", "late-lora") for seed in ("1", "2")
    ]
    assert all(row["status"] == "done" and row["test"] and row["dev"] for row in rows)
    assert json.loads(rows[2]["settings"])["set.r"] == 4
    assert {row["model"] for row in rows} == {"tiny"}
    results = read_results(tmp_path / "results")
    assert len(results.done) == 8
    assert "late-lora" in render(results)
    first = results.done["folder"].iloc[0]
    assert first is not None
    predictions = [json.loads(line) for line in (first / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 20
    assert set(predictions[0]) == {"text", "label", "prediction", "probability"}
    right = sum(line["label"] == line["prediction"] for line in predictions) / 20
    assert right == pytest.approx(results.done["test"].iloc[0])
    assert (tmp_path / "results" / "results.parquet").is_file()


def test_nothing_is_done_twice(headless, folder, tmp_path):
    plan, results = plan_of(tmp_path, headless, folder, tasks=["sst2"], seeds=[1]), tmp_path / "results"
    compare(plan, results)
    files = {path: path.stat().st_mtime_ns for path in results.glob(f"runs/*/{RESULT_FILE}")}
    assert len(files) == 2
    more = plan_of(tmp_path, headless, folder, tasks=["sst2"], seeds=[1], methods=["npg", "head"])
    rows = compare(more, results)
    assert [row["method"] for row in rows] == ["npg", "head"]
    assert all(path.stat().st_mtime_ns == at for path, at in files.items())
    assert len(list(results.glob(f"runs/*/{RESULT_FILE}"))) == 3


def test_killed_and_resumed(headless, folder, tmp_path):
    plan = write_plan(tmp_path / "plan.yaml", headless, folder)
    command = [sys.executable, "-m", "lateprompt", "compare", str(plan), "--quiet", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    results = tmp_path / "results"
    process = subprocess.Popen(
        [*command, str(results)], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(results.glob(f"runs/*/{RESULT_FILE}"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the harness and its worker
    process.wait()
    done = len(list(results.glob(f"runs/*/{RESULT_FILE}")))
    assert 2 <= done < 8
    subprocess.run([*command, str(results)], env=environment, check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    assert table(results) == table(tmp_path / "whole")


def test_failed_runs_are_shown_and_done_again(headless, folder, tmp_path, monkeypatch):
    plan, results = plan_of(tmp_path, headless, folder, tasks=["sst2"], methods=["npg"]), tmp_path / "results"
    broken = plan_of(
        tmp_path, headless, folder, tasks=["sst2"], methods=[{"method": "npg", "settings": {"prompt_layer": 9}}]
    )
    rows = compare(broken, results)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert "prompt_layer 9 is out of range" in rows[0]["error"]
    assert not read_results(results).failed.empty
    spec = plan.runs()[0]
    target = results / "runs" / spec.folder
    worker_module.fail(target, "no memory")
    assert compare(plan, results)[0]["status"] == "failed"
    assert [row["status"] for row in compare(plan, results, retry_failed=True)] == ["done", "done"]


def test_a_dead_worker_is_a_failed_run(headless, folder, tmp_path, monkeypatch):
    plan, results = plan_of(tmp_path, headless, folder, tasks=["sst2"], methods=["npg"]), tmp_path / "results"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    rows = compare(plan, results)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert "ended with code 1" in rows[0]["error"]


def test_test_rows_are_scored_once_at_the_end(headless, folder, tmp_path, monkeypatch):
    scored = []
    original = classifier_module.predict_scores

    def counting(readout, feed, **kwargs):
        scored.append(len(feed))
        return original(readout, feed, **kwargs)

    monkeypatch.setattr(classifier_module, "predict_scores", counting)
    run_one(plan_of(tmp_path, headless, folder).runs()[0], tmp_path / "run")
    assert scored == [12, 20]  # the dev rows' temperature, then the test rows


def test_the_search_chooses_by_dev(headless, folder, tmp_path):
    search = {
        "grid": {"default": {"recipe.lr": [1e-9, 1e-2]}, "late-lora": {"recipe.lr": [1e-9, 1e-2], "set.r": [2, 4]}},
        "tries": 2,
        "tasks": ["sst2"],
    }
    plan = plan_of(tmp_path, headless, folder, search=search)
    assert [len(choices_of(plan, entry)) for entry in plan.methods] == [2, 2]
    assert all(not spec.data.test for _, _, spec in search_runs(plan))
    scores = {spec.key: {"dev": 0.5 + 0.1 * number} for _, number, spec in search_runs(plan)}
    chosen, tries = choose(plan, scores)
    assert chosen["tiny", "npg"] == choices_of(plan, plan.methods[0])[1]
    assert len(tries) == 4
    rows = compare(plan, tmp_path / "results")
    best = yaml.safe_load((tmp_path / "results" / "chosen.yaml").read_text())["methods"]
    assert {json.loads(row["settings"])["lr"] for row in rows if row["method"] == "npg"} == {best[0]["recipe"]["lr"]}
    again = plan_of(tmp_path, headless, folder, methods=best)
    assert compare(again, tmp_path / "results") == rows
    with pytest.raises(ValueError, match="no choice of method 'npg'"):
        choose(plan, {})


def test_dev_rows_of_whole_training_files(headless, folder, tmp_path):
    spec = plan_of(tmp_path, headless, folder, shots=["full"]).runs()[0]
    run_one(spec, tmp_path / "run")
    assert json.loads((tmp_path / "run" / RESULT_FILE).read_text())["status"] == "done"
    assert spec.data.dev_rows == 12


def test_the_key_knows_what_defines_a_run(headless, folder, tmp_path):
    plan = plan_of(tmp_path, headless, folder)
    keys = {spec.key for spec in plan.runs()}
    assert len(keys) == 8
    for change in (
        {"recipe": {"max_steps": 5, "batch_size": 8, "eval_every": 2}},
        {"settings": {"prompt_layer": 1, "bottleneck_dim": 8}},
        {"dev_rows": 11},
        {"shots": [17]},
        {"seeds": [3, 4]},
    ):
        assert not keys & {spec.key for spec in plan_of(tmp_path, headless, folder, **change).runs()}
    assert keys == {spec.key for spec in plan_of(tmp_path, headless, folder).runs()}


def test_the_key_knows_what_a_model_holds(headless, folder, tmp_path):
    for name in ("run1", "run2"):
        shutil.copytree(headless, tmp_path / name / "final")
    weights = tmp_path / "run2" / "final" / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1.0)
    save_file(tensors, weights, {"format": "pt"})
    paths = [str(tmp_path / name / "final") for name in ("run1", "run2")]
    models = [{"model": path, "name": str(number)} for number, path in enumerate(paths)]
    folders = [spec.folder for spec in plan_of(tmp_path, headless, folder, model=None, models=models).runs()]
    assert len(set(folders)) == 16
    tokenizer = tmp_path / "run1" / "final" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    again = [spec.folder for spec in plan_of(tmp_path, headless, folder, model=None, models=models).runs()]
    assert len(set(folders) & set(again)) == 8


def test_a_dead_worker_is_not_given_the_words_of_another(headless, folder, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "lock").touch()  # of a comparison before
    (tmp_path / "results" / "worker.log").write_text("ValueError: of another run\n")
    monkeypatch.setattr(
        "lateprompt.experiments.compare.runner.WORKER", "import os, sys; sys.stdin.readline(); os._exit(7)"
    )
    rows = compare(plan_of(tmp_path, headless, folder, tasks=["sst2"], seeds=[1]), tmp_path / "results")
    assert {row["error"] for row in rows} == {"the process ended with code 7"}


def test_what_yaml_reads_as_something_else(headless, folder, tmp_path):
    plan = plan_of(tmp_path, headless, folder, recipe={"lr": "1e-3", "max_steps": "4"}, states={"states": False})
    spec = plan.runs()[0]
    assert (spec.recipe.lr, spec.recipe.max_steps, spec.states.states) == (1e-3, 4, "off")
    search = {"grid": {"default": {"recipe.lr": ["1e-3", 5e-3]}}}
    assert plan_of(tmp_path, headless, folder, search=search).search.grid["default"]["recipe.lr"] == [1e-3, 5e-3]


def test_the_search_chooses_for_each_model(headless, masked_lm, folder, tmp_path):
    models = [{"model": headless, "name": "one"}, {"model": masked_lm, "name": "two"}]
    search = {"grid": {"default": {"recipe.lr": [1e-3, 5e-3]}}, "tasks": ["sst2"]}
    given = {"model": None, "models": models, "methods": ["npg"], "search": search}
    plan = plan_of(tmp_path, headless, folder, **given)
    scores = {spec.key: {"dev": number if pair[0] == "one" else -number} for pair, number, spec in search_runs(plan)}
    chosen, _ = choose(plan, scores)
    assert chosen["one", "npg"] != chosen["two", "npg"]
    rates = {(spec.model, spec.recipe.lr) for spec in plan.runs(chosen=chosen)}
    assert rates == {(model, choice["recipe.lr"]) for (model, _), choice in chosen.items()}


def test_a_failed_run_has_its_task_s_metric(headless, folder, tmp_path):
    (folder / "mrpc").mkdir(exist_ok=True)
    for part in ("train", "dev"):
        write_rows(folder / "mrpc" / f"{part}.jsonl", make_rows(40))
    plan = plan_of(tmp_path, headless, folder, tasks=["mrpc"], methods=["npg"])
    assert row_of(plan.runs()[0], {"status": "failed"})["metric"] == "accuracy_f1_mean"


def test_dry_run(headless, folder, tmp_path, capsys):
    plan = write_plan(tmp_path / "plan.yaml", headless, folder)
    assert main(["compare", str(plan), "--output", str(tmp_path / "results"), "--dry-run"]) == 0
    assert "rough, until some have finished" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "results").exists()


def test_the_cost_learns_from_finished_runs(headless, folder, tmp_path):
    plan = plan_of(tmp_path, headless, folder)
    spec = plan.runs()[0]
    run_one(spec, tmp_path / "results" / "runs" / spec.folder)
    assert result_of(tmp_path / "results", spec)["status"] == "done"
    rows, seconds, source = cost(plan, tmp_path / "results")
    assert source == "runs that have finished"
    assert sum(int(row[1]) for row in rows) == 7
    assert seconds > 0


def test_two_at_a_time_in_one_folder(headless, folder, tmp_path):
    plan, results = plan_of(tmp_path, headless, folder), tmp_path / "results"
    results.mkdir()
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    code += "; time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(results / "lock")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.read(1)
    with pytest.raises(ValueError, match="another lateprompt compare is at work"):
        compare(plan, results)
    other.kill()
    other.wait()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["npg"]}, "unknown key 'method'; known are model, data"),
        ({"methods": ["npq"]}, "method 'npq' is unknown"),
        ({"models": ["another"]}, "both model and models"),
        ({"seeds": []}, "empty list of seeds"),
        ({"shots": 0}, "shots 0"),
        ({"dev_rows": 0}, "dev_rows 0"),
        ({"recipe": {"lr": [1e-3, 1e-2]}}, r"lr \[0.001, 0.01\]; give one value"),
        ({"recipe": {"batch_size": None}}, "batch_size None is no value for it; give a whole number from 1"),
        ({"methods": [{"method": "lora", "set": 5}]}, "has set 5; write options by name"),
        ({"methods": [{"method": "lora", "set": {"r": "x"}}]}, "option r 'x'; give a whole number"),
        ({"search": {"tasks": [], "grid": {"default": {"recipe.lr": [1e-3]}}}}, "empty list of tasks"),
        ({"search": {"grid": {"default": {"recipe.lr": []}}}}, "no values for 'recipe.lr'"),
        ({"search": {"grid": {"default": {"recipe.lr": [-1]}}}}, "lr -1"),
        ({"search": {"grid": {"late-lora": {"set.rr": [4]}}}}, "no option 'rr'"),
        ({"model": {"name": "tiny"}}, "names no model"),
        ({"methods": [{"method": "lora", "set": {"rank": 2}}]}, "no option 'rank'"),
        ({"methods": ["npg", "npg"]}, "'npg' is in the plan twice"),
        ({"methods": []}, "has no methods"),
        ({"tasks": ["sst3"]}, "task 'sst3' is unknown"),
        ({"tasks": ["rte"]}, "has no file"),
        ({"data": None}, "task 'sst2' of plan .* has no files"),
        ({"data": "${NO_SUCH_VARIABLE}"}, "NO_SUCH_VARIABLE is not set"),
        ({"recipe": {"learning_rate": 1}}, "unknown key 'learning_rate'"),
        ({"recipe": {"lr": -1.0}}, "lr -1.0"),
        ({"recipe": {"lr": "fast"}}, "lr 'fast' is no value for it; give a number"),
        ({"recipe": {"epochs": 2.5}}, "epochs 2.5 is no value for it; give a whole number from 1"),
        (
            {"settings": {"trunk_dropout": "sometimes"}},
            "trunk_dropout 'sometimes' is no value for it; give true or false",
        ),
        ({"shots": [0]}, "shots 0 is no value for it; give a whole number from 1 or full"),
        ({"seeds": [1, 1]}, "seed 1 is in the plan twice"),
        ({"settings": {"method": "npg"}}, "unknown key 'method'"),
        ({"shots": ["many"]}, "shots 'many'"),
        ({"dev_rows": -1}, "dev_rows -1"),
        ({"search": {"tries": 2}}, "has no grid"),
        ({"search": {"grid": {"default": {"lr": [1]}}}}, "'lr' is no setting"),
        ({"search": {"grid": {"lora": {"recipe.lr": [1]}}}}, "no method of the plan"),
        ({"search": {"grid": {}, "tasks": ["rte"]}}, "search names task 'rte'"),
    ],
)
def test_wrong_plans(changes, message, headless, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        plan_of(tmp_path, headless, folder, **changes)


def test_flags_make_a_plan(headless, folder, tmp_path, capsys):
    flags = ["--model", headless, "--data", str(folder), "--tasks", "mr", "--methods", "head", "--shots", "8"]
    flags += ["--dev-rows", "8", "--max-steps", "2", "--output", str(tmp_path / "results"), "--json"]
    assert main(["compare", *flags]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["task"], row["shots"], row["steps"]) for row in rows] == [("head", "mr", 8, 2)]
    assert main(["compare", "--output", str(tmp_path / "none")]) == 2
    assert "the plan has no models; give some" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["paper-few-shot", "paper-full-data", "small-few-shot", "small-full-data", "small-decoder"]
)
def test_plans_of_the_repository(name, folder, tmp_path, monkeypatch):
    given = yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text())
    data = tmp_path / "tasks"
    for task in given["tasks"]:
        (data / task).mkdir(parents=True)
        for part in ("train", "dev"):
            write_rows(data / task / f"{part}.jsonl", make_rows(4))
    monkeypatch.setenv("LATEPROMPT_TASKS", str(data))
    monkeypatch.setenv("LATEPROMPT_MODEL", "model")
    plan = load_plan(ROOT / "experiments" / f"{name}.yaml", {})
    assert {spec.task for spec in plan.runs()} == set(given["tasks"])
    if name == "small-few-shot":  # every method and its late variant; AdapterDrop's late variant is late-adapter
        # Read-only prompts are compared by a script of their own, experiments/read_only.py.
        adapters = {name for name in NAMES if not is_linear(name)}
        assert {entry.method for entry in plan.methods} >= {name for name in adapters if not name.startswith("read-")}


def test_read_only_methods_in_a_plan(headless, folder, tmp_path):
    methods = [{"method": "npg+late-lora", "read_only": True}, "read-npg"]
    states = {"states_layers": "prompt", "keys_memory_gb": 0.5}
    plan = plan_of(tmp_path, headless, folder, methods=methods, states=states)
    assert [entry.method for entry in plan.methods] == ["read-npg+lora", "read-npg"]
    run = plan.runs()[0]
    assert (run.states.states_layers, run.states.keys_memory_gb) == ("prompt", 0.5)
    with pytest.raises(ValueError, match="method 'lora' has no read-only form"):
        plan_of(tmp_path, headless, folder, methods=[{"method": "lora", "read_only": True}])
    with pytest.raises(ValueError, match="read_only 'yes'; give true or false"):
        plan_of(tmp_path, headless, folder, methods=[{"method": "npg", "read_only": "yes"}])


def test_class_weights_are_part_of_a_run_and_their_absence_is_not(headless, folder, tmp_path, monkeypatch):
    recipe = {"max_steps": 4, "class_weight": {"positive": 2}}
    weighted = plan_of(tmp_path, headless, folder, recipe=recipe).runs()[0]
    assert weighted.recipe.class_weight == {"positive": 2.0}
    plain = plan_of(tmp_path, headless, folder, recipe={"max_steps": 4}).runs()[0]
    assert plain.key != weighted.key
    hashed = []
    monkeypatch.setattr(json, "dumps", lambda what, **more: hashed.append(what) or "")
    assert plain.key
    assert not {"class_weight", "calibrate"} & set(hashed[0]["recipe"])
