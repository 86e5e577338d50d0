"""Two processes train as one does: same losses, same weights, one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_rows, save_tiny, write_rows
from safetensors.torch import load_file
from tiny_tokenizers import wordpiece_tokenizer
from torch import nn

from lateprompt.training.accelerator import RunAccelerator
from lateprompt.training.distributed import Processes, processes

ROOT = Path(__file__).parents[2]


def test_shares_are_a_partition():
    rows = np.arange(7)
    shares = [Processes(rank, 3).share(rows) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(rows)
    assert [len(share) for share in shares] == [3, 2, 2]


def test_one_process_changes_nothing():
    own = processes()
    assert (own.count, own.is_main, own.gather("x")) == (1, True, ["x"])
    with own.main_first():
        own.wait()
    accelerator = RunAccelerator(torch.device("cpu"), "fp32")
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    accelerator.add_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert accelerator.add(1.5, 2.0) == (1.5, 2.0)


def test_gradients_are_added_in_one_order_of_types(monkeypatch):
    """Two processes that began with other parameters first meet in the same sums."""
    kinds = [torch.float64, torch.bfloat16, torch.float32, torch.float16]
    accelerator = RunAccelerator(torch.device("cpu"), "fp32")
    accelerator.state.num_processes = 2
    seen: list[list[torch.dtype]] = []
    monkeypatch.setattr(accelerator, "reduce", lambda flat: seen[-1].append(flat.dtype) or 2 * flat)
    for order in (kinds, kinds[::-1]):
        parameters = [nn.Parameter(torch.ones(2, dtype=kind)) for kind in order]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        seen.append([])
        accelerator.add_gradients(parameters)
        assert all(parameter.grad.tolist() == [2, 2] for parameter in parameters)
    assert seen[0] == seen[1] == sorted(kinds, key=str)


FSDP = """
distributed_type: FSDP
num_processes: 2
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
"""


@pytest.mark.parametrize(("method", "accumulation", "config"), [("npg", 1, None), ("late-lora", 2, FSDP)])
def test_two_processes_against_one(method, accumulation, config, tmp_path):
    """57 rows in batches of 8: the last batch is uneven; dropout is off, for it is each process's own.

    A user's configuration for FSDP starts the processes like any other, and its accumulation is not the recipe's.
    """
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = save_tiny(tmp_path / "model", "bert", "AutoModel", wordpiece_tokenizer(), **rates)
    train = write_rows(tmp_path / "train.jsonl", make_rows(57))  # 57 = 7 · 8 + 1: the second process gets no row
    dev = write_rows(tmp_path / "dev.jsonl", make_rows(23, 100))
    arguments = ["-m", "lateprompt", "train", "--model", model, "--train", train, "--dev", dev, "--prompt-layer", "2"]
    arguments += ["--epochs", "3", "--batch-size", "8", "--method", method, "--grad-accumulation", str(accumulation)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    if config is None:
        launcher += ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no"]
    else:
        (tmp_path / "launch.yaml").write_text(config)
        launcher += ["--config_file", str(tmp_path / "launch.yaml"), "--gradient_accumulation_steps", "4"]
    for name, command in (("one", [sys.executable]), ("two", launcher)):
        states = {"LATEPROMPT_STATES": str(tmp_path / f"states-{name}")}
        done = subprocess.run(
            [*command, *arguments, "--output", str(tmp_path / name), "--quiet"],
            env={**environment, **states},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trainable_parameters") == 1
        assert done.stderr.count("FSDP is configured") == (name == "two" and config is not None)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for first, second in zip(one, two, strict=True):
        assert abs(first["train_loss"] - second["train_loss"]) < 1e-4
        assert abs(first["dev_loss"] - second["dev_loss"]) < 1e-4
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])
