"""What a run needs to go on after an interruption: safetensors and JSON in one folder, replaced as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lateprompt.run_folder.entries import STATE
from lateprompt.utils.aliases import todays_settings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, read_tensors, write_json, write_tensors
from lateprompt.utils.randomness import RunNumbers
from lateprompt.utils.validation import check_types


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
    write_json(folder / STATE, {"settings": settings, "tensors": name, "progress": asdict(progress)})
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name and old.stem.removeprefix("tensors-").isdecimal():
            old.unlink()


def load_checkpoint(
    folder: Path, optimizer: torch.optim.Optimizer, settings: str, numbers: RunNumbers | None = None
) -> tuple[Progress, Weights, Weights] | None:
    """The saved progress, weights and best weights; the optimiser and the random numbers go on. None if there is none.

    Raises:
        LatePromptError: the checkpoint is broken, or of a run with other settings.
    """
    if not (folder / STATE).is_file():
        return None
    theirs, name, progress = _read_state(folder)
    ours = json.loads(settings)
    changed = [
        _name_of(key, theirs[key], ours.get(key)) for key in sorted(theirs) if _differ(theirs[key], ours.get(key))
    ]
    if changed:
        raise LatePromptError(
            f"checkpoint {str(folder)!r} is of a run with other settings ({', '.join(changed)}); "
            "resume with the same ones, or use --overwrite"
        )
    tensors, _ = read_tensors(folder / name, "checkpoint")
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
    return progress, groups["weights"], groups["best"]


def _differ(theirs: Any, ours: Any) -> bool:
    """Whether settings differ; what an earlier version did not write down yet cannot."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return any(name not in ours or value != ours[name] for name, value in theirs.items())
    return bool(theirs != ours)


def _name_of(part: str, theirs: Any, ours: Any) -> str:
    """What to call a part of the settings that differs: of the data, which rows."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict) and isinstance(theirs.get("fingerprints"), dict)):
        return part
    rows = ours.get("fingerprints", {})
    changed = [name for name, value in theirs["fingerprints"].items() if rows.get(name) != value]
    return f"{part}: {', '.join(changed)}" if changed else part


def _read_state(folder: Path) -> tuple[dict[str, Any], str, Progress]:
    """The settings of a checkpoint, the name of its tensor file, and how far it is."""
    state = read_json(folder / STATE, "checkpoint")
    try:
        settings, name = json.loads(state["settings"]), state["tensors"]
        progress = Progress(**state["progress"])
        check_types(progress)
        settings = {
            part: todays_settings(value) if isinstance(value, dict) else value for part, value in settings.items()
        }
        if name != Path(name).name:
            raise TypeError("settings or tensors")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LatePromptError(
            f"checkpoint {str(folder / STATE)!r} is broken ({error}); use --overwrite to begin anew"
        ) from None
    return settings, name, progress
