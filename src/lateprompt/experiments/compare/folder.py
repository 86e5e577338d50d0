"""What a comparison may write into its folder: what no comparison made stays."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import yaml

from lateprompt.experiments.compare.plan import Plan
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import check_place, given_path
from lateprompt.utils.yaml_files import read_yaml

PLAN_FILE = "plan.yaml"
CHOSEN_FILE = "chosen.yaml"
SEARCH_FILE = "search.jsonl"
LOCK_FILE = "lock"
WRITTEN = (
    PLAN_FILE,
    CHOSEN_FILE,
    SEARCH_FILE,
    "results.csv",
    "results.parquet",
    "worker.log",
    "runs",
    LOCK_FILE,
)


def plan_text(plan: Plan) -> str:
    """A plan as its file holds it."""
    return yaml.safe_dump(plan.to_dict(), sort_keys=False, allow_unicode=True)


def check_results(results: str | Path) -> Path:
    """Refuse a folder in which a comparison would replace files that none has made; makes nothing.

    Raises:
        LatePromptError: a blank name, a file, a folder that cannot be written to, or one with such files.
    """
    folder = given_path(results)
    if folder.exists() and not folder.is_dir():
        raise LatePromptError(f"output {str(folder)!r} is a file; give a folder")
    check_place(folder.resolve(), folder, "output folder")
    if folder.is_dir() and not _is_ours(folder):
        for name in WRITTEN:
            if (folder / name).exists() or (folder / name).is_symlink():
                raise LatePromptError(
                    f"folder {str(folder)!r} has {name!r}, which no comparison made and this one would replace; move "
                    "it away, or give another --output"
                )
    return folder


def check_plan_file(plan: Plan, file: str | Path, results: Path) -> None:
    """Raise LatePromptError if the comparison would replace the plan that it was given by another text."""
    own = results / PLAN_FILE
    with suppress(OSError, UnicodeDecodeError):
        if own.samefile(file) and own.read_text(encoding="utf-8") != plan_text(plan):
            raise LatePromptError(
                f"plan {str(file)!r} would be replaced by the resolved one; copy it elsewhere, or give another --output"
            )


def _is_ours(folder: Path) -> bool:
    lock = folder / LOCK_FILE
    if lock.is_file() and not lock.is_symlink() and not lock.stat().st_size:
        return True
    with suppress(LatePromptError, OSError):
        saved = read_yaml(folder / PLAN_FILE, "plan")
        return isinstance(saved, dict) and {field.name for field in fields(Plan)} <= set(saved)
    return False
