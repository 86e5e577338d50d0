"""What a run folder holds, read and checked: settings, task, adapter and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from lateprompt.data import AnyTask, Task
from lateprompt.data.task_library import read_task_file
from lateprompt.methods import adapter_config, check_method
from lateprompt.peft_method.config import PEFT_TYPE, LatePromptConfig
from lateprompt.training.calibration import Calibration
from lateprompt.training.metrics import check_metrics
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, read_tensors, write_json, write_text

ADAPTER = "default"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TASK_FILE = "task.yaml"
RUN_FILE = "run.json"
ASKED = "asked"
"""In the run file: what the task asked when the run was trained."""
CALIBRATION = "calibration"
"""In the run file: the temperature of the probabilities; runs of earlier versions have none."""
BASE_MODEL = "base_model"
"""In the run file: what is known of the base model."""
_NOT_ASKED = ("name", "columns", "chosen_columns", "label_map")
"""Of a task, what only reads rows."""


def read_run(folder: Path) -> dict[str, Any]:
    """What is in the run file; LatePromptError if there is none, or it is broken."""
    if not (folder / RUN_FILE).exists():
        raise LatePromptError(f"{str(folder)!r} is no finished run folder: it has no {RUN_FILE}")
    return read_json(folder / RUN_FILE, "run file")


def broken_run(folder: Path, part: str, why: object) -> LatePromptError:
    """The error for a part of a run file that cannot be."""
    return LatePromptError(f"run file {str(folder / RUN_FILE)!r} is broken: {part}: {why}")


def section_of(run: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """A part of a run file; LatePromptError if it is no mapping."""
    value = run.get(name, {})
    if not isinstance(value, dict):
        raise broken_run(folder, name, f"{str(value)[:40]!r} is no mapping")
    return value


def settings_in(run: Mapping[str, Any], name: str, kind: type[Any], folder: Path) -> Any:
    """A part of a run file as checked settings (a dataclass with `check`).

    Raises:
        LatePromptError: a setting that is unknown, of a wrong type, or cannot be; the message names file and setting.
    """
    file = str(folder / RUN_FILE)
    try:
        settings = kind(**section_of(run, name, folder))
    except TypeError as error:
        raise LatePromptError(
            f"run file {file!r} is of another version, or broken: {name} does not fit ({error})"
        ) from None
    try:
        settings.check()
    except LatePromptError as error:
        raise broken_run(folder, name, error) from None
    return settings


def model_settings_in(run: Mapping[str, Any], folder: Path) -> ModelSettings:
    """The model's settings in a run file; LatePromptError for what cannot be."""
    if "model" not in section_of(run, "model_settings", folder):  # which is optional in Python alone
        file = str(folder / RUN_FILE)
        raise LatePromptError(f"run file {file!r} is broken: model_settings does not fit (it names no model)")
    settings: ModelSettings = settings_in(run, "model_settings", ModelSettings, folder)
    try:
        check_method(settings.method, settings.options)
    except LatePromptError as error:
        raise broken_run(folder, "model_settings", error) from None
    if settings.readout == "auto":
        raise broken_run(folder, "model_settings", "readout 'auto' is none; give the one that it was trained with")
    return settings


def calibration_in(run: Mapping[str, Any], folder: Path) -> Calibration:
    """The calibration in a run file; temperature 1 where there is none.

    Raises:
        LatePromptError: a temperature that cannot be.
    """
    try:
        return Calibration.from_dict(section_of(run, CALIBRATION, folder))
    except LatePromptError as error:
        raise broken_run(folder, CALIBRATION, error) from None


def asked_by(task: AnyTask) -> dict[str, Any]:
    """Of a task, what results depend on beside the rows: templates, labels, words, metrics."""
    return {name: value for name, value in task.to_dict().items() if name not in _NOT_ASKED}


def write_description(
    folder: Path,
    settings: ModelSettings,
    task: AnyTask,
    fingerprint: str | None,
    calibration: Calibration,
    facts: Mapping[str, Any] | None,
) -> None:
    """Write task and run file.

    Args:
        folder: where.
        settings: the model's.
        task: what is asked.
        fingerprint: of the base model; None where it is not known.
        calibration: of the probabilities.
        facts: what the run file says besides.
    """
    write_text(folder / TASK_FILE, yaml.safe_dump(task.to_dict(), sort_keys=False, allow_unicode=True))
    base: dict[str, Any] = {} if fingerprint is None else {BASE_MODEL: {"fingerprint": fingerprint}}
    if calibration.rows:
        base[CALIBRATION] = calibration.to_dict()
    run = {"model_settings": asdict(settings), ASKED: asked_by(task), **base, **(facts or {})}
    write_json(folder / RUN_FILE, run)


