"""Metrics of predicted classes; scikit-learn computes them.

It is imported where it is used: with SciPy and pandas behind it, it is a fifth of a process before its first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lateprompt.data.generation_task import TEXT_METRICS
from lateprompt.data.task import MULTI_LABEL_METRICS
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import did_you_mean

Labels = np.ndarray[Any, np.dtype[Any]]


def accuracy(labels_true: Labels, labels_pred: Labels) -> float:
    """Share of right predictions."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels_true, labels_pred))


def macro_f1(labels_true: Labels, labels_pred: Labels) -> float:
    """Mean F1 over the task's classes that occur in either argument; 0 for a class that is never right."""
    from sklearn.metrics import f1_score

    occurring = np.unique(np.concatenate([labels_true, labels_pred]))
    known = occurring[occurring != UNKNOWN]
    return float(f1_score(labels_true, labels_pred, labels=known, average="macro", zero_division=0))


def mcc(labels_true: Labels, labels_pred: Labels) -> float:
    """Matthews correlation, -1 to 1; 0 where one side has a single class."""
    from sklearn.metrics import matthews_corrcoef

    # scikit-learn gives 0 too, but warns at every evaluation.
    if (labels_true == labels_true[0]).all() or (labels_pred == labels_pred[0]).all():
        return 0.0
    return float(matthews_corrcoef(labels_true, labels_pred))


def f1(labels_true: Labels, labels_pred: Labels) -> float:
    """F1 of class 1, as GLUE counts MRPC and QQP; 0 where class 1 never occurs."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels_true, labels_pred, labels=[1], average="macro", zero_division=0))


def accuracy_f1_mean(labels_true: Labels, labels_pred: Labels) -> float:
    """Mean of accuracy and `f1`, GLUE's score of MRPC and QQP."""
    return (accuracy(labels_true, labels_pred) + f1(labels_true, labels_pred)) / 2


METRICS: dict[str, Callable[[Labels, Labels], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "mcc": mcc,
    "f1": f1,
    "accuracy_f1_mean": accuracy_f1_mean,
}
"""Metric name to function of true and predicted class ids, each `(examples,)`."""

UNKNOWN = -2
"""The class id of a label that the task does not have: no prediction is right."""
ALWAYS = ("accuracy", "macro_f1", "mcc")


def compute_metrics(
    names: Sequence[str], labels_true: Labels, labels_pred: Labels, num_labels: int
) -> dict[str, float]:
    """The metrics `ALWAYS` computed and the named ones.

    Args:
        names: names in `METRICS`.
        labels_true: class ids, `(examples,)`; `UNKNOWN` for a label that the task does not have.
        labels_pred: class ids, `(examples,)`.
        num_labels: number of classes.

    Raises:
        LatePromptError: an unknown metric, no examples, shapes that differ, or a class id outside 0..num_labels-1.
    """
    _check_names(names)
    labels_true, labels_pred = np.asarray(labels_true), np.asarray(labels_pred)
    if labels_true.ndim != 1 or labels_true.shape != labels_pred.shape:
        raise LatePromptError(
            f"labels have shapes {labels_true.shape} and {labels_pred.shape}; give two equal (examples,)"
        )
    if not labels_true.size:
        raise LatePromptError("there are no examples to score; give at least one")
    for labels in (labels_true[labels_true != UNKNOWN], labels_pred):
        if labels.size and (labels.min() < 0 or labels.max() >= num_labels):
            raise LatePromptError(
                f"class ids go from {labels.min()} to {labels.max()}; {num_labels} labels have 0 to {num_labels - 1}"
            )
    return {name: METRICS[name](labels_true, labels_pred) for name in dict.fromkeys((*ALWAYS, *names))}


def check_metrics(names: Sequence[str]) -> None:
    """Raise LatePromptError for a metric that is unknown, or needs a package that is not installed."""
    if any(name in TEXT_METRICS for name in names):  # a text-to-text task, which has checked their names
        if "rouge_l" in names:
            _rouge_scorer()
        return
    if not is_multi_label(names):  # a multi-label task has checked its own
        _check_names(names)


def is_multi_label(names: Sequence[str]) -> bool:
    """Whether the metrics are those of a multi-label task."""
    return MULTI_LABEL_METRICS[0] in names


def primary_metric(names: Sequence[str]) -> str:
    """The metric that chooses the best epoch: `accuracy_f1_mean` if it is named, else the first.

    Of texts it is perplexity, of multi-label tasks micro F1.

    Raises:
        LatePromptError: an unknown metric.
    """
    if any(name in TEXT_METRICS for name in names):
        return "perplexity"
    if is_multi_label(names):
        return "micro_f1"
    _check_names(names)
    if "accuracy_f1_mean" in names:
        return "accuracy_f1_mean"
    return names[0] if names else "accuracy"


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether a metric's value is better than the best so far (None: there is none)."""
    if best is None:
        return True
    return value < best if name in LOWER_IS_BETTER else value > best


def text_metrics(names: Sequence[str], targets: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """The named metrics of written texts.

    Args:
        names: exact_match (share of texts equal to their target, apart from space around them), rouge_l (mean
            F-measure of ROUGE-L without stemming, Lin 2004, by the package rouge-score).
        targets: what should have been written.
        written: what was.

    Raises:
        LatePromptError: an unknown metric, nothing to score, or rouge_l without the package.
    """
    if not targets or len(targets) != len(written):
        raise LatePromptError(
            f"{len(written)} texts cannot be scored against {len(targets)} targets; give one for each"
        )
    return {name: WRITTEN[name](targets, written) for name in names if name != "perplexity"}


def _exact_match(targets: Sequence[str], written: Sequence[str]) -> float:
    return float(np.mean([target.strip() == text.strip() for target, text in zip(targets, written, strict=True)]))


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise LatePromptError(
            "metric 'rouge_l' needs the package rouge-score: pip install 'lateprompt[text]'"
        ) from None
    return RougeScorer(["rougeL"])


def _rouge_l(targets: Sequence[str], written: Sequence[str]) -> float:
    scorer = _rouge_scorer()
    pairs = zip(targets, written, strict=True)
    return float(np.mean([scorer.score(target, text)["rougeL"].fmeasure for target, text in pairs]))


WRITTEN: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "exact_match": _exact_match,
    "rouge_l": _rouge_l,
}
"""Metric name to function of targets and written texts."""
LOWER_IS_BETTER = ("perplexity", "loss")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in METRICS:
            raise LatePromptError(
                f"metric {name!r} is unknown; choose from {', '.join(METRICS)}{did_you_mean(name, METRICS)}"
            )
