"""Every command and every line of Python in docs/read-only.md is run here, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import make_rows, write_rows

from lateprompt.cli.app import main


def _lines(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line]


PAGE = (Path(__file__).parent.parent / "docs" / "read-only.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in _lines(block)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for name, rows in (("rows", make_rows(16)), ("more", make_rows(8, 100))):
        more = [{"mood": row["label"], "topic": "film" if i % 2 else "play"} for i, row in enumerate(rows)]
        write_rows(folder / f"{name}.jsonl", [{**row, **own} for row, own in zip(rows, more, strict=True)])
    return folder


def test_the_page_has_examples():
    assert len(PYTHON) == 3
    assert len(COMMANDS) == 7


@pytest.mark.parametrize("source", PYTHON, ids=["estimator", "peft", "many tasks"])
def test_python(source, masked_lm, headless, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LATEPROMPT_STATES", str(folder / "states"))
    model = masked_lm if "AutoModelForMaskedLM" in source else headless
    if "roberta-base" not in source:
        source = source.replace("runs/many", "runs/python")
        source += f"\ntrain({model!r}, 'rows.jsonl')"
    exec(source.replace("roberta-base", model), {})
    assert re.search(r"fresh|rotten|torch.Size|topic", capsys.readouterr().out)


def test_commands_in_their_order(headless, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LATEPROMPT_STATES", str(folder / "kept"))
    for command in COMMANDS:
        words = command.replace('"$MODEL"', headless).split()
        assert words.pop(0) == "lateprompt"
        steps = ["--max-steps", "2", "--quiet"] if words[0] == "train" else []
        assert main([*words, *steps]) == 0, command
