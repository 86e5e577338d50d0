"""The linear baselines: scikit-learn's logistic regression on features of the texts."""
