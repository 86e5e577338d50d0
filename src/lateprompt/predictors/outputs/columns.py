"""Which columns a prediction has in a file: the row's own, then `prediction`, scores and, perhaps, `error`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lateprompt.data import Row
from lateprompt.data.labels import BETWEEN_LABELS
from lateprompt.data.rows import BadRow
from lateprompt.predictors.predicting import Prediction
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import as_json

Line = dict[str, Any]
MISTAKES = ("expected", "prediction", "score")
"""Our columns in a file of mistakes."""


class Survey:
    """What a first pass over the rows tells of them: how many, which columns they have, and of which types.

    Attributes:
        rows: how many rows.
        columns: the columns in the order of their first occurrence, each with the types of its values.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.columns: dict[str, set[type]] = {}

    def of(self, rows: Iterable[Row | BadRow]) -> Survey:
        """Look at each row and keep none."""
        for row in rows:
            self.rows += 1
            self.add(row.source)
        return self

    def add(self, source: Mapping[str, Any]) -> None:
        """Count a row's columns and types in."""
        for name, value in source.items():
            kinds = self.columns.get(name)
            if kinds is None:
                kinds = self.columns[name] = set()
            kinds.add(type(value))


class Columns:
    """From predictions to the lines of a file.

    A column of the input that has the name of one of ours is kept under another: `prediction` as `prediction_input`.

    Args:
        labels: the task's labels; None for written texts. Of several runs, each task's: its prediction then has the
            task's name for a column.
        errors: whether there may be rows with an error.
        flat: for tables: one column for each label (`score_<label>`, of several runs `score_<task>_<label>`), and an
            `error` column that every row has.
        embeddings: whether there is a column `embedding`.
        mistakes: whether the rows are mistakes: ours are then `expected` (the row's own label), `prediction` and its
            `score`.

    Attributes:
        own: our columns, in their order.
        renamed: columns of the input to what they are called here, those that were met so far.
    """

    def __init__(
        self,
        labels: Sequence[str] | Mapping[str, Sequence[str]] | None,
        *,
        errors: bool,
        flat: bool,
        embeddings: bool = False,
        mistakes: bool = False,
    ) -> None:
        self.flat, self.mistakes = flat, mistakes
        self.tasks = labels if isinstance(labels, Mapping) else None
        self.labels: Sequence[str] = () if labels is None or isinstance(labels, Mapping) else labels
        names = ["prediction"] if self.tasks is None else list(self.tasks)
        scores = [] if labels is None else ["scores"]
        if flat:
            scores = [f"score_{label}" for label in self.labels]
            scores += [_score(task, label) for task, own in (self.tasks or {}).items() for label in own]
        more = [*scores, *(["embedding"] if embeddings else []), *(["error"] if errors else [])]
        self.own = list(MISTAKES) if mistakes else [*names, *more]
        twice = next((name for name in self.own if self.own.count(name) > 1), None)
        if twice is not None:
            raise LatePromptError(
                f"two columns of the output would be {twice!r}: rename the folder of the run that has this name"
            )
        self._taken = frozenset(self.own)
        self.renamed: dict[str, str] = {}

    def line(self, prediction: Prediction) -> Line:
        """One line of the file."""
        line = dict(prediction.source)
        if not self._taken.isdisjoint(line):
            line = {self.named(name, line): value for name, value in line.items()}
        if self.mistakes:
            score = next(iter((prediction.scores or {}).values()), None)
            answers = self._answer(prediction.expected), self._answer(prediction.prediction)
            line.update(zip(MISTAKES, (*answers, score), strict=True))
        elif self.tasks is not None:
            self._add_tasks(line, prediction)
        else:
            self._add_one(line, prediction)
        if prediction.embedding is not None:
            line["embedding"] = prediction.embedding
        if prediction.error is not None or (self.flat and "error" in self._taken):
            line["error"] = prediction.error
        return line

    def _add_one(self, line: Line, prediction: Prediction) -> None:
        line["prediction"] = self._answer(prediction.prediction)
        if self.flat:
            scores = prediction.scores or {}
            line.update((f"score_{label}", scores.get(label)) for label in self.labels)
        elif prediction.scores is not None:
            line["scores"] = prediction.scores

    def _answer(self, answer: str | Sequence[str] | None) -> str | Sequence[str] | None:
        """An answer for its column; of several labels, in a table, a text as `labels` columns have it."""
        return BETWEEN_LABELS.join(answer) if self.flat and isinstance(answer, list) else answer

    def _add_tasks(self, line: Line, prediction: Prediction) -> None:
        found = prediction.tasks or {}
        for task, labels in (self.tasks or {}).items():
            answer, scores = found.get(task, (None, {}))
            line[task] = self._answer(answer)
            if self.flat:
                line.update((_score(task, label), scores.get(label)) for label in labels)
        if not self.flat and prediction.tasks is not None:
            line["scores"] = {task: scores for task, (_, scores) in found.items()}

    def named(self, name: str, names: Iterable[str]) -> str:
        """What the input's column `name` is called beside our columns and its neighbours `names`."""
        if name not in self._taken:
            return name
        known = self.renamed.get(name)
        if known is None or known in names:
            known = next(other for other in _others(name) if other not in self._taken and other not in names)
            self.renamed[name] = known
        return known

    def header(self, survey: Survey) -> list[str]:
        """The columns of a table of these rows."""
        return [*(self.named(name, survey.columns) for name in survey.columns), *self.own]


def _score(task: str, label: str) -> str:
    return f"score_{task}_{label}"


def _others(name: str) -> Iterator[str]:
    yield f"{name}_input"
    number = 2
    while True:
        yield f"{name}_input_{number}"
        number += 1


def refuse_new_columns(line: Line, known: Mapping[str, Any], suffix: str, row: int) -> None:
    """A table's columns are written before its rows."""
    for name in line:
        if name not in known:
            raise LatePromptError(
                f"row {row} has a column {name!r} that no row before it has; a {suffix} file has the same columns from "
                "its beginning: write .jsonl"
            )


_strict = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=as_json).encode
_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, default=as_json).encode


def json_bytes(value: Any) -> bytes:
    """Valid JSON: what is not a number (NaN, infinity) is null, half a surrogate pair is escaped."""
    try:
        text = _strict(value)
    except ValueError:
        value = _without_nan(value)
        text = _strict(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _ascii(value).encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    if value is None or isinstance(value, str | int):
        return value
    return _without_nan(as_json(value))


def plain_text(value: Any) -> str | None:
    """A value as text in a table, None for nothing (NaN and infinity too): a text is itself, the rest its JSON."""
    if value is None or (isinstance(value, float) and value - value != 0):
        return None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    text = json_bytes(value).decode()
    return str(json.loads(text)) if text.startswith('"') else text