def check_same_asked(run: Mapping[str, Any], task: AnyTask, folder: Path) -> None:
    """Raise LatePromptError where the task asks something else than the one that the run was trained on."""
    saved = section_of(run, ASKED, folder)  # early versions have none
    now = {name: value for name, value in asked_by(task).items() if name != "metrics"}  # others may be measured
    changed = [name for name, value in now.items() if saved.get(name, value) != value]
    if changed:
        raise LatePromptError(
            f"task file {str(folder / TASK_FILE)!r} was changed since the run was trained ({', '.join(changed)}); "
            f"give it back what {RUN_FILE} has under {ASKED!r}, or train again"
        )


def check_same(settings: ModelSettings, adapter: LatePromptConfig, task: AnyTask, folder: Path) -> None:
    """Raise LatePromptError where the run file or the task says something else than the adapter's configuration."""
    pairs: dict[str, tuple[Any, ...]] = {"prompt_layer": (settings.prompt_layer, adapter.prompt_layer)}
    if settings.readout == "head":
        pairs["head_pooling"] = (settings.head_pooling or "cls", adapter.head_pooling)
    made = adapter_config(settings, {"head_labels": adapter.head_labels})
    same = ("generator", "bottleneck_dim", "prompt_dropout", "trunk_dropout", "tuner_layers", "read_only")
    for name in (*same, "prompt_start", "zero_init"):
        pairs[name] = (getattr(made, name), getattr(adapter, name))
    pairs["tuner"] = tuple((config.tuner or {}).get("peft_type") for config in (made, adapter))
    if settings.num_prompt_tokens is not None:
        pairs["num_prompt_tokens"] = (made.num_prompt_tokens, adapter.num_prompt_tokens)
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise LatePromptError(
                f"run file {str(folder / RUN_FILE)!r} has {name} {ours!r} and does not fit {ADAPTER_CONFIG}, which has "
                f"{theirs!r}; take both from the same run"
            )
    if settings.readout == "head" and isinstance(task, Task) and adapter.head_labels != len(task.labels):
        raise LatePromptError(
            f"task file {str(folder / TASK_FILE)!r} has {len(task.labels)} labels, {ADAPTER_CONFIG} has head_labels "
            f"{adapter.head_labels!r}; take both from the same run"
        )


def read_task(folder: Path) -> AnyTask:
    """The task of a run folder."""
    path = folder / TASK_FILE
    task = read_task_file(path)
    try:
        check_metrics(task.metrics)
    except LatePromptError as error:
        raise LatePromptError(f"{path}: {error}") from None
    return task


def check_finite(weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise LatePromptError for NaN or infinity, naming the tensor: what it predicts would be no number either."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LatePromptError(
                f"{what} has NaN or infinity in {name!r}; train again, with a lower lr if it diverged"
            )


def read_adapter_config(folder: Path) -> LatePromptConfig:
    """The adapter configuration of a run folder; LatePromptError if it is of another PEFT method."""
    data = read_json(folder / ADAPTER_CONFIG, "adapter configuration")
    if data.get("peft_type") != PEFT_TYPE:
        raise LatePromptError(
            f"{str(folder / ADAPTER_CONFIG)!r} has peft_type {data.get('peft_type')!r}, expected {PEFT_TYPE!r}"
        )
    config = LatePromptConfig.from_pretrained(str(folder))
    assert isinstance(config, LatePromptConfig)
    config.inference_mode = False
    config.base_model_name_or_path = None
    return config


def load_adapter_weights(model: PeftModel, path: Path, adapter: str = ADAPTER) -> None:
    """Load exactly this adapter's weights, or raise LatePromptError naming the file and what does not fit."""
    weights, _ = read_tensors(path, "adapter file")
    expected = get_peft_model_state_dict(model, adapter_name=adapter)
    for name in sorted(set(expected) ^ set(weights)):
        where = "is missing" if name in expected else "does not belong there"
        raise LatePromptError(f"adapter file {str(path)!r} does not fit {ADAPTER_CONFIG}: {name!r} {where}")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise LatePromptError(
                f"adapter file {str(path)!r} does not fit the model: {name!r} has shape {tuple(weights[name].shape)}, "
                f"expected {tuple(tensor.shape)}; give the base model it was trained on"
            )
    check_finite(weights, f"adapter file {str(path)!r}")
    set_peft_model_state_dict(model, weights, adapter_name=adapter)
