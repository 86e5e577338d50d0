"""Examples in docstrings run, and every class that a user imports has one that can be copied as it stands."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import lateprompt
from lateprompt.backbone.families import FAMILIES

SOURCE = Path(lateprompt.__file__).parent
PARTS = sorted(path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
PARTS = [name for name in PARTS if not name.startswith("__")]

# To be emptied: `test_the_lists_are_not_out_of_date` says which entries are done.
WITHOUT_EXAMPLE: set[str] = set()
"""Public classes and functions whose docstring has no example yet that can be copied."""
NOT_RUNNING: set[str] = set()
"""Examples that cannot run yet."""


def modules_of(part: str) -> list[str]:
    """The full names of a package's modules, or of the one module."""
    top = import_module(f"lateprompt.{part}")
    below = pkgutil.walk_packages(getattr(top, "__path__", []), f"{top.__name__}.")
    return [top.__name__, *(module.name for module in below if not module.name.endswith("__main__"))]


def public() -> Iterator[tuple[str, object]]:
    """What a user imports: by name, each class and function that should have an example."""
    homes = [
        ("lateprompt", lateprompt.__all__),
        ("lateprompt.data", import_module("lateprompt.data").__all__),
        ("lateprompt.methods", ["Method", "Shape"]),
        ("lateprompt.prompts", ["GeneratorSpec", "PromptGenerator", "PoolingGenerator"]),
        ("lateprompt.peft_method.extra", ["AdapterConfig", "BitFitConfig", "PHMLinear"]),
        ("lateprompt.interop.authors_checkpoint", ["load"]),
        ("lateprompt.run_folder", ["RunFolder"]),
        ("lateprompt.predictors.classifier", ["TextClassifier"]),
        ("lateprompt.predictors.text_generator", ["TextWriter"]),
    ]
    for home, names in homes:
        for name in names:
            yield name, getattr(import_module(home), name)
    yield from ((kind.__name__, kind) for kind in lateprompt.GENERATORS.values())
    readouts = import_module("lateprompt.readouts")
    for name, value in inspect.getmembers(readouts, inspect.isclass):
        if issubclass(value, readouts.Readout):
            yield name, value
    for name in (*modules_of("training"), *modules_of("state_cache")):
        for kind, value in inspect.getmembers(import_module(name), inspect.isclass):
            if kind.endswith("Settings"):
                yield kind, value


def documented() -> dict[str, object]:
    """The public classes and functions by name, tables and types of annotations aside."""
    return {name: value for name, value in public() if inspect.isclass(value) or inspect.isfunction(value)}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Examples write into a folder of their own, and what they register is forgotten."""
    monkeypatch.chdir(tmp_path)
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def failures_of(test: doctest.DocTest) -> str:
    """What goes wrong in an example, or nothing."""
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("part", PARTS)
def test_examples_run(part):
    finder, failures = doctest.DocTestFinder(), []
    for name in modules_of(part):
        for test in finder.find(import_module(name), name):
            if test.examples and test.name not in NOT_RUNNING:
                failures.append(failures_of(test))
    if any(failures):
        pytest.fail("".join(failures), pytrace=False)


def copied(name: str, value: object) -> doctest.DocTest:
    """The examples of a docstring as a user copies them: without the names of its module."""
    return doctest.DocTestParser().get_doctest(inspect.cleandoc(value.__doc__ or ""), {}, name, None, 0)


def is_missing(test: doctest.DocTest) -> bool:
    """Whether nothing in a docstring runs."""
    return all(example.options.get(doctest.SKIP) for example in test.examples)


def test_what_a_user_imports_has_an_example_to_copy():
    missing, failures = [], []
    for name, value in documented().items():
        test = copied(name, value)
        if name in WITHOUT_EXAMPLE:
            continue
        if is_missing(test):
            missing.append(name)
        failures.append(failures_of(test))
    assert not missing
    if any(failures):
        pytest.fail("".join(failures), pytrace=False)


def test_the_lists_are_not_out_of_date():
    known = documented()
    gone = sorted(WITHOUT_EXAMPLE - set(known))
    listed = {name: copied(name, known[name]) for name in sorted(WITHOUT_EXAMPLE & set(known))}
    done = [name for name, test in listed.items() if not is_missing(test) and not failures_of(test)]
    assert not gone + done, "take these names off WITHOUT_EXAMPLE"
    modules = [name for part in PARTS for name in modules_of(part)]
    tests = [test for name in modules for test in doctest.DocTestFinder().find(import_module(name), name)]
    found = {test.name: test for test in tests}
    runs = sorted(name for name in NOT_RUNNING if name not in found or not failures_of(found[name]))
    assert not runs, "take these names off NOT_RUNNING"
