"""The wheel: it holds all that the package reads, and a classifier is trained from it without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what it is made of; build's own environment would need a network."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (made,) = (folder / "dist").glob("lateprompt-*.whl")
    return made


def test_it_holds_every_file_of_the_package(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("lateprompt/")}
    files = {
        str(path.relative_to(SOURCE))
        for path in (SOURCE / "lateprompt").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files


@pytest.mark.slow
def test_it_trains_without_the_repository(wheel, tmp_path, masked_lm, data):
    installed = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(installed), str(wheel)], check=True, capture_output=True)
    place = [sys.executable, "-c", "import lateprompt; print(lateprompt.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    shown = subprocess.run(place, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert Path(shown.stdout.strip()).is_relative_to(installed)
    train = f"train --model {masked_lm} --train {data['train']} --dev {data['dev']} --task sst2 --epochs 1 --output run"
    done = subprocess.run(
        [sys.executable, "-m", "lateprompt", *train.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
