"""What users hand to the estimator, checked: texts, labels, weights, rows to evaluate on."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from lateprompt.data import MultiLabelTask, Row, Task, label_name
from lateprompt.data.labels import is_list
from lateprompt.data.rows import check_characters
from lateprompt.training.class_weights import class_weights as class_weights
from lateprompt.training.metrics import check_metrics
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import some_of

Texts = list[tuple[str, str | None]]


def as_texts(X: Any, what: str = "X") -> Texts:
    """Texts or pairs as (text, text_pair or None).

    Raises:
        LatePromptError: no texts, something that is no string, or more than two columns.
    """
    if isinstance(X, str):
        raise LatePromptError(f"{what} is one string ({X[:40]!r}); give a list of texts")
    if not np.iterable(X) and not hasattr(X, "__array__"):
        raise LatePromptError(f"{what} is {X!r}; give a list of texts")
    if isinstance(X, Set | Mapping):
        raise LatePromptError(f"{what} is a {type(X).__name__}, which has no rows in an order; give a list of texts")
    if hasattr(X, "to_pylist") and not hasattr(X, "column_names"):  # a column of pyarrow
        X = X.to_pylist()
    values = X.to_numpy() if hasattr(X, "to_numpy") else X if np.iterable(X) else np.asarray(X)
    rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
    texts: Texts = []
    for number, row in enumerate(rows):
        columns = list(row) if isinstance(row, list | tuple | np.ndarray) else [row]
        if not 1 <= len(columns) <= 2:
            raise LatePromptError(
                f"{what} row {number} has {len(columns)} columns; give a text, or a text and its pair"
            )
        for column in columns:
            if not isinstance(column, str):
                raise LatePromptError(f"{what} row {number} is {column!r}, not a string; give texts")
            check_characters(column, f"{what} row {number}")
        texts.append((columns[0], columns[1] if len(columns) == 2 else None))
    if len({pair is None for _, pair in texts}) > 1:
        raise LatePromptError(f"{what} mixes texts and pairs; give all rows one text, or all two")
    if not texts:
        raise LatePromptError(f"{what} is empty; give at least one text")
    return texts


def column_names(X: Any) -> list[str] | None:
    """The names of a data frame's columns, if they are texts."""
    names = list(X.columns) if hasattr(X, "columns") and np.iterable(X.columns) else []
    return names if names and all(isinstance(name, str) for name in names) else None


@dataclass(frozen=True)
class Labels:
    """The labels of some rows.

    Args:
        values: (rows,) as they were given.
        names: their names in the task.
    """

    values: np.ndarray
    names: list[str]

    def classes(self) -> np.ndarray:
        """The labels there are, sorted."""
        return np.unique(self.values)

    def of(self, kept: np.ndarray) -> Labels:
        """Those of some rows, given by a mask (rows,)."""
        return Labels(self.values[kept], [name for name, keep in zip(self.names, kept, strict=True) if keep])

    def answers(self) -> list[dict[str, Any]]:
        """Of each row what a `Row` says of its answer."""
        return [{"label": name} for name in self.names]


@dataclass(frozen=True)
class LabelSets:
    """The labels of some rows that may have several each.

    Args:
        values: (labels,) the labels there are, as they were given: a matrix's columns, or sorted.
        sets: the names of each row's labels.
        indicator: whether they were given as a matrix of 0 and 1.
    """

    values: np.ndarray
    sets: list[tuple[str, ...]]
    indicator: bool

    def classes(self) -> np.ndarray:
        """The labels there are."""
        return self.values

    def of(self, kept: np.ndarray) -> LabelSets:
        """Those of some rows, given by a mask (rows,)."""
        return replace(self, sets=[own for own, keep in zip(self.sets, kept, strict=True) if keep])

    def answers(self) -> list[dict[str, Any]]:
        """Of each row what a `Row` says of its answer."""
        return [{"labels": own} for own in self.sets]


def as_label_sets(y: Any, rows: int, what: str = "y") -> LabelSets | None:
    """Several labels a row, from a list of lists of labels or a matrix of 0 and 1; None for one label a row.

    Args:
        y: a list with a list (tuple, set) of labels for each text; or a matrix (rows, labels): an array of two
            dimensions, a sparse one, a data frame (its columns are the labels), or equally long lists of 0 and 1, as
            scikit-learn has it.
        rows: how many texts there are.
        what: its name, for messages.

    Raises:
        LatePromptError: another number of rows, a matrix with other values, or labels that cannot be.
    """
    if hasattr(y, "toarray"):
        y = y.toarray()
    names = list(y.columns) if hasattr(y, "columns") else None
    values = y.to_numpy() if hasattr(y, "to_numpy") else y
    given = list(values) if isinstance(values, list | tuple | np.ndarray) else []
    is_matrix = isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] > 1
    if not is_matrix and not (given and all(map(is_list, given))):
        return None
    if isinstance(values, np.ndarray) and values.ndim == 2 and not is_matrix:
        return None  # a column of labels
    if len(given) != rows:
        raise LatePromptError(f"{what} has {len(given)} rows for {rows} texts; give each text its labels")
    if is_matrix or _is_indicator(given):
        return _from_matrix(np.asarray(values), names, what)
    flat = [label for own in given for label in own]
    if not flat:
        raise LatePromptError(f"{what} has no label at all; give some texts labels")
    labels = as_labels(flat, len(flat), f"{what}'s labels")
    sets, start = [], 0
    for own in given:
        sets.append(tuple(dict.fromkeys(labels.names[start : start + len(own)])))
        start += len(own)
    return LabelSets(labels.classes(), sets, indicator=False)


