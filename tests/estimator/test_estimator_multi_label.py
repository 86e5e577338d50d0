"""The estimator with several labels a text: lists or a matrix in, the same form out."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import make_rows

from lateprompt import LatePromptClassifier
from lateprompt.estimator.inputs import as_label_sets
from lateprompt.utils.errors import LatePromptError

TEXTS = [row["text"] for row in make_rows(24)]
LISTS = [[place for place in ("film", "walk", "cast") if place in text] for text in TEXTS]
MATRIX = np.array([[label in own for label in ("cast", "film", "walk")] for own in LISTS]).astype(int)
SETTINGS = {"max_steps": 6, "batch_size": 8, "lr": 0.02, "states": "off", "method": "read-npg", "random_state": 3}


@pytest.fixture(scope="module")
def fitted(headless):
    lists = LatePromptClassifier(headless, **SETTINGS).fit(TEXTS, LISTS, eval_set=(TEXTS, LISTS))
    return lists, LatePromptClassifier(headless, **SETTINGS).fit(TEXTS, MATRIX, eval_set=(TEXTS, MATRIX))


def test_both_forms_train_the_same_model(fitted, tmp_path):
    lists, matrix = fitted
    assert lists.classes_.tolist() == ["cast", "film", "walk"]
    assert matrix.classes_.tolist() == [0, 1, 2]
    probabilities = lists.predict_proba(TEXTS)
    assert probabilities.shape == (24, 3)
    assert np.array_equal(probabilities, matrix.predict_proba(TEXTS))
    assert np.allclose(np.exp(lists.predict_log_proba(TEXTS)), probabilities)
    predicted = matrix.predict(TEXTS)
    assert predicted.shape == (24, 3)
    assert lists.predict(TEXTS) == [lists.classes_[row > 0].tolist() for row in predicted]
    right = (predicted == MATRIX).all(1).mean()
    assert lists.score(TEXTS, LISTS) == matrix.score(TEXTS, MATRIX) == right
    assert set(lists.metrics_) >= {"micro_f1", "macro_f1", "subset_accuracy"}
    for number, one in enumerate(fitted):
        one.save(tmp_path / str(number))
        for again in (LatePromptClassifier.load(tmp_path / str(number)), pickle.loads(pickle.dumps(one))):
            assert [list(row) for row in again.predict(TEXTS)] == [list(row) for row in one.predict(TEXTS)]
            assert np.array_equal(again.predict_proba(TEXTS), one.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("y", "sets", "indicator"),
    [
        ([["a"], [], {"b"}], [("a",), (), ("b",)], False),
        ([[1, 0], [0, 0], [0, 1]], [("0",), (), ("1",)], True),
        ([[0], [1], [0, 1]], [("0",), ("1",), ("0", "1")], False),
        (pd.DataFrame({"x": [1, 0, 1], "y": [True, False, False]}), [("x", "y"), (), ("x",)], True),
        (["a", "b", "a"], None, None),
        (np.array([[1], [0], [1]]), None, None),
    ],
)
def test_forms_of_y(y, sets, indicator):
    found = as_label_sets(y, 3)
    assert (None if found is None else found.sets) == sets
    if found is not None:
        assert found.indicator is indicator


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LISTS[:-1], "y has 23 rows for 24 texts"),
        (MATRIX * 2, r"is .*2.*; give one label a text, a list of labels a text, or a matrix of 0 and 1"),
        ([[] for _ in TEXTS], "no label at all"),
        ([["a"] for _ in TEXTS], "one class"),
        ([["a", 1] for _ in TEXTS], "y's labels mixes texts and numbers"),
    ],
)
def test_y_that_cannot_be(headless, y, message):
    with pytest.raises(LatePromptError, match=message):
        LatePromptClassifier(headless, **SETTINGS).fit(TEXTS, y)


def test_what_is_for_one_label_is_refused(headless, fitted):
    with pytest.raises(LatePromptError, match="class_weight 'balanced' is for one label a text"):
        LatePromptClassifier(headless, class_weight="balanced", **SETTINGS).fit(TEXTS, LISTS)
    with pytest.raises(LatePromptError, match="y has several labels a text, task 'sst2' has one label"):
        LatePromptClassifier(headless, task="sst2", **SETTINGS).fit(TEXTS, LISTS)
    with pytest.raises(LatePromptError, match="y has one label a text, fit saw several"):
        fitted[0].score(TEXTS, ["film"] * 24)
