"""YAML of users: checked before a value is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lateprompt.cli.app import main
from lateprompt.data import load_task
from lateprompt.experiments.compare.plan_file import load_plan
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.yaml_files import checked_yaml, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "bomb": (BOMB, "by its aliases"),
    "merges": (MERGES, "by its aliases"),
    "itself": ("a: &a [*a]\n", "contains itself"),
    "deep": ("[" * 100_000, "too deep"),
    "deep mapping": ("{a: " * 100_000, "too deep"),
    "deeper than needed": ("a: " + "[" * 60 + "]" * 60, "nested deeper"),
    "large": ("a: " + "x" * 1_100_000, "larger than"),
    "twice": ("a: 1\na: 2\n", "occurs twice"),
    "no date": ("a: 2001-99-99\n", "cannot read"),
    "no number": ("a: !!int x\n", "cannot read"),
    "no switch": ("a: !!bool x\n", "cannot read"),
    "long number": (f"a: {'9' * 5000}\n", "cannot read"),
    "object": ("!!python/object/apply:os.getcwd []", "no valid YAML"),
    "bytes": ("a: \0", "no valid YAML"),
    "pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_one_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BAD[kind]
    path = tmp_path / "x.yaml"
    path.write_text(content)
    for read in (load_task, lambda name: load_plan(name, {})):
        with pytest.raises(LatePromptError, match=r"x\.yaml") as error:
            read(str(path))
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    assert main(["train", "--config", str(path), "--model", "x", "--train", "x", "--output", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "x.yaml" in lines[0]


def test_no_pipe_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    os.mkfifo(path)
    for read in (load_task, lambda name: load_plan(name, {})):
        with pytest.raises(LatePromptError, match="is a pipe"):
            read(str(path))
    assert main(["train", "--config", str(path), "--model", "x", "--train", "x", "--output", "x"]) == 2
    assert "is a pipe" in capsys.readouterr().err


def test_an_argument_without_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--label-words", "[" * 50_000, "--model", "x", "--train", "x", "--output", "x"]) == 2
    assert "brackets" in capsys.readouterr().err


def test_labels_are_text_and_settings_are_not() -> None:
    text = "label_words: {no: yes, 0: on}\nepochs: 3\nlr: 1e-3\nquiet: yes\ndev: [a, b]\n"
    assert parse_yaml(text, "x", as_text=("label_words",)) == {
        "label_words": {"no": "yes", "0": "on"},
        "epochs": 3,
        "lr": "1e-3",  # as PyYAML has it; the command line's own reader makes a number of it
        "quiet": True,
        "dev": ["a", "b"],
    }
    again = checked_yaml(text, "x", as_text=("label_words",))
    assert parse_yaml(again, "x") == parse_yaml(text, "x", as_text=("label_words",))


def test_aliases_and_merges_work() -> None:
    text = "base: &base {lr: 1, steps: 2}\nown: {<<: *base, steps: 3}\nagain: *base\n"
    assert parse_yaml(text, "x")["own"] == {"lr": 1, "steps": 3}
