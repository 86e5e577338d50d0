"""Every command and every line of Python in the README is run here (model ids of a hub aside)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_rows, write_rows
from transformers import RobertaConfig, RobertaForMaskedLM

from lateprompt.backbone.families import FAMILIES
from lateprompt.demo import installed_encoder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL_TYPES = {name: family.causal for name, family in FAMILIES.items()}  # now: other tests register their own
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line
]


def test_the_first_screen_has_it_all():
    assert "make demo" in COMMANDS
    assert "make test" in COMMANDS
    assert len([line for line in PYTHON[0].splitlines() if line]) <= 15


def test_python_on_a_small_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[0], {})
    assert "fresh" in capsys.readouterr().out


def test_python_with_peft(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class RobertaLargeShape:
        @staticmethod
        def from_pretrained(name):
            assert name == "roberta-large"
            shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
            config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **shape)
            with torch.device("meta"):  # the shape alone, without weights: no hub here
                model = RobertaForMaskedLM(config)
            return model.to_empty(device="cpu")

    source = PYTHON[1].replace("from transformers import AutoModelForMaskedLM\n", "")
    assert source != PYTHON[1]
    exec(source, {"AutoModelForMaskedLM": RobertaLargeShape})
    assert "791,680" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("lateprompt")])
def test_commands(command, readme_folder):
    environment = {
        **os.environ,
        "MODEL": installed_encoder(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, shell=True, cwd=readme_folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    write_rows(folder / "rows.jsonl", make_rows(16))
    write_rows(folder / "more.jsonl", make_rows(8, 100))
    return folder


def test_make_knows_the_targets():
    for target in ("demo", "test", "lint", "format"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_list_of_architectures_is_the_table():
    for kind, causal in (("Encoders", False), ("Decoders", True)):
        listed = re.search(rf"\*\*{kind}\*\*: ((?:`[\w-]+`[,\s]*)+)", README)
        assert listed is not None
        names = re.findall(r"`([\w-]+)`", listed[1])
        assert names == sorted(name for name, is_causal in MODEL_TYPES.items() if is_causal == causal)


def test_every_figure_is_on_the_pages_that_say_how_it_was_measured():
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    figures = re.findall(r"(?<!\d)\.\d{3}\b|\d+(?:\.\d+)? ×", prose)
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("results.md", "performance.md")]
    assert len(figures) > 10
    assert [figure for figure in figures if not any(figure in page for page in pages)] == []
