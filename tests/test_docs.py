"""What the pages say of files and names: links resolve, modules, functions and imports exist, lines are short."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lateprompt"
HISTORY = ("decisions.md",)
"""Pages of dated entries, which keep the names of their day."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_FILES = ("chosen.yaml", "own.yaml", "run.yaml", "task.yaml")
"""Examples of a user's own files."""
CURRENT = [page for page in PAGES if page.name not in HISTORY]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

COMING = {"docs/figures/few-shot.svg"}
"""What changes bring that are merged beside this one: to be emptied then."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`([\w./-]+\.(?:py|yaml))`")
STEP = re.compile(r"`([\w/]+\.py)` \((`[\w.]+`(?:, `[\w.]+`)*)\)")
"""A file of the package, and in brackets what does the work there."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def heading_anchors(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link) or link in COMING:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in heading_anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_named_files_exist(page):
    places = (ROOT, PACKAGE, ROOT / "experiments", page.parent)
    named = {name for name in PATH.findall(text_of(page)) if Path(name).name not in OWN_FILES}
    assert {name for name in named - COMING if not any((place / name).exists() for place in places)} == set()


def test_the_walk_names_what_there_is():
    steps = STEP.findall(ARCHITECTURE)
    assert len(steps) >= 15
    for file, names in steps:
        if file in COMING:
            continue
        defined = set()
        for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                inside = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                defined |= {node.name, *(f"{node.name}.{name}" for name in inside)}
            elif isinstance(node, ast.FunctionDef):
                defined.add(node.name)
        for name in re.findall(r"[\w.]+", names):
            assert name in defined | COMING, f"{file} has no {name}"


def test_the_picture_shows_every_package():
    picture = ARCHITECTURE.split("```")[1]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"demo"}
    assert packages == {name for name in re.findall(r"\b[a-z_]+\b", picture) if name in packages}


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_imports_of_python_blocks_work(page):
    for block in re.findall(r"```python\n(.*?)```", text_of(page), re.S):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.ImportFrom)
                and str(node.module).startswith("lateprompt")
                and node.module not in COMING
            ):
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_dotted_names_exist(page):
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    for name in re.findall(r"`(lateprompt(?:\.\w+)+)`", prose):
        if name in COMING:
            continue
        parent, _, last = name.rpartition(".")
        assert hasattr(import_module(parent), last) or import_module(name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_have_at_most_120_columns(page):
    long = [line for line in text_of(page).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_pages_begin_with_whom_they_are_for(page):
    if page.name != "README.md":
        assert re.match(r"# .*\n\nThis page is for ", text_of(page))
