"""What the losses of a class's rows are multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

from lateprompt.data import label_name
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.names import BALANCED
from lateprompt.utils.suggestions import some_of


def class_weights(
    class_weight: Any, labels: Sequence[str], known: Sequence[str], weights: np.ndarray | None = None
) -> np.ndarray:
    """The weight (rows,) of each row's class.

    Args:
        class_weight: "balanced" (in inverse proportion to how often a class occurs), or label to weight; a class
            that it leaves out has 1.
        labels: the names of the rows' labels.
        known: names of all labels that `class_weight` may have.
        weights: the rows' own weights (rows,), by which a class occurs the more often.

    Raises:
        LatePromptError: something else, an unknown label, or a weight that cannot be.

    Example:
        >>> class_weights("balanced", ["good", "good", "good", "bad"], ["bad", "good"]).round(2).tolist()
        [0.67, 0.67, 0.67, 2.0]
    """
    names, rows = np.unique(labels, return_inverse=True)
    if isinstance(class_weight, str) and class_weight == BALANCED:
        often = np.bincount(rows, weights=weights)
        return (often.sum() / (len(names) * often))[rows]  # type: ignore[no-any-return]
    if not isinstance(class_weight, Mapping) and not (hasattr(class_weight, "items") and hasattr(class_weight, "keys")):
        raise LatePromptError(
            f"class_weight {class_weight!r} is unknown; give None, 'balanced' or a mapping from label to weight"
        )
    by_name: dict[str | None, float] = {}
    for label, weight in class_weight.items():
        name = label_name(label)
        if name not in known:
            raise LatePromptError(
                f"class_weight has label {label!r}, which the task does not have; known are {some_of(known)}"
            )
        if name in by_name:
            raise LatePromptError(f"class_weight has label {name!r} twice; give each label one weight")
        good = isinstance(weight, Number) and not isinstance(weight, bool | complex)
        if not good or not np.isfinite(weight) or weight < 0:
            raise LatePromptError(f"class_weight of {label!r} is {weight!r}; give a finite number of 0 or more")
        by_name[name] = float(weight)
    return np.array([by_name.get(name, 1.0) for name in names.tolist()])[rows]


def row_weights(class_weight: Any, labels: Sequence[str], known: Sequence[str]) -> np.ndarray | None:
    """The weights (rows,) of rows by their classes, 1 on the average; None where all are alike.

    Args:
        class_weight, labels, known: as in `class_weights`; None: no weights.

    Raises:
        LatePromptError: as `class_weights`; or weights that are zero for all rows.
    """
    if class_weight is None:
        return None
    weights = class_weights(class_weight, labels, known)
    if not weights.any():
        raise LatePromptError(
            f"class_weight {class_weight!r} is zero for all labels of the training rows; give one more than that"
        )
    return None if (weights == weights[0]).all() else (weights / weights.mean()).astype(np.float32)
