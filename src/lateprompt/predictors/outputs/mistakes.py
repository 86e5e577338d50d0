"""A classifier's mistakes on labelled rows, for a file: the most confident ones first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lateprompt.data import Row
from lateprompt.predictors.assessment import AnyAssessment, MultiLabelAssessment
from lateprompt.predictors.outputs.columns import Survey
from lateprompt.predictors.outputs.file import PredictionFile
from lateprompt.predictors.predicting import Prediction

_TOGETHER = 2048
"""Rows that are written at a time."""


def write_mistakes(path: str | Path, rows: Sequence[Row], found: AnyAssessment, *, overwrite: bool = False) -> int:
    """Write the rows that are predicted wrongly, the most confident mistakes first, and return how many there are.

    Each has the row's own columns, `expected` (its label), `prediction` and the prediction's `score`; of several labels
    a row, lists of them, and the score of `MultiLabelAssessment.confidences`. The suffix chooses the format, as for
    predictions.

    Args:
        path: the file.
        rows: the rows.
        found: what `TextClassifier.assess` says of them.
        overwrite: replace a file that is none of predictions or mistakes.

    Raises:
        LatePromptError: a file that is none of ours, or one that cannot be written.
    """
    numbers, answers, sure = found.mistakes().tolist(), found.answers(), found.confidences()
    several = isinstance(found, MultiLabelAssessment)
    survey = Survey().of(rows[i] for i in numbers)
    file = PredictionFile(path, labels=None, survey=survey, overwrite=overwrite, mistakes=True)
    with file:
        for start in range(0, len(numbers), _TOGETHER):
            part = numbers[start : start + _TOGETHER]
            file.write(
                [
                    Prediction(
                        rows[i].source,
                        answers[i],
                        {"score": round(float(sure[i]), 6)},
                        expected=list(rows[i].labels or ()) if several else rows[i].label,
                    )
                    for i in part
                ]
            )
    return len(numbers)
