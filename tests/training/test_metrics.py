"""Metrics, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lateprompt.training.metrics import METRICS, compute_metrics, primary_metric

TRUE = np.array([1, 1, 1, 0, 0, 0, 0, 0])
PRED = np.array([1, 1, 0, 1, 0, 0, 0, 0])


def test_values_by_hand() -> None:
    found = compute_metrics(["f1", "accuracy_f1_mean"], TRUE, PRED, 2)
    assert list(found) == ["accuracy", "macro_f1", "mcc", "f1", "accuracy_f1_mean"]
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["mcc"] == pytest.approx((2 * 4 - 1) / 15)
    assert found["accuracy_f1_mean"] == pytest.approx((6 / 8 + 2 / 3) / 2)
    assert all(type(value) is float for value in found.values())


def test_three_are_always_there() -> None:
    assert list(compute_metrics(["accuracy"], TRUE, PRED, 2)) == ["accuracy", "macro_f1", "mcc"]


def test_f1_is_of_class_one_whatever_the_number_of_classes() -> None:
    found = compute_metrics(["f1"], np.array([0, 1, 2, 1]), np.array([0, 1, 1, 2]), 3)
    assert found["f1"] == pytest.approx(1 / 2)


@pytest.mark.filterwarnings("error")
def test_one_sided_predictions_give_no_warning() -> None:
    found = compute_metrics(["f1"], np.zeros(4, dtype=int), np.zeros(4, dtype=int), 2)
    assert (found["accuracy"], found["f1"], found["mcc"]) == (1.0, 0.0, 0.0)


def test_the_metric_that_chooses() -> None:
    assert primary_metric(["accuracy", "f1", "accuracy_f1_mean"]) == "accuracy_f1_mean"
    assert primary_metric(["f1", "accuracy"]) == "f1"
    assert primary_metric([]) == "accuracy"


@pytest.mark.parametrize("call", [lambda: compute_metrics(["acc"], TRUE, PRED, 2), lambda: primary_metric(["acc"])])
def test_an_unknown_metric_lists_the_names(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"metric 'acc' is unknown; choose from {', '.join(METRICS)}"):
        call()


@pytest.mark.parametrize(
    ("labels_true", "labels_pred", "message"),
    [
        ([], [], "no examples"),
        ([0, 1], [0], "shapes"),
        ([0, -1], [0, 1], "class ids go from -1"),
        ([0, 1], [0, 2], "to 2; 2 labels"),
    ],
)
def test_bad_labels(labels_true: list[int], labels_pred: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics([], np.array(labels_true), np.array(labels_pred), 2)
