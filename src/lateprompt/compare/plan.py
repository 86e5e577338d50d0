"""The plan of a comparison: what a YAML file or flags ask for, and the runs that follow from it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lateprompt.methods import check_method
from lateprompt.run import DEV_ROWS, DataSettings, check_run
from lateprompt.tasks import load_label_task
from lateprompt.training.kept import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

FULL = "full"
_OWN = ("model", "method", "options")
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
    tries: int = 4
    tasks: list[str] | None = None
    seeds: list[int] | None = None
    shots: int | str | None = None


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
        states: settings of kept states.
        search: how settings are chosen, or None.
    """

    models: list[ModelEntry]
    methods: list[MethodEntry]
    tasks: list[TaskEntry]
    shots: list[int | str] = field(default_factory=lambda: [FULL])
    seeds: list[int] = field(default_factory=lambda: [42])
    dev_rows: int = DEV_ROWS
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
        recipe = RecipeSettings(**{**self.recipe, **method.recipe, "seed": seed})
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
        """Raise ValueError for a run that cannot be, before any is started."""
        for spec in self.runs():
            check_run(spec.settings, spec.data, spec.recipe, spec.states)
            load_label_task(str(spec.data.task))
            for path in (spec.data.train, *spec.data.test):
                if not Path(path).is_file():
                    raise ValueError(f"task {spec.task!r} has no file {path!r}; set data:, or its train: and test:")
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
                raise ValueError(f"{what} {twice!r} is in the plan twice; leave one out, or give it a name of its own")
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
        what = {
            "settings": {**asdict(self.settings), "model": _model_digest(self.settings.model)},
            "data": data,
            "files": [_file_digest(path) for path in (self.data.train, *self.data.test)],
            "task": _file_digest(str(self.data.task)) if Path(str(self.data.task)).is_file() else self.data.task,
            "recipe": asdict(self.recipe),
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


@cache
def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _model_digest(model: str) -> str:
    """A local model's configuration and the sizes of its weight files; a hub id as it is."""
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return model
    weights = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors"))
    return f"{_file_digest(str(folder / 'config.json'))} {weights}"


# -- from YAML ---------------------------------------------------------------------------------------------------------


def load_plan(path: str | Path | None, changes: Mapping[str, Any]) -> Plan:
    """The plan of a YAML file with some keys changed (None: they are left alone), or of these alone.

    Args:
        path: a YAML file, or None.
        changes: `models`, `methods`, `tasks`, `data`, `shots`, `seeds`, `dev_rows`, `recipe`, `settings`.

    Raises:
        ValueError: a file that cannot be read, an unknown key, or a value that cannot be.
    """
    given: Any = {}
    where = "the plan"
    if path is not None:
        where = f"plan {str(path)!r}"
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{where} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(given, dict):
            raise ValueError(f"{where} holds no mapping; write keys such as methods: and tasks:")
    given = {**given, **{key: value for key, value in changes.items() if value is not None}}
    if "model" in given:
        given["models"] = [given.pop("model")]
    known = ["model", "data", *(f.name for f in fields(Plan))]
    _check_keys(given, known, where)
    for name in ("models", "methods", "tasks"):
        if not given.get(name):
            raise ValueError(f"{where} has no {name}; give some")
    data = given.pop("data", None)
    settings = _settings(ModelSettings, given.pop("settings", None), f"settings of {where}", _OWN)
    recipe = _settings(RecipeSettings, given.pop("recipe", None), f"recipe of {where}", ("seed",))
    states = _settings(StatesSettings, given.pop("states", None), f"states of {where}")
    search = given.pop("search", None)
    plan = Plan(
        models=[_model(entry, where) for entry in _listed(given.pop("models"))],
        methods=[_method(entry, where) for entry in _listed(given.pop("methods"))],
        tasks=[_task(entry, data, where) for entry in _listed(given.pop("tasks"))],
        shots=[_shots(value, where) for value in _listed(given.pop("shots", None) or [FULL])],
        seeds=[_whole("seeds", value, where) for value in _listed(given.pop("seeds", None) or [42])],
        dev_rows=_whole("dev_rows", given.pop("dev_rows", None) or DEV_ROWS, where),
        recipe=recipe,
        settings=settings,
        states=states,
        search=None if search is None else _search(search, where),
    )
    plan.check()
    return plan


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _names(kind: Any, but: Sequence[str] = ()) -> list[str]:
    return [f.name for f in fields(kind) if f.name not in but]


def _typed(kind: Any, name: str, value: Any, what: str) -> Any:
    """A setting's value as its type wants it: YAML reads `1e-3` as text, and `off` as false."""
    wanted = next(f.type for f in fields(kind) if f.name == name)
    wanted = wanted if isinstance(wanted, str) else wanted.__name__
    if value is None or "|" in wanted.removesuffix("| None"):
        return value
    if wanted.startswith("str"):
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    numbers = {"float": float, "int": int}
    for start, read in numbers.items():
        if not wanted.startswith(start):
            continue
        try:
            if isinstance(value, bool) or (start == "int" and isinstance(value, float)):
                raise ValueError
            return read(value) if isinstance(value, str) else value
        except (TypeError, ValueError):
            article = "a whole number" if start == "int" else "a number"
            raise ValueError(f"{what} has {name} {value!r}; give {article}") from None
    if wanted == "bool" and not isinstance(value, bool):
        raise ValueError(f"{what} has {name} {value!r}; give true or false")
    return value


def _settings(kind: Any, given: Any, what: str, but: Sequence[str] = ()) -> dict[str, Any]:
    """Some settings of a class of settings, checked by name and type."""
    given = given or {}
    _check_keys(given, _names(kind, but=but), what)
    return {name: _typed(kind, name, value, what) for name, value in given.items()}


def _check_keys(given: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r} is no mapping")
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}; known are {', '.join(known)}")


