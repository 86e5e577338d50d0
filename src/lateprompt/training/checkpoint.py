"""What a run needs to go on after an interruption: safetensors and JSON in one folder, replaced as a whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lateprompt.errors import LatePromptError
from lateprompt.files import read_json, read_tensors, write_json, write_tensors
from lateprompt.randomness import RunNumbers

FOLDER = "checkpoint"


@dataclass
class Progress:
    """How far a run is (all of it goes to `state.json`).

    Args:
        step: optimiser steps done.
        best: the best dev metric so far, or None.
        best_step: the step it was reached at.
        waited: evaluations since then.
        seconds: time spent in training steps.
        tokens: real tokens trained on.
        history: one entry per evaluation.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


Weights = dict[str, torch.Tensor]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    weights: Weights,
    best: Weights,
    optimizer: torch.optim.Optimizer,
    settings: str,
    numbers: RunNumbers,
) -> None:
    """Write the state of a run; `state.json` names the tensor file it belongs to and is replaced last."""
    tensors = {f"weights/{name}": value for name, value in weights.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {f"rng/{name}": value for name, value in numbers.state().items()}
    name = f"tensors-{progress.step}.safetensors"
    write_tensors(folder / name, {key: value.clone() for key, value in tensors.items()})
    write_json(folder / "state.json", {"settings": settings, "tensors": name, "progress": asdict(progress)})
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(
    folder: Path, optimizer: torch.optim.Optimizer, settings: str, numbers: RunNumbers | None = None
) -> tuple[Progress, Weights, Weights] | None:
    """The saved progress, weights and best weights; the optimiser and the random numbers go on. None if there is none.

    Raises:
        LatePromptError: the checkpoint is broken, or of a run with other settings.
    """
    if not (folder / "state.json").is_file():
        return None
    state = read_json(folder / "state.json", "checkpoint")
    if state.get("settings") != settings:
        theirs, ours = json.loads(state["settings"]), json.loads(settings)
        changed = sorted(key for key in ours if ours[key] != theirs.get(key))
        raise LatePromptError(
            f"checkpoint {str(folder)!r} is of a run with other settings ({', '.join(changed) or 'unknown'}); "
            "resume with the same ones, or use --overwrite"
        )
    tensors, _ = read_tensors(folder / state["tensors"], "checkpoint")
    groups: dict[str, Weights] = {"weights": {}, "best": {}, "rng": {}}
    moments: dict[int, Weights] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "optimizer":
            index, _, moment = name.partition("/")
            moments.setdefault(int(index), {})[moment] = value
        else:
            groups[kind][name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    if numbers is not None:
        numbers.restore(groups["rng"])
    return Progress(**state["progress"]), groups["weights"], groups["best"]


def remove_checkpoint(folder: Path) -> None:
    """Forget the checkpoint of a finished run."""
    if folder.is_dir():
        shutil.rmtree(folder)