def _is_indicator(given: Sequence[Any]) -> bool:
    """Whether lists are the rows of a matrix: equally long, of 0 and 1 alone."""
    width = len(given[0])
    same = width > 1 and all(isinstance(own, list | tuple | np.ndarray) and len(own) == width for own in given)
    return same and all(not isinstance(value, str) and value in (0, 1) for own in given for value in own)


def _from_matrix(matrix: np.ndarray, names: Sequence[Any] | None, what: str) -> LabelSets:
    wrong = np.argwhere(~np.isin(matrix, (0, 1)))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise LatePromptError(
            f"{what}[{row}][{column}] is {matrix[row, column]!r}; give one label a text, a list of labels a text, or a "
            "matrix of 0 and 1 with a column for each label"
        )
    labels = as_labels(list(range(matrix.shape[1])) if names is None else names, matrix.shape[1], f"{what}'s columns")
    own = np.array(labels.names, dtype=object)
    return LabelSets(labels.values, [tuple(own[row]) for row in matrix.astype(bool)], indicator=True)


def as_labels(y: Any, rows: int, what: str = "y") -> Labels:
    """One label a row.

    Raises:
        LatePromptError: another shape, a gap, labels of several types, fractions, or two labels with one name.
    """
    values = np.asarray(y)
    if values.ndim != 1 or len(values) != rows:
        raise LatePromptError(f"{what} has shape {values.shape} for {rows} texts; give one label a text")
    given = list(y if np.iterable(y) else values)  # numpy makes texts of numbers beside texts
    gap = next((number for number, label in enumerate(given) if _is_endless(label) or label_name(label) is None), None)
    if gap is not None:
        raise LatePromptError(f"{what}[{gap}] is a gap, NaN or infinity; give every text a label")
    _check_kinds(given, what)
    if values.dtype.kind == "O" and not isinstance(given[0], str):
        values = np.asarray(given)  # a column of objects that are numbers, or of pandas' own kinds
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        first = values[values != np.floor(values)][0]
        raise LatePromptError(
            f"Unknown label type: {what} has fractions ({first!s}), as of a regression; give texts or whole numbers"
        )
    names = [label_name(label) or "" for label in values]
    spellings: dict[str, Any] = {}
    for name, label in zip(names, values.tolist(), strict=True):
        if spellings.setdefault(name, label) != label:
            raise LatePromptError(
                f"{what} has the labels {spellings[name]!r} and {label!r}, which are one label by name ({name!r}); "
                "write them alike, or apart"
            )
    return Labels(values, names)


def label_names(y: Any, rows: int) -> list[str]:
    """The names of labels to compare with, of whatever types.

    Raises:
        LatePromptError: another shape, or a gap.
    """
    shape = np.shape(y)
    if shape != (rows,):
        raise LatePromptError(f"y has shape {shape} for {rows} texts; give one label a text")
    values = np.asarray(y)
    dates = values.astype("datetime64[ns]") if values.dtype.kind == "M" else None  # whatever their units
    names = [label_name(label) for label in (y if dates is None else dates)]
    if None in names:
        raise LatePromptError(f"y[{names.index(None)}] is a gap or NaN; give every text a label")
    return [name for name in names if name is not None]


def _is_endless(label: Any) -> bool:
    return isinstance(label, Real) and label in (float("inf"), float("-inf"))


def _check_kinds(labels: Sequence[Any], what: str) -> None:
    kinds: dict[str, int] = {}
    for number, label in enumerate(labels):
        kinds.setdefault(_kind(label), number)
    if len(kinds) > 1:
        (one, i), (other, j) = list(kinds.items())[:2]
        raise LatePromptError(
            f"{what} mixes {one} and {other} ({what}[{i}] is {labels[i]!r}, {what}[{j}] is {labels[j]!r}); "
            "give labels of one type"
        )


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "texts"
    if isinstance(label, bool | np.bool_):
        return "booleans"
    return "dates" if isinstance(label, datetime.date | np.datetime64) else "numbers"


