"""Whole jobs on a tiny model: same rows, batches and readout for all, honest marks; no time is asserted."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.experiments import bench
from lateprompt.experiments import end_to_end as jobs_module
from lateprompt.experiments.baselines import BaselineBackbone, make_baseline
from lateprompt.experiments.end_to_end import EndToEndSettings, make_runs, run_end_to_end
from lateprompt.experiments.methods import BASELINES
from lateprompt.runs.train import DataSettings, load_rows

NAMES = [
    "prompt tuning 20 (PEFT)",
    "LoRA r=8 (PEFT)",
    "LPT npg, first run",
    "LPT npg, second run",
    "LPT mppg, second run",
]
LAYERS, WIDTH = 4, 32
LORA_PARAMETERS = LAYERS * 2 * 8 * (WIDTH + WIDTH)  # query and value of each layer


def settings(model, data, **more):
    given = {"task": "sst2", "prompt_layer": 2, "epochs": 2, "batch_size": 16, "lr": 5e-3, "seed": 3}
    return EndToEndSettings(model=model, **{"train": data["train"], "dev": data["dev"], **given, **more})


def made(given, folder):
    data = DataSettings(train=given.train, dev=[given.dev], task=given.task, shots=given.shots)
    return make_runs(given, load_rows(data, given.seed), folder)


def test_the_table_of_a_whole_training(masked_lm, data, capsys):
    arguments = ["--model", masked_lm, "--task", "sst2", "--train", data["train"], "--dev", data["dev"]]
    more = ["--prompt-layer", "2", "--epochs", "2", "--batch-size", "16", "--json"]
    assert main(["bench", "end-to-end", *arguments, *more]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["rows"]
    assert [row["method"] for row in rows] == NAMES
    for row in rows:
        assert row["steps"] == row["steps_measured"] == 8
        assert row["epochs_measured"] == 2
        assert len(row["seconds_to_epoch_end"]) == len(row["dev_at_epoch_end"]) == 2
        assert row["dev_at_epoch_end"][-1] == row["dev"]
        assert not row["extrapolated"]
        assert row["total_seconds"] == row["measured_seconds"] == row["seconds_to_epoch_end"][-1]
        assert row["speed_vs_prompt_tuning"] == rows[0]["total_seconds"] / row["total_seconds"]
        assert not row["speed_extrapolated"]
    assert [row["seed"] for row in rows] == [42, 42, 42, 43, 42]
    assert [row["fill_seconds"] is None for row in rows] == [True, True, False, False, False]
    assert rows[2]["fill_seconds"] > 0
    assert rows[2]["trunk_share"] == rows[2]["fill_seconds"] / rows[2]["total_seconds"]
    assert rows[3]["fill_seconds"] == rows[4]["trunk_share"] == 0.0
    assert [row["trainable_parameters"] for row in rows[:2]] == [20 * WIDTH, LORA_PARAMETERS]
    assert result["job"]["train_rows"]["rows"] == 64
    assert result["job"]["dev_rows"]["rows"] == 24
    assert {"device", "threads", "torch", "load_before", "load_after"} <= set(result["machine"])


def test_what_is_extrapolated_is_marked(masked_lm, data, capsys):
    result = run_end_to_end(settings(masked_lm, data, epochs=3, baseline_epochs=1))
    for row in result["rows"]:
        baseline = "PEFT" in row["method"]
        assert row["extrapolated"] == baseline
        assert row["epochs_measured"] == (1 if baseline else 3)
        assert len(row["seconds_to_epoch_end"]) == row["epochs_measured"]
        assert row["total_seconds"] == pytest.approx(row["measured_seconds"] * (3 if baseline else 1))
        assert row["speed_extrapolated"]
    arguments = ["--model", masked_lm, "--train", data["train"], "--dev", data["dev"], "--prompt-layer", "2", "--quiet"]
    assert main(["bench", "job", *arguments, "--epochs", "2", "--baseline-epochs", "1", "--batch-size", "32"]) == 0
    out = capsys.readouterr().out
    assert "for 2 of 4 steps; the time in all is extrapolated" in out
    assert "~ 1.00 x" in out
    assert main(["bench", "job", *arguments, "--epochs", "1", "--rivals", "lora"]) == 0
    out = capsys.readouterr().out
    assert "all times are measured" in out
    assert " x " not in out  # no prompt tuning to be faster than


def test_all_methods_see_the_same_batches(masked_lm, data, tmp_path):
    jobs = made(settings(masked_lm, data), tmp_path)
    seen: dict[str, list[torch.Tensor]] = {job.name: [] for job in jobs}
    for job in jobs:
        loss = job.readout.loss

        def recorded(batch, loss=loss, name=job.name):
            seen[name].append(batch.input_ids)
            assert (batch.trunk_states is None) == ("PEFT" in name)
            return loss(batch)

        job.readout.loss = recorded
    while waiting := [job for job in jobs if not job.finished]:
        for job in waiting:
            job.turn()
    same = [name for name in NAMES if name != "LPT npg, second run"]
    for name in same:
        assert len(seen[name]) == 8
        assert all(torch.equal(a, b) for a, b in zip(seen[name], seen[NAMES[0]], strict=True))
    other = seen["LPT npg, second run"]
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(other, seen[NAMES[0]], strict=True))
    assert sum(map(len, other[:4])) == 64


def test_the_late_prompt_trains_as_lateprompt_train_does(masked_lm, data, tmp_path):
    job = next(job for job in made(settings(masked_lm, data, baselines=[]), tmp_path / "a") if "first" in job.name)
    arguments = ["--model", masked_lm, "--task", "sst2", "--train", data["train"], "--dev", data["dev"], "--quiet"]
    recipe = ["--prompt-layer", "2", "--epochs", "2", "--batch-size", "16", "--lr", "5e-3", "--seed", "3"]
    places = ["--output", str(tmp_path / "run"), "--states", str(tmp_path / "b")]
    assert main(["train", *arguments, *recipe, *places, "--loss", "labels"]) == 0
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    job.warm_up()
    torch.manual_seed(99)  # other methods draw numbers in between
    while not job.finished:
        job.turn()
        torch.rand(7)
    for ours, theirs in zip(job.history, history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["dev_accuracy"] == theirs["dev_accuracy"]


@pytest.mark.parametrize("kind", ["masked_lm", "headless", "causal_lm"])
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_a_baseline_learns_and_the_model_stays_frozen(kind, baseline, request, data, tmp_path):
    model = request.getfixturevalue(kind)
    job = made(settings(model, data, baselines=[baseline], epochs=6, lr=2e-2), tmp_path)[0]
    before = {name: p.detach().clone() for name, p in job.readout.model.named_parameters()}
    trained = {name for name, p in job.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("prompt" in name or "lora" in name or "late_prompt_heads" in name for name in trained)
    while not job.finished:
        job.turn()
    assert job.history[-1]["train_loss"] < job.history[0]["train_loss"]
    for name, p in job.readout.model.named_parameters():
        if "lora" not in name:
            assert torch.equal(p, before[name]), name


def test_a_head_is_trained_with_a_baseline(headless, data):
    rows = run_end_to_end(settings(headless, data, epochs=1))["rows"]
    head = 2 * WIDTH + 2
    assert [row["trainable_parameters"] for row in rows[:2]] == [20 * WIDTH + head, LORA_PARAMETERS + head]


@pytest.mark.parametrize("baseline", list(BASELINES))
def test_a_baselines_readout_is_over_the_text_alone(baseline, masked_lm, data, tmp_path):
    job = made(settings(masked_lm, data, baselines=[baseline]), tmp_path)[0]
    batch = job.batches[0].batch(torch.arange(6).numpy())
    layer = job.readout.layer.eval()
    assert isinstance(layer, BaselineBackbone)
    whole = layer(**batch.backbone_inputs()).last_hidden_state
    assert whole.shape[:2] == batch.input_ids.shape
    read = layer(**batch.backbone_inputs(), read=batch.read).last_hidden_state
    assert torch.equal(read[:, 0], whole[torch.arange(6), batch.read])
    alone = layer.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    assert alone.shape[1] == batch.input_ids.shape[1] + (20 if baseline == "prompt-tuning" else 0)
    assert torch.equal(whole, alone[:, -batch.input_ids.shape[1] :])


def test_a_short_job_on_few_rows(masked_lm, data):
    result = run_end_to_end(
        settings(masked_lm, data, dev=None, shots=8, max_steps=6, eval_every=4, baselines=["prompt-tuning"])
    )
    assert [row["method"] for row in result["rows"]] == [NAMES[0], *NAMES[2:]]
    assert result["job"]["train_rows"]["rows"] == 8
    assert result["job"]["dev_rows"]["rows"] == 56
    for row in result["rows"]:
        assert row["steps_measured"] == 6
        assert len(row["seconds_to_epoch_end"]) == 2


def test_states_of_a_folder_are_there_the_next_time(masked_lm, data, tmp_path):
    given = settings(masked_lm, data, baselines=[], epochs=1, method="mppg", states=str(tmp_path / "states"))
    rows = run_end_to_end(given)["rows"]
    assert [row["method"] for row in rows] == ["LPT mppg, first run", "LPT mppg, second run", "LPT npg, second run"]
    assert rows[0]["fill_seconds"] > 0
    assert rows[0]["speed_vs_prompt_tuning"] is None
    assert [row["fill_seconds"] for row in run_end_to_end(given)["rows"]] == [0.0, 0.0, 0.0]


def test_room_for_the_virtual_tokens(masked_lm, data, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "max_positions", lambda config: 30)
    train, dev = (job.batches for job in made(settings(masked_lm, data), tmp_path)[:2])
    assert train is dev  # every method has the very same feeds
    assert max(map(max, (feed.lengths for feed in train))) <= 10


def test_label_words_that_need_the_trunk(causal_lm, data, tmp_path):
    rows = load_rows(DataSettings(train=data["train"], label_words={"positive": "so great", "negative": "so bad"}), 3)
    with pytest.raises(ValueError, match="label words of several tokens"):
        make_runs(settings(causal_lm, data, task=None, readout="causal_lm"), rows, tmp_path)


def test_an_architecture_that_peft_does_not_know(masked_lm, data, tmp_path, monkeypatch):
    first = made(settings(masked_lm, data, baselines=[]), tmp_path)[0].pipeline.tuned

    def unknown(*args, **kwargs):
        raise ValueError("Please specify `target_modules` in `peft_config`")

    monkeypatch.setattr("lateprompt.experiments.baselines.wrap", unknown)
    with pytest.raises(ValueError, match="baseline 'lora' cannot be made"):
        make_baseline("lora", first, seed=1)


def test_states_that_do_not_fit(masked_lm, data, tmp_path, monkeypatch):
    monkeypatch.setattr("lateprompt.state_cache.fill.SPARE_BYTES", 1 << 60)
    given = settings(masked_lm, data, baselines=[], states=str(tmp_path))
    with pytest.warns(UserWarning, match="do not fit"), pytest.raises(ValueError, match="another disk"):
        run_end_to_end(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "end-to-end"], "needs a model and training rows"),
        (["bench", "--repeats", "3", "job"], "--repeats 3 stands before 'job'"),
        (["bench", "--seed", "3", "steps"], "--seed 3 stands before 'steps'"),
        (["bench", "--json", "end-to-end"], "--json True stands before 'end-to-end'"),
        (["bench", "job", "--model", "x", "--train", "y", "--baselines", "adapters"], "baselines 'adapters'"),
        (["bench", "job", "--model", "x", "--train", "y", "--baseline-epochs", "0"], "baseline_epochs 0"),
        (["bench", "job", "--model", "x", "--train", "y", "--method", "head"], "method 'head'"),
        (["bench", "job", "--model", "x", "--train", "y", "--states", "off"], "states 'off'"),
        (["bench", "job", "--model", "x", "--train", "y", "--epochs", "0"], "epochs 0"),
        (["bench", "job", "--model", "x", "--train", "y", "--dtype", "int4"], "dtype 'int4'"),
        (["bench", "job", "--model", "x", "--train", "no-such.jsonl"], "no-such.jsonl"),
    ],
)
def test_settings_that_cannot_be(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_flags_of_the_other_benchmark(capsys):
    for arguments in (["job", "--length", "3"], ["steps", "--epochs", "3"], ["epochs"]):
        with pytest.raises(SystemExit) as stopped:
            main(["bench", *arguments])
        assert stopped.value.code == 2
        assert arguments[-2:][0] in capsys.readouterr().err


def test_steps_by_name(monkeypatch, capsys):
    tiny = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    monkeypatch.setitem(bench.SHAPES, "roberta-base", tiny)
    small = ["--batch", "2", "--length", "8", "--repeats", "1", "--memory", "false"]
    assert main(["bench", "steps", *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["speed_vs_prompt_tuning"] == 1.0


def test_names_of_earlier_releases(masked_lm, data, capsys):
    given = jobs_module.JobSettings(rivals=["lora"], rival_epochs=2)
    assert (given.baselines, given.baseline_epochs, given.rivals) == (["lora"], 2, ["lora"])
    arguments = ["--model", masked_lm, "--train", data["train"], "--dev", data["dev"], "--prompt-layer", "2", "--json"]
    more = ["--epochs", "2", "--batch-size", "32", "--rivals", "lora", "--rival-epochs", "1"]
    assert main(["bench", "job", *arguments, *more]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in result["rows"]] == NAMES[1:]
    assert (result["job"]["baselines"], result["job"]["baseline_epochs"]) == (["lora"], 1)


def test_no_dev_rows(masked_lm, tmp_path):
    train = write_rows(tmp_path / "few.jsonl", make_rows(16))
    rows = run_end_to_end(settings(masked_lm, {"train": train, "dev": None}, epochs=1, baselines=["lora"]))["rows"]
    assert [row["dev"] for row in rows] == [None] * 4


def test_read_only_prompts(headless, data):
    rows = run_end_to_end(settings(headless, data, epochs=1, method="read-npg", baselines=[]))["rows"]
    names = ["read-only npg, first run", "read-only npg, second run", "read-only mppg, second run"]
    assert [row["method"] for row in rows] == names
    assert [row["fill_seconds"] > 0 for row in rows] == [True, False, False]


def test_a_method_that_is_no_late_prompt(headless, data):
    with pytest.raises(ValueError, match=r"method 'lora' makes no late prompt.*read-npg"):
        settings(headless, data, method="lora").check()
