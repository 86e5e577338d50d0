"""A plan from a YAML file or from flags."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lateprompt.backbone.call_context import first
from lateprompt.experiments.compare.plan import FULL, OWN, MethodEntry, ModelEntry, Plan, Search, TaskEntry
from lateprompt.methods import check_method, read_only_name
from lateprompt.runs.data import DEV_ROWS
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.aliases import todays_name, todays_names
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import did_you_mean
from lateprompt.utils.validation import checked
from lateprompt.utils.yaml_files import read_yaml


def load_plan(path: str | Path | None, changes: Mapping[str, Any]) -> Plan:
    """The plan of a YAML file with some keys changed (None: they are left alone), or of these alone.

    Args:
        path: a YAML file, or None.
        changes: `models`, `methods`, `tasks`, `data`, `shots`, `seeds`, `dev_rows`, `recipe`, `settings`.

    Raises:
        LatePromptError: a file that cannot be read, an unknown key, or a value that cannot be.
    """
    given: Any = {}
    where = "the plan"
    if path is not None:
        where = f"plan {str(path)!r}"
        given = read_yaml(path, "plan")
        if not isinstance(given, dict):
            raise LatePromptError(f"{where} holds no mapping; write keys such as methods: and tasks:")
    given = {**given, **{key: value for key, value in changes.items() if value is not None}}
    if given.get("model") is not None and given.get("models") is not None:
        raise LatePromptError(f"{where} has both model and models; write all of them under models")
    if "model" in given:
        given["models"] = [given.pop("model")]
    known = ["model", "data", *(f.name for f in fields(Plan))]
    _check_keys(given, known, where)
    for name in ("models", "methods", "tasks"):
        if not given.get(name):
            raise LatePromptError(f"{where} has no {name}; give some")
    data = given.pop("data", None)
    settings = _settings(ModelSettings, given.pop("settings", None), f"settings of {where}", OWN)
    recipe = _settings(RecipeSettings, given.pop("recipe", None), f"recipe of {where}", ("seed",))
    states = _settings(StatesSettings, given.pop("states", None), f"states of {where}")
    search = given.pop("search", None)
    plan = Plan(
        models=[_model(entry, where) for entry in _listed(given.pop("models"))],
        methods=[_method(entry, where) for entry in _listed(given.pop("methods"))],
        tasks=[_task(entry, data, where) for entry in _listed(given.pop("tasks"))],
        shots=_value(Plan, "shots", _some("shots", given, [FULL], where), where),
        seeds=_value(Plan, "seeds", _some("seeds", given, [42], where), where),
        dev_rows=_value(Plan, "dev_rows", first(given.get("dev_rows"), DEV_ROWS), where),
        recipe=recipe,
        settings=settings,
        states=states,
        search=None if search is None else _search(search, where),
    )
    plan.check()
    return plan


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _some(name: str, given: Mapping[str, Any], default: list[Any], where: str) -> list[Any]:
    """A list of a plan, the default where it has none."""
    values = _listed(first(given.get(name), default))
    if not values:
        raise LatePromptError(f"{where} has an empty list of {name}; give some, or leave it out")
    return values


def _names(kind: Any, but: Sequence[str] = ()) -> list[str]:
    return [f.name for f in fields(kind) if f.name not in but]


def _value(kind: type, name: str, value: Any, what: str) -> Any:
    """A value of a plan, as the field that it is for wants it."""
    try:
        return checked(kind, name, value, written=True)
    except LatePromptError as error:
        raise LatePromptError(f"{what}: {error}") from None


def _setting(kind: type, name: str, value: Any, what: str) -> Any:
    """A setting's value."""
    if isinstance(value, (list, tuple, dict)) and not (name == "class_weight" and isinstance(value, dict)):
        raise LatePromptError(
            f"{what} has {name} {value!r}; give one value (several to choose from go into search: grid:)"
        )
    return _value(kind, name, value, what)


def _settings(kind: Any, given: Any, what: str, but: Sequence[str] = ()) -> dict[str, Any]:
    """Some settings of a class of settings, checked by name and type."""
    names = _names(kind, but=but)
    given = _named(given or {}, names, what)
    _check_keys(given, names, what)
    return {name: _setting(kind, name, value, what) for name, value in given.items()}


def _named(given: Any, names: Sequence[str], what: str) -> Any:
    """Settings by today's names; what is no mapping stays, to be refused."""
    try:
        return todays_names(given, names) if isinstance(given, Mapping) else given
    except LatePromptError as error:
        raise LatePromptError(f"{what}: {error}") from None