def as_weights(sample_weight: Any, rows: int) -> np.ndarray | None:
    """One weight (rows,) a row, or None.

    Raises:
        LatePromptError: another shape, something that is no number, negative or endless, or nothing but zeros.
    """
    if sample_weight is None:
        return None
    values = np.asarray(sample_weight)
    if values.ndim != 1 or len(values) != rows:
        raise LatePromptError(f"sample_weight has shape {values.shape} for {rows} texts; give one weight a text")
    if values.dtype.kind not in "biuf":
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            raise LatePromptError(
                f"sample_weight {str(values[:3])[:80]} is no array of numbers; give numbers"
            ) from None
    values = values.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(wrong):
        raise LatePromptError(
            f"sample_weight[{wrong[0]}] is {values[wrong[0]]}; give every text a finite weight of 0 or more"
        )
    if not values.any():
        raise LatePromptError("sample_weight is zero for all texts; give at least two classes a weight above 0")
    return values


@dataclass(frozen=True)
class TrainRows:
    """The rows to train on that count.

    Args:
        texts: the texts, or pairs.
        labels: their labels.
        weights: (rows,) above 0; None: 1 each.
    """

    texts: Texts
    labels: Labels | LabelSets
    weights: np.ndarray | None

    @classmethod
    def of(cls, X: Any, y: Any, sample_weight: Any) -> TrainRows:
        """From what `fit` is given; LatePromptError for what cannot be."""
        texts = as_texts(X)
        labels = as_label_sets(y, len(texts)) or as_labels(y, len(texts))
        return cls(texts, labels, None)._weighted(as_weights(sample_weight, len(texts)))

    @property
    def pair(self) -> bool:
        """Whether each row has two texts."""
        return self.texts[0][1] is not None

    def _weighted(self, weights: np.ndarray | None) -> TrainRows:
        if weights is None or weights.all():
            return replace(self, weights=weights)
        kept = weights > 0
        texts = [text for text, keep in zip(self.texts, kept, strict=True) if keep]
        return TrainRows(texts, self.labels.of(kept), weights[kept])

    def with_class_weights(self, class_weight: Any, task: Task) -> TrainRows:
        """The same with each row's weight times its class's; LatePromptError for what cannot be."""
        if class_weight is None:
            return self
        if isinstance(self.labels, LabelSets):
            raise LatePromptError(
                f"class_weight {class_weight!r} is for one label a text, but y has several; leave it out, or give "
                "sample_weight"
            )
        weights = class_weights(class_weight, self.labels.names, task.labels, self.weights)
        weights = weights if self.weights is None else weights * self.weights
        if not weights.any():
            raise LatePromptError(f"class_weight {class_weight!r} is zero for all labels of y; give one more than that")
        return self._weighted(weights)

    def relative_weights(self) -> np.ndarray | None:
        """Weights (rows,) that are 1 on the average; None where all are alike."""
        if self.weights is None or (self.weights == self.weights[0]).all():
            return None
        return (self.weights / self.weights.mean()).astype(np.float32)  # type: ignore[no-any-return]

    def rows(self) -> list[Row]:
        """For an encoder."""
        return [Row(a, b, source={}, **own) for (a, b), own in zip(self.texts, self.labels.answers(), strict=True)]


def dev_rows(X: Any, y: Any, task: Task, pair: bool) -> list[Row]:
    """The rows of an `eval_set`; LatePromptError for what cannot be."""
    check_metrics(task.metrics)
    texts = as_texts(X, "eval_set's X")
    if (texts[0][1] is not None) != pair:
        raise LatePromptError(f"eval_set's X has {1 if pair else 2} text columns, X has {2 if pair else 1}")
    labels: Labels | LabelSets
    if isinstance(task, MultiLabelTask):
        sets = as_label_sets(y, len(texts), "eval_set's y")
        if sets is None:
            raise LatePromptError("eval_set's y has one label a text, y has several; give both alike")
        labels, names = sets, [name for own in sets.sets for name in own]
    else:
        labels = as_labels(y, len(texts), "eval_set's y")
        names = labels.names
    known = frozenset(task.labels)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise LatePromptError(f"eval_set's y has label {unknown!r}, y has {some_of(task.labels)}")
    return [Row(a, b, source={}, **own) for (a, b), own in zip(texts, labels.answers(), strict=True)]


def as_eval_set(eval_set: Any) -> tuple[Any, Any] | None:
    """Texts and labels to evaluate on, from `(X, y)` or `[(X, y)]`.

    Raises:
        LatePromptError: anything else.
    """
    if eval_set is None:
        return None
    if isinstance(eval_set, list) and len(eval_set) == 1:
        eval_set = eval_set[0]
    if not isinstance(eval_set, tuple) or len(eval_set) != 2:
        size = f" of {len(eval_set)}" if isinstance(eval_set, list | tuple) else ""
        raise LatePromptError(
            f"eval_set is a {type(eval_set).__name__}{size}; give one set of texts and labels: eval_set=(X, y)"
        )
    return eval_set[0], eval_set[1]
