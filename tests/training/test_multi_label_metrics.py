"""Metrics and thresholds of texts with several labels, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from lateprompt.training.metrics import primary_metric
from lateprompt.training.multi_label import (
    answers,
    by_label,
    choose_thresholds,
    measure_labels,
    multi_label_metrics,
    sigmoid,
)
from lateprompt.utils.errors import LatePromptError


@pytest.fixture
def drawn():
    random = np.random.default_rng(3)
    return random.normal(size=(60, 7)) * 3, (random.random((60, 7)) < 0.3).astype(np.uint8)


def test_the_figures_are_scikit_learns(drawn):
    scores, labels = drawn
    predicted = answers(sigmoid(scores), np.full(7, 0.5))
    found = measure_labels(scores, labels, None, np.full(7, 0.5))
    assert found["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["loss"] == pytest.approx(log_loss(labels.ravel(), sigmoid(scores).ravel()))
    own = by_label(tuple("abcdefg"), labels, predicted, None)
    assert [row["support"] for row in own.values()] == sorted(labels.sum(0).tolist(), reverse=True)
    assert own["c"]["f1"] == pytest.approx(f1_score(labels[:, 2], predicted[:, 2]))


def test_labels_that_the_task_has_not_count_as_missed():
    labels = np.array([[1, 0], [0, 1]])
    found = multi_label_metrics(labels, labels, np.array([2, 0]))
    assert found == {"micro_f1": 2 * 2 / (2 + 2 + 2), "macro_f1": 1.0, "subset_accuracy": 0.5}


def test_nothing_to_find():
    empty = np.zeros((3, 2))
    assert multi_label_metrics(empty, empty) == {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0}
    with pytest.raises(LatePromptError, match="no examples"):
        multi_label_metrics(np.zeros((0, 2)), np.zeros((0, 2)))


def test_a_threshold_separates_best():
    probabilities = np.array([[0.9], [0.6], [0.6], [0.2]] * 50)
    labels = np.array([[1], [1], [0], [0]] * 50)
    # F1 with both rows of 0.6 (2 of 3 right, all found: 0.8) is above that without (1 of 1, half found: 0.67).
    assert choose_thresholds(probabilities, labels) == pytest.approx([0.4])


def test_few_rows_share_a_threshold():
    random = np.random.default_rng(0)
    labels = np.stack([random.random(400) < 0.5, random.random(400) < 0.5, np.zeros(400)], 1).astype(int)
    labels[7, 2] = 1
    probabilities = np.where(labels > 0, 0.3, 0.1) + random.random((400, 3)) * 0.01
    probabilities[:, 0] = np.where(labels[:, 0] > 0, 0.9, 0.7)
    probabilities[7, 2] = 0.99
    own, other, rare = choose_thresholds(probabilities, labels)
    assert own > 0.75
    assert other < 0.3
    assert rare < 0.6  # its own best would be above 0.6: one row says little
    assert choose_thresholds(probabilities, np.zeros((400, 3))).tolist() == [0.5, 0.5, 0.5]


def test_micro_f1_chooses_the_weights():
    assert primary_metric(("micro_f1", "macro_f1")) == "micro_f1"


def test_five_hundred_labels_take_a_moment():
    random = np.random.default_rng(1)
    scores, labels = random.normal(size=(1000, 500)) - 4, random.random((1000, 500)) < 0.004
    assert measure_labels(scores, labels, None, None)["micro_f1"] > 0  # seconds if it looped over rows and labels
