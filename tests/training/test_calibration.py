"""Calibration: the temperature that made the scores is found, predictions stay, and few rows or odd ones do no harm."""

from __future__ import annotations

import numpy as np
import pytest

from lateprompt.training.calibration import (
    HIGHEST,
    LOWEST,
    Calibration,
    expected_calibration_error,
    fit_calibration,
)
from lateprompt.training.class_weights import row_weights
from lateprompt.training.evaluate import softmax
from lateprompt.training.metrics import UNKNOWN
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.errors import LatePromptError


def drawn(rows: int, times: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are `times` too large, and labels drawn from the right ones' probabilities."""
    random = np.random.default_rng(seed)
    right = random.normal(size=(rows, 4)) * 2
    labels = (softmax(right).cumsum(1) < random.random((rows, 1))).sum(1)
    return (right * times).astype(np.float32), labels


@pytest.mark.parametrize("times", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_scores_is_found(times: float) -> None:
    scores, labels = drawn(4000, times)
    found, errors = fit_calibration(scores, labels)
    assert found.temperature == pytest.approx(times, rel=0.1)
    assert found.rows == 4000
    new, truth = drawn(4000, times, seed=1)
    assert (found.probabilities(new).argmax(1) == new.argmax(1)).all()
    held_out = found.errors(new, truth)
    assert held_out["ece"] < 0.03
    assert errors["ece"] == pytest.approx(held_out["ece"], abs=0.02)
    if times != 1:
        assert held_out["ece_before"] > 2 * held_out["ece"]


def test_the_error_of_the_fitting_rows_is_cross_fitted() -> None:
    scores, labels = drawn(40, 3.0)
    found, errors = fit_calibration(scores, labels)
    assert errors["ece"] != expected_calibration_error(found.probabilities(scores), labels)
    assert errors["ece_before"] == expected_calibration_error(softmax(scores), labels)


def test_few_rows_that_are_all_right_do_not_make_it_sure() -> None:
    labels = np.arange(12) % 2
    right = np.eye(2, dtype=np.float32)[labels]
    few, _ = fit_calibration(right, labels)
    assert few.temperature < 1
    assert few.probabilities(right).max() < 1 - 1 / 40
    assert fit_calibration(np.tile(right, (4000, 1)), np.tile(labels, 4000))[0].temperature >= LOWEST
    assert fit_calibration(np.tile(-50 * right, (4000, 1)), np.tile(labels, 4000))[0].temperature <= HIGHEST


@pytest.mark.parametrize(
    ("labels", "scale", "note"),
    [
        (np.arange(9) % 2, 1.0, "9 rows are too few"),
        (np.zeros(20, dtype=np.int64), 1.0, "one label"),
        (np.arange(20) % 2, np.nan, "no numbers"),
        (np.full(20, UNKNOWN), 1.0, "0 rows"),
    ],
)
def test_rows_that_say_nothing_leave_the_temperature(labels: np.ndarray, scale: float, note: str) -> None:
    scores = np.random.default_rng(0).normal(size=(len(labels), 2)) * scale
    found, errors = fit_calibration(scores, labels)
    assert (found.temperature, found.rows) == (1.0, 0)
    assert note in found.note
    assert "ece_before" not in errors


def test_a_label_that_the_task_does_not_have_is_wrong_and_not_fitted() -> None:
    scores, labels = drawn(100, 1.0)
    unknown = np.concatenate([labels, np.full(50, UNKNOWN)])
    more = np.concatenate([scores, scores[:50] * 9])
    assert fit_calibration(more, unknown)[0].temperature == fit_calibration(scores, labels)[0].temperature
    assert expected_calibration_error(np.array([[0.8, 0.2]]), np.array([UNKNOWN])) == pytest.approx(0.8)


def test_the_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.99, 0.01], [0.4, 0.6], [0.45, 0.55], [1.0, 0.0]])
    labels = np.array([0, 1, 1, 1, 0])
    # 15 bins: 0.95, 0.99 and 1 are in the last one (2 of 3 right), 0.6 and 0.55 in the ninth (both right).
    expected = (3 * abs(2 / 3 - (0.95 + 0.99 + 1) / 3) + 2 * abs(1 - 0.575)) / 5
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_a_calibration_as_a_run_file_has_it() -> None:
    assert Calibration.from_dict({}) == Calibration()
    assert Calibration.from_dict(Calibration(1.7, 30).to_dict()) == Calibration(1.7, 30)
    scores = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert Calibration().scaled(scores) is scores
    for wrong in (0, -1.0, "2", True, float("nan"), 100):
        with pytest.raises(LatePromptError, match="temperature"):
            Calibration.from_dict({"temperature": wrong})


def test_class_weights() -> None:
    labels = ["a"] * 6 + ["b"] * 2
    np.testing.assert_allclose(row_weights("balanced", labels, "ab"), [2 / 3] * 6 + [2] * 2)  # type: ignore[arg-type]
    np.testing.assert_allclose(row_weights({"b": 3}, labels, "ab"), [2 / 3] * 6 + [2] * 2)  # type: ignore[arg-type]
    assert row_weights(None, labels, "ab") is None
    assert row_weights("balanced", ["a", "b"], "ab") is None
    with pytest.raises(LatePromptError, match="'c', which the task does not have; known are a, b"):
        row_weights({"c": 1}, labels, ["a", "b"])
    with pytest.raises(LatePromptError, match="zero for all"):
        row_weights({"a": 0, "b": 0}, labels, ["a", "b"])


@pytest.mark.parametrize("wrong", ["balance", 2, ["balanced"], {"a": -1}, {"a": "many"}])
def test_class_weights_that_cannot_be(wrong: object) -> None:
    with pytest.raises(LatePromptError, match="class_weight"):
        RecipeSettings(class_weight=wrong).check()  # type: ignore[arg-type]
