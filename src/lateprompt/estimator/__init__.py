"""The scikit-learn estimator."""

from lateprompt.estimator.classifier import LatePromptClassifier

__all__ = ["LatePromptClassifier"]
