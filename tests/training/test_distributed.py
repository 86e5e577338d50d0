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

from lateprompt.training.distributed import Processes, processes

ROOT = Path(__file__).parents[2]


def test_shares_are_a_partition():
    rows = np.arange(7)
    shares = [Processes(rank, 3).share(rows) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(rows)
    assert [len(share) for share in shares] == [3, 2, 2]


def test_one_process_changes_nothing():
    own = processes()
    assert (own.count, own.is_main) == (1, True)
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    own.add_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert own.add(1.5, 2.0) == (1.5, 2.0)
    assert own.gather("x") == ["x"]


@pytest.mark.parametrize(("method", "accumulation"), [("npg", 1), ("late-lora", 2)])
def test_two_processes_against_one(method, accumulation, tmp_path):
    """61 rows in batches of 8: the last batch is uneven; dropout is off, for it is each process's own."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = save_tiny(tmp_path / "model", "bert", "AutoModel", wordpiece_tokenizer(), **rates)
    train = write_rows(tmp_path / "train.jsonl", make_rows(57))  # 57 = 7 · 8 + 1: the second process gets no row
    dev = write_rows(tmp_path / "dev.jsonl", make_rows(23, 100))
    arguments = ["-m", "lateprompt", "train", "--model", model, "--train", train, "--dev", dev, "--prompt-layer", "2"]
    arguments += ["--epochs", "3", "--batch-size", "8", "--method", method, "--grad-accumulation", str(accumulation)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
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