def _expanded(text: str, where: str) -> str:
    """Environment variables filled in."""
    result = os.path.expandvars(os.path.expanduser(text))
    missing = re.search(r"\$\{?([A-Za-z_]\w*)\}?", result)
    if missing:
        raise ValueError(f"{where} has {text!r}, but the environment variable {missing[1]} is not set; set it")
    return result


def _model(entry: Any, where: str) -> ModelEntry:
    given: Any = {"model": entry} if isinstance(entry, str) else entry
    _check_keys(given, _names(ModelEntry), f"a model of {where}")
    if not given.get("model"):
        raise ValueError(f"{where}: {entry!r} names no model; write model: FOLDER or hub id")
    model = _expanded(str(given["model"]), where)
    return ModelEntry(model, str(given.get("name") or Path(model).name))


def _method(entry: Any, where: str) -> MethodEntry:
    given: Any = {"method": entry} if isinstance(entry, str) else entry
    _check_keys(given, _names(MethodEntry), f"a method of {where}")
    if "method" not in given:
        raise ValueError(f"{where}: {entry!r} names no method; write method: NAME")
    what = f"method {given['method']!r} of {where}"
    options = dict(given.get("set") or {})
    recipe = _settings(RecipeSettings, given.get("recipe"), f"recipe of {what}", ("seed",))
    settings = _settings(ModelSettings, given.get("settings"), f"settings of {what}", _OWN)
    check_method(given["method"], options)
    return MethodEntry(given["method"], str(given.get("name") or given["method"]), options, recipe, settings)


def _task(entry: Any, data: str | None, where: str) -> TaskEntry:
    given: Any = {"task": entry} if isinstance(entry, str) else entry
    _check_keys(given, _names(TaskEntry), f"a task of {where}")
    name = str(given.get("task") or "")
    if not name:
        raise ValueError(f"{where}: {entry!r} names no task; write task: NAME")
    folder = None if data is None else Path(_expanded(str(data), where)) / Path(name).stem
    train, test = given.get("train"), given.get("test")
    if train is None or test is None:
        if folder is None:
            raise ValueError(f"task {name!r} of {where} has no files; give data: FOLDER, or its train: and test:")
        files = [folder / "test.jsonl", folder / "dev.jsonl"]
        train = train or folder / "train.jsonl"
        test = test or next((file for file in files if file.is_file()), files[-1])
    return TaskEntry(_expanded(name, where), _expanded(str(train), where), _expanded(str(test), where))


def _shots(value: Any, where: str) -> int | str:
    if value == FULL:
        return FULL
    shots = _whole("shots", value, where)
    if shots < 1:
        raise ValueError(f"{where} has shots {value!r}; give whole numbers from 1, or full")
    return shots


def _whole(name: str, value: Any, where: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{where} has {name} {value!r}; give whole numbers") from None


def _search(given: Any, where: str) -> Search:
    what = f"search of {where}"
    _check_keys(given, _names(Search), what)
    if not isinstance(given.get("grid"), Mapping):
        raise ValueError(f"{what} has no grid; write grid: {{default: {{recipe.lr: [1e-3, 5e-3]}}}}")
    grid: dict[str, dict[str, list[Any]]] = {}
    known: dict[str, Any] = {"set": None, "recipe": RecipeSettings, "settings": ModelSettings}
    for method, choices in given["grid"].items():
        _check_keys(choices, choices, what)
        for key in choices:
            part, _, name = key.partition(".")
            kind = known.get(part)
            if part not in known or not name or (kind is not None and name not in _names(kind, but=(*_OWN, "seed"))):
                raise ValueError(f"{what}: {key!r} is no setting; write recipe.lr, settings.prompt_layer, set.r, …")
        grid[str(method)] = {key: _choices(known, key, values, what) for key, values in choices.items()}
    tries = _whole("tries", given.get("tries", 4), what)
    seeds = given.get("seeds")
    tasks = given.get("tasks")
    return Search(
        grid,
        tries,
        None if tasks is None else [str(task) for task in _listed(tasks)],
        None if seeds is None else [_whole("seeds", seed, what) for seed in _listed(seeds)],
        None if given.get("shots") is None else _shots(given["shots"], what),
    )


def _choices(known: Mapping[str, Any], key: str, values: Any, what: str) -> list[Any]:
    part, _, name = key.partition(".")
    kind = known[part]
    return [value if kind is None else _typed(kind, name, value, what) for value in _listed(values)]


def _check_search(search: Search, plan: Plan) -> None:
    if search.tries < 1:
        raise ValueError(f"search has tries {search.tries!r}; give a whole number from 1")
    names = [Path(task.task).stem for task in plan.tasks]
    for task in search.tasks or ():
        if task not in names:
            raise ValueError(f"search names task {task!r}, which the plan does not have; it has {', '.join(names)}")
    methods = [entry.name for entry in plan.methods]
    for name in search.grid:
        if name != "default" and name not in methods:
            raise ValueError(f"search has a grid for {name!r}, which is no method of the plan: {', '.join(methods)}")
