"""The plan of a comparison, and the runs that follow from it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from lateprompt.data import load_label_task
from lateprompt.runs.data import DEV_ROWS
from lateprompt.runs.train import check_run
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.aliases import earlier_settings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.validation import Count, OneOf, Seed, checked

FULL = "full"
Shots = Count | Annotated[str, OneOf((FULL,))]
_SAYS_NOTHING = (
    ("recipe", "paper"),
    ("class_weight", None),
    ("calibrate", True),
    ("schedule", "linear"),
    ("folds", None),
    ("labels_per_row", "auto"),
)
"""Settings of recipe and data that are what all runs had before there was a choice."""
OWN = ("model", "method", "options")
"""Model settings that a plan says in words of its own."""


@dataclass(frozen=True)
class ModelEntry:
    """A model of the comparison.

    Args:
        model: folder or hub id.
        name: what it is called in the table; the last part of its path.
    """

    model: str
    name: str


@dataclass(frozen=True)
class MethodEntry:
    """A row of the comparison.

    Args:
        method: name of the method.
        name: what its runs are called; its own name.
        set: the method's options.
        recipe: recipe settings of this method.
        settings: model settings of this method: prompt_layer, num_prompt_tokens, …
    """

    method: str
    name: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def changed(self, choice: Mapping[str, Any]) -> MethodEntry:
        """With the settings of a choice: `set.r`, `recipe.lr`, `settings.prompt_layer`."""
        parts = {name: dict(getattr(self, name)) for name in ("set", "recipe", "settings")}
        for key, value in choice.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        return MethodEntry(self.method, self.name, **parts)


@dataclass(frozen=True)
class TaskEntry:
    """A column of the comparison: a task and its files. Without a test file, the dev file holds the test rows.

    Args:
        task: name of a task, or a YAML file.
        train: training rows.
        test: rows that are scored once, at the end.
    """

    task: str
    train: str
    test: str


@dataclass(frozen=True)
class Search:
    """How settings are chosen before the comparison: every method gets the same number of tries.

    Args:
        grid: method name (or `default`) to setting (`recipe.lr`, `set.r`, `settings.prompt_layer`) to values.
        tries: how many of a method's combinations are tried, drawn by a fixed seed; fewer where it has fewer.
        tasks: on which of the plan's tasks; default all.
        seeds: with which seeds; default the first one.
        shots: with which number of shots; default the first one.
    """

    grid: dict[str, dict[str, list[Any]]]
    tries: Count = 4
    tasks: list[str] | None = None
    seeds: list[Seed] | None = None
    shots: Shots | None = None


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Args:
        models: the models.
        methods: the methods.
        tasks: the tasks.
        shots: numbers of training rows in all, or `full`.
        seeds: seeds of samples and runs.
        dev_rows: rows of the training file that choose the best weights, class-proportional.
        recipe: recipe settings of all methods.
        settings: model settings of all methods.
        states: settings of cached states.
        search: how settings are chosen, or None.
    """

    models: list[ModelEntry]
    methods: list[MethodEntry]
    tasks: list[TaskEntry]
    shots: list[Shots] = field(default_factory=lambda: [FULL])
    seeds: list[Seed] = field(default_factory=lambda: [42])
    dev_rows: Count = DEV_ROWS
    recipe: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    search: Search | None = None

    def runs(self, *, chosen: Mapping[tuple[str, str], Mapping[str, Any]] | None = None) -> list[RunSpec]:
        """All runs, in the order of the table.

        Args:
            chosen: the settings that a search has chosen, by names of model and method.
        """
        best = chosen or {}
        return [
            self.run(model, entry.changed(best.get((model.name, entry.name), {})), task, shots, seed, test=True)
            for model in self.models
            for task in self.tasks
            for shots in self.shots
            for entry in self.methods
            for seed in self.seeds
        ]

    def run(
        self, model: ModelEntry, method: MethodEntry, task: TaskEntry, shots: int | str, seed: int, *, test: bool
    ) -> RunSpec:
        """One run; `test`: whether the test rows are scored."""
        settings = ModelSettings(**{**self.settings, **method.settings, "model": model.model, "method": method.method})
        settings.options = {**method.set}
        recipe = RecipeSettings(**{"recipe": "paper", **self.recipe, **method.recipe, "seed": seed})
        if recipe.recipe == "paper":  # a comparison's settings are the same for all methods and sizes
            recipe = recipe.resolved(0)
        data = DataSettings(
            train=task.train,
            test=[task.test] if test else [],
            task=task.task,
            shots=None if shots == FULL else int(shots),
            dev_rows=self.dev_rows,
        )
        states = StatesSettings(**self.states)
        return RunSpec(method.name, Path(task.task).stem, shots, model.name, settings, data, recipe, states)

    def check(self) -> None:
        """Raise LatePromptError for a run that cannot be, before any is started."""
        for spec in self.runs():
            check_run(spec.settings, spec.data, spec.recipe, spec.states)
            load_label_task(str(spec.data.task))
            for path in (spec.data.train, *spec.data.test):
                if not Path(path).is_file():
                    raise LatePromptError(
                        f"task {spec.task!r} has no file {path!r}; set data:, or its train: and test:"
                    )
        lists: dict[str, list[Any]] = {
            "method": [entry.name for entry in self.methods],
            "model": [entry.name for entry in self.models],
            "task": [Path(entry.task).stem for entry in self.tasks],
            "number of shots": self.shots,
            "seed": self.seeds,
        }
        for what, names in lists.items():
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise LatePromptError(
                    f"{what} {twice!r} is in the plan twice; leave one out, or give it a name of its own"
                )
        if self.search is not None:
            _check_search(self.search, self)

    def to_dict(self) -> dict[str, Any]:
        """As YAML holds it, everything resolved."""
        return asdict(self)


