"""What an estimator's parameters stand for: the settings of model and recipe, and the task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from lateprompt.data import MultiLabelTask, Task, default_task, label_name, load_label_task, multi_label_task
from lateprompt.methods import read_only_name
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.names import DEFAULT_METHOD
from lateprompt.utils.suggestions import some_of


def settings_of(parameters: Mapping[str, Any]) -> tuple[ModelSettings, RecipeSettings]:
    """The settings, not checked yet, of an estimator's parameters by name.

    Raises:
        LatePromptError: `method` and `generator`, which are one parameter, differ; or a method without a read-only
            form, with `read_only`.
    """
    options = {} if parameters["options"] is None else parameters["options"]
    given = {
        **parameters,
        "method": _method(parameters["method"], parameters["generator"], parameters.get("read_only", False)),
        "seed": _seed(parameters["random_state"]),
        "options": dict(options) if isinstance(options, Mapping) else options,
    }
    for name in ("model", "device"):  # paths and devices as users have them
        if isinstance(given[name], os.PathLike | torch.device):
            given[name] = str(given[name])
    model = ModelSettings(**{f.name: given[f.name] for f in fields(ModelSettings) if f.name in given})
    # Class weights by the labels as they are given have a check of their own (`class_weights`).
    names = [f.name for f in fields(RecipeSettings) if f.name in given and f.name != "class_weight"]
    return model, RecipeSettings(**{name: given[name] for name in names})


def plain_class_weight(class_weight: Any) -> str | dict[str, float] | None:
    """Checked class weights as a recipe has them: by the labels' names."""
    if class_weight is None or isinstance(class_weight, str):
        return class_weight
    return {label_name(label) or "": float(weight) for label, weight in class_weight.items()}


def _method(method: str, generator: str | None, read_only: Any) -> str:
    if not isinstance(read_only, bool | np.bool_):
        raise LatePromptError(f"read_only {read_only!r} is neither True nor False; give one of them")
    name = _one_of(method, generator)
    return read_only_name(name) if read_only else name


def _one_of(method: str, generator: str | None) -> str:
    if generator is None:
        return method
    if method not in (DEFAULT_METHOD, generator):  # what it is when nobody has said it
        raise LatePromptError(
            f"method {method!r} and generator {generator!r} are two names of one parameter and differ; "
            "give method alone"
        )
    return generator


def _seed(random_state: Any) -> Any:
    """A seed from what scikit-learn takes; numpy's own generator stays as it is."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    return random_state


def task_of(task: str | None, label_words: Any, names: Sequence[str], pair: bool, *, multi_label: bool = False) -> Task:
    """The task that is named, or a plain one for the labels of `y`.

    Args:
        task: name or file of a task; None: a plain template.
        label_words: label to label word, without a task; None: the labels' own names.
        names: the labels' names, sorted.
        pair: whether each row has two texts.
        multi_label: whether a text may have several labels.

    Raises:
        LatePromptError: a label that the task does not have, or that has no label word; a task of the other kind.
    """
    if task is not None:
        named = load_label_task(task)
        if isinstance(named, MultiLabelTask) != multi_label:
            one, other = ("several labels", "one label") if multi_label else ("one label", "several labels")
            raise LatePromptError(f"y has {one} a text, task {named.name!r} has {other}; give another task")
        unknown = sorted(set(names) - set(named.labels))
        if unknown:
            raise LatePromptError(f"y has label {unknown[0]!r}, task {named.name!r} has {some_of(named.labels)}")
        return named
    if multi_label:
        if label_words is not None:
            raise LatePromptError("label_words are for one label a text, but y has several; leave them out")
        return multi_label_task(names, pair=pair)
    if label_words is None:
        return default_task(names, pair=pair)
    if not hasattr(label_words, "items"):
        raise LatePromptError(f"label_words {label_words!r} is no mapping; give one from label to word")
    words = {label_name(label): word for label, word in label_words.items()}
    missing = sorted(set(names) - set(words))
    if missing:
        raise LatePromptError(f"label_words has no word for label {missing[0]!r}; give one for each of {sorted(names)}")
    return default_task(names, pair=pair, label_words=[words[name] for name in names])
