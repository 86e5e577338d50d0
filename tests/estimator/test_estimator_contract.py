"""scikit-learn's own checks, on a subclass that takes numbers for texts, and what of them cannot hold."""

from __future__ import annotations

import warnings

from sklearn.exceptions import SkipTestWarning
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from lateprompt import LatePromptClassifier


class OnNumbers(LatePromptClassifier):
    """Numbers as texts, so that scikit-learn's checks, which have numbers alone, can run."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        tags.classifier_tags.poor_score = True  # of one step on a random model
        return tags

    def fit(self, X, y=None, sample_weight=None):
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        checked = LatePromptClassifier()
        X = validate_data(checked, X)
        super().fit(as_words(X), y, sample_weight)
        self.n_features_in_ = X.shape[1]
        return self

    def _scores(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        columns, self.n_features_in_ = self.n_features_in_, 1
        try:
            return super()._scores(as_words(X))
        finally:
            self.n_features_in_ = columns


def as_words(X):
    return [" ".join(f"{value:.2g}" for value in row) for row in X]


EXPECTED = {
    "check_supervised_y_2d": "a column (n, 1) of labels is refused with advice; scikit-learn's own flatten it with a "
    "warning",
}
"""Checks that fail, each with its reason."""


def test_tags(headless):
    tags = get_tags(LatePromptClassifier(headless))
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.estimator_type == "classifier"
    assert tags.target_tags.required


def test_scikit_learns_checks_of_texts(headless):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)  # it has no texts to try
        check_estimator(LatePromptClassifier(headless))


def test_scikit_learns_checks_of_numbers(headless, loaded_once):
    estimator = OnNumbers(
        headless, max_steps=1, prompt_layer=3, bottleneck_dim=2, batch_size=8, max_length=8, states="off"
    )
    results = check_estimator(estimator, expected_failed_checks=EXPECTED, on_fail=None, on_skip=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {}
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(EXPECTED)
    assert sum(result["status"] == "passed" for result in results) >= 60