def _check_keys(given: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise LatePromptError(f"{where}: {given!r} is no mapping")
    known = list(known)
    for key in given:
        if key not in known:
            raise LatePromptError(
                f"{where} has an unknown key {key!r}; known are {', '.join(known)}{did_you_mean(key, known)}"
            )


def _expanded(text: str, where: str) -> str:
    """Environment variables filled in."""
    result = os.path.expandvars(os.path.expanduser(text))
    missing = re.search(r"\$\{?([A-Za-z_]\w*)\}?", result)
    if missing:
        raise LatePromptError(f"{where} has {text!r}, but the environment variable {missing[1]} is not set; set it")
    return result


def _model(entry: Any, where: str) -> ModelEntry:
    given: Any = {"model": entry} if isinstance(entry, str) else entry
    _check_keys(given, _names(ModelEntry), f"a model of {where}")
    if not given.get("model"):
        raise LatePromptError(f"{where}: {entry!r} names no model; write model: FOLDER or hub id")
    model = _expanded(str(given["model"]), where)
    return ModelEntry(model, str(given.get("name") or Path(model).name))


def _method(entry: Any, where: str) -> MethodEntry:
    given: Any = {"method": entry} if isinstance(entry, str) else entry
    _check_keys(given, [*_names(MethodEntry), "read_only"], f"a method of {where}")
    if "method" not in given:
        raise LatePromptError(f"{where}: {entry!r} names no method; write method: NAME")
    what = f"method {given['method']!r} of {where}"
    options = given.get("set") or {}
    if not isinstance(options, Mapping):
        raise LatePromptError(f"{what} has set {options!r}; write options by name, as in set: {{r: 4}}")
    options = dict(options)
    recipe = _settings(RecipeSettings, given.get("recipe"), f"recipe of {what}", ("seed",))
    settings = _settings(ModelSettings, given.get("settings"), f"settings of {what}", OWN)
    if read_only := given.get("read_only", False):
        if read_only is not True:
            raise LatePromptError(f"{what} has read_only {read_only!r}; give true or false")
        given = {**given, "method": read_only_name(given["method"])}
    check_method(given["method"], options)
    return MethodEntry(given["method"], str(given.get("name") or given["method"]), options, recipe, settings)


def _task(entry: Any, data: str | None, where: str) -> TaskEntry:
    given: Any = {"task": entry} if isinstance(entry, str) else entry
    _check_keys(given, _names(TaskEntry), f"a task of {where}")
    name = str(given.get("task") or "")
    if not name:
        raise LatePromptError(f"{where}: {entry!r} names no task; write task: NAME")
    folder = None if data is None else Path(_expanded(str(data), where)) / Path(name).stem
    train, test = given.get("train"), given.get("test")
    if train is None or test is None:
        if folder is None:
            raise LatePromptError(f"task {name!r} of {where} has no files; give data: FOLDER, or its train: and test:")
        files = [folder / "test.jsonl", folder / "dev.jsonl"]
        train = train or folder / "train.jsonl"
        test = test or next((file for file in files if file.is_file()), files[-1])
    return TaskEntry(_expanded(name, where), _expanded(str(train), where), _expanded(str(test), where))


def _search(given: Any, where: str) -> Search:
    what = f"search of {where}"
    _check_keys(given, _names(Search), what)
    if not isinstance(given.get("grid"), Mapping):
        raise LatePromptError(f"{what} has no grid; write grid: {{default: {{recipe.lr: [1e-3, 5e-3]}}}}")
    grid: dict[str, dict[str, list[Any]]] = {}
    known: dict[str, Any] = {"set": None, "recipe": RecipeSettings, "settings": ModelSettings}
    for method, choices in given["grid"].items():
        _check_keys(choices, choices, what)
        for key, values in choices.items():
            part, _, name = key.partition(".")
            names = _names(known[part], but=(*OWN, "seed")) if known.get(part) is not None else [name]
            name = todays_name(name, names)
            if part not in known or not name or name not in names:
                raise LatePromptError(
                    f"{what}: {key!r} is no setting; write recipe.lr, settings.prompt_layer, set.r, …"
                )
            if f"{part}.{name}" in (chosen := grid.setdefault(str(method), {})):
                raise LatePromptError(f"{what} has {part}.{name} for {method!r} under two names; write {name!r} alone")
            chosen[f"{part}.{name}"] = _choices(known, f"{part}.{name}", values, what)
    for name in ("seeds", "tasks"):
        if given.get(name) is not None:
            given = {**given, name: _some(name, given, [], what)}
    plain = {name: _value(Search, name, given[name], what) for name in given if name != "grid"}
    return Search(grid, **plain)


def _choices(known: Mapping[str, Any], key: str, values: Any, what: str) -> list[Any]:
    part, _, name = key.partition(".")
    kind = known[part]
    if not _listed(values):
        raise LatePromptError(f"{what} has no values for {key!r}; give some")
    return [value if kind is None else _setting(kind, name, value, what) for value in _listed(values)]
