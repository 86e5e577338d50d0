"""Linear baselines, scikit-learn's: logistic regression on TF-IDF features, or on the frozen model's pooled output.

They train no adapter, so nothing of the backbone is in them: `tfidf` does not even read a model. What they reach says
whether tuning is worth it. `C`, the inverse strength of the regularisation, is chosen on dev rows where there are some,
else by cross-validation on the training rows, unless it is given.
"""

from __future__ import annotations

from typing import Any, NoReturn

from lateprompt.methods.base import Method, Options, Shape
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError

TFIDF, EMBEDDING_LR = "tfidf", "embedding-lr"


def _fragment(options: Options, settings: ModelSettings) -> dict[str, Any]:
    raise LatePromptError(f"method {settings.method!r} is a linear model and trains no adapter; give another method")


def _count(shape: Shape, options: Options, settings: ModelSettings, late: bool) -> NoReturn:
    raise LatePromptError(f"method {settings.method!r} is a linear model, whose size its training rows decide")


METHODS = (
    Method(
        TFIDF,
        "TF-IDF + logistic regression",
        "–",
        "linear",
        _fragment,
        _count,
        {"C": None, "ngrams": 2, "min_df": 1},
        late=False,
        reads_model=False,
    ),
    Method(
        EMBEDDING_LR,
        "mean state + logistic regression",
        "–",
        "linear",
        _fragment,
        _count,
        {"C": None, "scale": False},
        late=False,
    ),
)
