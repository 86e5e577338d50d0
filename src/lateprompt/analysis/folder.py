"""The output folder of an analysis: results line by line, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import as_json, check_place, given_path, read_json, write_json, write_lines

FACTS_FILE, RESULTS_FILE, PAGE_FILE, FIGURES = "analysis.json", "results.jsonl", "report.html", "figures"


class AnalysisFolder:
    """A folder with the results of one analysis.

    Args:
        path: the folder; made with the first results.
        kind: which analysis.
        asked: what was to be analysed, as JSON: results of other settings are not mixed with these.
        inputs: files that the analysis reads, which none of its own may replace.

    Raises:
        LatePromptError: a folder with other files, or with an analysis of something else.

    Example:
        >>> import tempfile
        >>> from lateprompt.analysis.folder import AnalysisFolder
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = AnalysisFolder(f"{place}/layers", "layers", {"model": "a"})
        ...     folder.add([{"layer": 2, "score": 0.8}])
        ...     again = AnalysisFolder(f"{place}/layers", "layers", {"model": "a"})
        ...     again.has(layer=2), again.has(layer=3), again.results
        (True, False, [{'layer': 2, 'score': 0.8}])
    """

    def __init__(self, path: str | Path, kind: str, asked: Mapping[str, Any], inputs: Iterable[str] = ()) -> None:
        self.path = given_path(path)
        self.facts = json.loads(json.dumps({"analysis": kind, "asked": asked}, default=as_json))
        self.results: list[dict[str, Any]] = []
        if self.path.exists() and not self.path.is_dir():
            raise LatePromptError(f"output {str(self.path)!r} is a file; give a folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            check_place(self.path, self.path, "output")
            return
        if not (self.path / FACTS_FILE).is_file():
            raise LatePromptError(f"output {str(self.path)!r} has files of something else; give another folder")
        if any(Path(name).resolve().parent == self.path.resolve() for name in inputs):
            raise LatePromptError(f"output {str(self.path)!r} holds a file that is read; give another folder")
        found = read_json(self.path / FACTS_FILE, "analysis")
        if found.get("analysis") != kind:
            raise LatePromptError(
                f"output {str(self.path)!r} holds an analysis of {found.get('analysis')!r}, not of {kind!r}; give "
                "another folder"
            )
        before = found.get("asked")
        theirs, ours = (before if isinstance(before, dict) else {}), self.facts["asked"]
        changed = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        if changed:
            raise LatePromptError(
                f"output {str(self.path)!r} holds this analysis with other settings ({', '.join(changed)}); give the "
                "same ones to go on, or another folder"
            )
        self.results = _read_lines(self.path / RESULTS_FILE)

    def find(self, **key: Any) -> list[dict[str, Any]]:
        """Return the results that have these values."""
        return [row for row in self.results if all(row.get(name) == value for name, value in key.items())]

    def has(self, **key: Any) -> bool:
        """Return whether there is a result with these values."""
        return bool(self.find(**key))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep further results; they are on the disk when this returns, all or none of them."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / FACTS_FILE).exists():
            write_json(self.path / FACTS_FILE, self.facts)
        self.results += json.loads(json.dumps(list(rows), default=as_json))
        write_lines(self.path / RESULTS_FILE, self.results)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise LatePromptError(f"{str(path)!r} is broken in line {number}; remove that line, or the folder")
        rows.append(row)
    return rows
