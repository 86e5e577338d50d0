"""`lateprompt bench tasks`: what is timed is what it says, and the command prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lateprompt.cli import main
from lateprompt.experiments.bench_tasks import TasksBench, TasksBenchSettings
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_model("bert", "AutoModelForMaskedLM").save_pretrained(path)
    return str(path)


def test_the_passes_answer_each_task(folder: str) -> None:
    bench = TasksBench(TasksBenchSettings(folder, batch=2, length=8, tasks=[3], num_prompt_tokens=2))
    layer = bench.layer
    with torch.no_grad():
        text = layer.frozen_text(bench.prompt_layer, whole=True, keys=True, **bench.inputs)
        together = layer.read_tasks(bench.names[:3], text)
        for name in bench.names[:3]:
            alone = layer.read_call(name, **bench.inputs).mean
            torch.testing.assert_close(together[name], alone, atol=1e-5, rtol=1e-4)
        bench.plain()
        bench.shared_trunk(2)
        bench.one_a_row(2)


def test_the_command_prints_ratios(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch", "2", "--length", "8", "--repeats", "1", "--tasks", "[1,3]", "--num-prompt-tokens", "1"]
    assert main(["bench", "tasks", "--model", folder, *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["tasks"] for row in result["rows"]] == [1, 3]
    assert all(row["plain_passes"] > 0 and row["speed_vs_separate"] > 0 for row in result["rows"])
    assert main(["bench", "tasks", "--model", folder, *flags]) == 0
    assert "plain passes" in capsys.readouterr().out


def test_a_number_of_tasks_must_be_one(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tasks", "--model", folder, "--tasks", "[0]"]) == 2
    assert "tasks" in capsys.readouterr().err


def test_the_folder_stays_as_it_is(folder: str) -> None:
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "model.safetensors"]