@dataclass(frozen=True)
class RunSpec:
    """One run of a comparison.

    Args:
        name: what the method is called in the table.
        task: name of the task.
        shots: training rows in all, or `full`.
        model: what the model is called in the table.
        settings, data, recipe, states: what the run is made of.
    """

    name: str
    task: str
    shots: int | str
    model: str
    settings: ModelSettings
    data: DataSettings
    recipe: RecipeSettings
    states: StatesSettings

    @property
    def key(self) -> str:
        """A hash of all that defines the run's outcome: settings, and the contents of its files."""
        data = {k: v for k, v in asdict(self.data).items() if k not in ("train", "test", "dev")}
        data = {k: v for k, v in data.items() if (k, v) not in _SAYS_NOTHING}
        what = {
            "settings": {**earlier_settings(asdict(self.settings)), "model": _model_digest(self.settings.model)},
            "data": data,
            "files": [_file_digest(path) for path in (self.data.train, *self.data.test)],
            "task": _file_digest(str(self.data.task)) if Path(str(self.data.task)).is_file() else self.data.task,
            # Left out where they say nothing: results of before there was a choice are found again.
            "recipe": {k: v for k, v in earlier_settings(asdict(self.recipe)).items() if (k, v) not in _SAYS_NOTHING},
            "states_dtype": self.states.states_dtype,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """The name of its folder."""
        parts = (Path(self.settings.model).name, self.task, str(self.shots), self.name, str(self.recipe.seed))
        return "-".join(re.sub(r"[^A-Za-z0-9.+_]+", "_", part) for part in parts) + f"-{self.key}"

    def to_json(self) -> str:
        """For a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> RunSpec:
        given = json.loads(line)
        return cls(
            given["name"],
            given["task"],
            given["shots"],
            given["model"],
            ModelSettings(**given["settings"]),
            DataSettings(**given["data"]),
            RecipeSettings(**given["recipe"]),
            StatesSettings(**given["states"]),
        )


def _file_digest(path: str) -> str:
    facts = os.stat(path)
    return _digest_of(path, facts.st_size, facts.st_mtime_ns)


@cache
def _digest_of(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja")


def _model_digest(model: str) -> str:
    """The contents of a local model's files: configuration, weights, tokenizer; a hub id as it is."""
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return model
    files = sorted(path for path in folder.iterdir() if path.suffix in _MODEL_FILES and path.is_file())
    contents = " ".join(f"{path.name} {_file_digest(str(path))}" for path in files)
    return hashlib.sha256(contents.encode()).hexdigest()


def _check_search(search: Search, plan: Plan) -> None:
    checked(Search, "tries", search.tries)
    names = [Path(task.task).stem for task in plan.tasks]
    for task in search.tasks or ():
        if task not in names:
            raise LatePromptError(
                f"search names task {task!r}, which the plan does not have; it has {', '.join(names)}"
            )
    methods = [entry.name for entry in plan.methods]
    for name in search.grid:
        if name != "default" and name not in methods:
            raise LatePromptError(
                f"search has a grid for {name!r}, which is no method of the plan: {', '.join(methods)}"
            )
    for entry in plan.methods:  # each value alone: a run with one that cannot be would fail after others have finished
        for key, values in {**search.grid.get("default", {}), **search.grid.get(entry.name, {})}.items():
            for value in values:
                spec = plan.run(
                    plan.models[0], entry.changed({key: value}), plan.tasks[0], FULL, plan.seeds[0], test=False
                )
                check_run(spec.settings, spec.data, spec.recipe, spec.states)
