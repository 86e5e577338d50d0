"""The estimator's fit: all or nothing, weights, rows to evaluate on, one method under two names, what saving keeps."""

from __future__ import annotations

import copy
import datetime
import json
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_rows
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from lateprompt import LatePromptClassifier, LatePromptError
from lateprompt.cli.app import main
from lateprompt.data import Row, default_task
from lateprompt.estimator import classifier as estimator_module
from lateprompt.estimator.plain import from_plain, to_plain
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.training import fit as fit_module
from lateprompt.training.loop import fit
from lateprompt.training.settings import ModelSettings, RecipeSettings

pytestmark = pytest.mark.usefixtures("loaded_once")
ROWS = make_rows(32)
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]
DEV = make_rows(12, 100)
RARE = [int(i not in (0, 5, 10, 15, 16, 21, 26, 31)) for i in range(32)]  # of all lengths: in batches with others
EVAL = [row["text"] for row in DEV], [row["label"] for row in DEV]


def small(model, **settings):
    return LatePromptClassifier(
        **{
            "model": model,
            "prompt_layer": 2,
            "bottleneck_dim": 8,
            "max_steps": 3,
            "batch_size": 8,
            "lr": 1e-2,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def fitted(headless):
    return small(headless).fit(TEXTS, LABELS)


def raise_interrupt(*args, **kwargs):
    raise KeyboardInterrupt


# -- all or nothing --------------------------------------------------------------------------------------------------

FAILURES = {
    "diverged": ({"lr": 1e30, "max_grad_norm": 0.0, "max_steps": 8}, TEXTS, LABELS, {}),
    "diverged in the last step": (
        {"lr": 1e38, "max_grad_norm": 0.0, "max_steps": 1, "weight_decay": 1e5, "warmup_ratio": 0.0},
        TEXTS,
        LABELS,
        {},
    ),
    "bad text": ({}, [*TEXTS[:-1], None], LABELS, {}),
    "bad label": ({}, TEXTS, [*LABELS[:-1], None], {}),
    "one class": ({}, TEXTS, ["a"] * 32, {}),
    "other labels of a task": ({"task": "sst2"}, TEXTS, ["a", "b"] * 16, {}),
    "bad method": ({"method": "best"}, TEXTS, LABELS, {}),
    "bad option": ({"options": {"rank": 3}}, TEXTS, LABELS, {}),
    "no model": ({"model": "/nowhere"}, TEXTS, LABELS, {}),
    "bad weight": ({}, TEXTS, LABELS, {"sample_weight": [-1] * 32}),
    "bad eval_set": ({}, TEXTS, LABELS, {"eval_set": (["x"], ["unheard of"])}),
    "patience without rows": ({"patience": 2}, TEXTS, LABELS, {}),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_fit_that_fails_leaves_the_estimator_as_it_was(kind, before, headless, fitted):
    changes, X, y, more = FAILURES[kind]
    estimator = copy.deepcopy(fitted) if before else small(headless)
    expected = estimator.predict_proba(TEXTS) if before else None
    estimator.set_params(**changes)
    state = dict(vars(estimator))
    with pytest.raises(LatePromptError):
        estimator.fit(X, y, **more)
    assert vars(estimator) == state
    if before:
        np.testing.assert_array_equal(estimator.predict_proba(TEXTS), expected)
    else:
        with pytest.raises(NotFittedError):
            estimator.predict(TEXTS)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("place", ["build", "fill", "first step", "evaluation", "end"])
def test_an_interrupted_fit_leaves_the_estimator_as_it_was(place, before, headless, fitted, monkeypatch):
    estimator = copy.deepcopy(fitted) if before else small(headless)
    expected = estimator.predict_proba(TEXTS) if before else None
    state = dict(vars(estimator))
    target, name = {
        "build": (TextClassifier, "build"),
        "fill": (TextClassifier, "cached"),
        "first step": (torch.optim.AdamW, "step"),
        "evaluation": (fit_module, "evaluate"),
        "end": (estimator_module, "asdict"),
    }[place]
    with monkeypatch.context() as patched:
        patched.setattr(target, name, raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(TEXTS[:20], LABELS[:20], eval_set=EVAL)
    assert vars(estimator) == state
    if before:
        np.testing.assert_array_equal(estimator.predict_proba(TEXTS), expected)
    estimator.fit(TEXTS, LABELS).predict(TEXTS)  # nothing is locked


def test_a_fit_on_other_rows_leaves_nothing_of_the_first(headless):
    pairs = pd.DataFrame({"a": TEXTS, "b": TEXTS})
    estimator = small(headless, max_steps=1).fit(pairs, LABELS)
    assert list(estimator.feature_names_in_) == ["a", "b"]
    estimator.fit(TEXTS, LABELS)
    assert not hasattr(estimator, "feature_names_in_")
    assert estimator.n_features_in_ == 1


def test_swapped_columns_are_refused(headless):
    pairs = pd.DataFrame({"a": TEXTS, "b": TEXTS})
    estimator = small(headless, max_steps=1).fit(pairs, LABELS)
    with pytest.raises(LatePromptError, match="columns b, a, fit saw a, b"):
        estimator.predict(pairs[["b", "a"]])


def test_parameters_set_after_fit_wait_for_the_next_fit(fitted, tmp_path):
    expected = fitted.predict_proba(TEXTS)
    estimator = copy.deepcopy(fitted)
    changes = {"model": "/nowhere", "task": "mr", "method": "fixed", "device": "cuda:99", "readout": "masked_lm"}
    changes |= {"max_length": 4, "label_words": {0: "x"}}
    estimator.set_params(**changes)
    np.testing.assert_array_equal(estimator.predict_proba(TEXTS), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict_proba(TEXTS), expected)
    estimator.save(tmp_path / "run")
    np.testing.assert_array_equal(LatePromptClassifier.load(tmp_path / "run").predict_proba(TEXTS), expected)


@pytest.mark.parametrize("interrupt", [True, False])
def test_a_model_that_a_user_holds_gets_its_weights_back(interrupt, headless, monkeypatch):
    tuned = TextClassifier.build(
        ModelSettings(headless, prompt_layer=2), default_task(["negative", "positive"], pair=False), seed=1
    )
    rows = [Row(text, None, label, {}) for text, label in zip(TEXTS, LABELS, strict=True)]
    before = tuned.probabilities(rows)
    if interrupt:
        monkeypatch.setattr(fit_module, "evaluate", raise_interrupt)
    recipe = RecipeSettings(max_steps=4, batch_size=8, eval_every=2, lr=1e-2 if interrupt else 1e30, max_grad_norm=0.0)
    with pytest.raises(KeyboardInterrupt if interrupt else LatePromptError):
        fit(
            tuned.model,
            tuned.readout,
            tuned.batches(rows),
            tuned.batches(rows),
            recipe,
            metrics=["accuracy"],
            device=tuned.device,
        )
    np.testing.assert_array_equal(tuned.probabilities(rows), before)
    assert not tuned.layer.training
    assert all(parameter.grad is None for parameter in tuned.model.parameters())


def test_weights_that_are_no_numbers_give_no_probabilities(fitted):
    estimator = copy.deepcopy(fitted)
    with torch.no_grad():
        next(p for p in estimator.classifier_.model.parameters() if p.requires_grad).fill_(float("nan"))
    for method in ("predict", "predict_proba", "predict_log_proba"):
        with pytest.raises(LatePromptError, match="scores are no numbers"):
            getattr(estimator, method)(TEXTS)


# -- probabilities ---------------------------------------------------------------------------------------------------


def test_logarithms_of_probabilities(headless):
    estimator = small(headless, task="trec").fit(TEXTS, ["human", "location"] * 16)
    probabilities, logarithms = estimator.predict_proba(TEXTS), estimator.predict_log_proba(TEXTS)
    assert probabilities.shape == (32, 2)  # the task has six labels
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.exp(logarithms), probabilities, rtol=1e-5)
    with torch.no_grad():
        estimator.classifier_.readout.scores = lambda batch: torch.tensor([[0.0, 900.0] * 3] * len(batch.input_ids))
    assert np.isfinite(estimator.predict_log_proba(TEXTS)).all()
    np.testing.assert_allclose(estimator.predict_proba(TEXTS).sum(1), 1.0, atol=1e-6)


# -- weights ---------------------------------------------------------------------------------------------------------


def test_rows_of_weight_0_are_as_if_they_were_not_there(headless):
    weights = np.array([1.0, 1.0, 0.0, 1.0] * 8)
    kept = [i for i in range(32) if weights[i]]
    weighted = small(headless).fit(TEXTS, LABELS, sample_weight=weights)
    without = small(headless).fit([TEXTS[i] for i in kept], [LABELS[i] for i in kept])
    np.testing.assert_array_equal(weighted.predict_proba(TEXTS), without.predict_proba(TEXTS))


def test_equal_weights_are_none(headless, fitted):
    for weights in ([3] * 32, np.full(32, 0.1), pd.Series([True] * 32)):
        weighted = small(headless).fit(TEXTS, LABELS, weights)
        np.testing.assert_array_equal(weighted.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


KINDS = [
    ("headless", {}),
    ("headless", {"states": "off", "method": "lora"}),
    ("masked_lm", {"task": "sst2"}),
    ("masked_lm", {"task": "sst2", "loss": "labels"}),
    ("causal_lm", {"task": "sst2"}),
    ("causal_lm", {"label_words": {"negative": "so very bad", "positive": "so good"}}),
    ("causal_lm", {"label_words": {"negative": "so very bad", "positive": "so good"}, "loss": "labels"}),
    ("causal_lm", {"label_words": {"negative": "so very bad", "positive": "so good"}, "states": "off"}),
]


@pytest.mark.parametrize(("model", "settings"), KINDS)
def test_a_row_of_weight_2_is_two_rows(model, settings, request):
    """In one batch, without dropout, up to the order of sums."""
    settings = {**settings, "batch_size": 64, "lr": 1e-2, "max_steps": 2}
    estimator = small(request.getfixturevalue(model), **settings)
    weights = [2 if i % 3 else 1 for i in range(32)]
    twice = [i for i in range(32) for _ in range(weights[i])]
    made = TextClassifier.make_readout

    def without_dropout(self):
        for module in self.model.modules():
            for name in ("p", "dropout", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        readout = made(self)
        readout.dropout = 0.0
        return readout

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TextClassifier, "make_readout", without_dropout)
        weighted = clone(estimator).fit(TEXTS, LABELS, weights)
        doubled = clone(estimator).fit([TEXTS[i] for i in twice], [LABELS[i] for i in twice])
        plain = clone(estimator).fit(TEXTS, LABELS)
    one, two, other = (found.history_[-1]["train_loss"] for found in (weighted, doubled, plain))
    assert one == pytest.approx(two, rel=1e-5)
    assert one != pytest.approx(other, rel=1e-5)
    np.testing.assert_allclose(weighted.predict_proba(TEXTS), doubled.predict_proba(TEXTS), rtol=2e-3)


def test_class_weights_are_row_weights(headless):
    y = RARE
    by_rows = small(headless).fit(TEXTS, y, [3.0 if label == 0 else 1.0 for label in y]).predict_proba(TEXTS)
    for weights in ("balanced", {0: 3}, {"0": 3.0, 1: 1}, {0.0: np.float32(6), 1: 2}, pd.Series({0: 3, 1: 1})):
        found = small(headless, class_weight=weights).fit(TEXTS, y).predict_proba(TEXTS)
        np.testing.assert_allclose(found, by_rows, rtol=1e-5)
    plain = small(headless).fit(TEXTS, y).predict_proba(TEXTS)
    assert not np.allclose(by_rows, plain, rtol=1e-5)


def test_class_weights_and_row_weights_multiply(headless):
    y, own = RARE, np.linspace(0.5, 2, 32)
    both = small(headless, class_weight={0: 3}).fit(TEXTS, y, own).predict_proba(TEXTS)
    rows = small(headless).fit(TEXTS, y, own * np.where(np.array(y) == 0, 3, 1)).predict_proba(TEXTS)
    np.testing.assert_allclose(both, rows, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 31, r"sample_weight has shape \(31,\) for 32 texts"),
        (np.ones((32, 1)), r"shape \(32, 1\)"),
        ([0.0] * 32, "zero for all texts"),
        ([*[1.0] * 31, -0.5], r"sample_weight\[31\] is -0.5"),
        ([float("nan"), *[1.0] * 31], r"sample_weight\[0\] is nan"),
        ([*[1.0] * 31, float("inf")], r"sample_weight\[31\] is inf"),
        (["many"] * 32, "no array of numbers"),
        ([1.0, 0.0] * 16, "y has one class"),
    ],
)
def test_bad_sample_weights(weights, message, headless):
    with pytest.raises(LatePromptError, match=message):
        small(headless).fit(TEXTS, LABELS, weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("even", "class_weight 'even' is unknown; give None, 'balanced'"),
        ([1, 2], "unknown; give None"),
        (
            {"neutral": 2},
            "class_weight has label 'neutral', which the task does not have; known are negative, positive",
        ),
        ({"negative": -1}, "class_weight of 'negative' is -1"),
        ({"negative": float("inf")}, "of 'negative' is inf"),
        ({"negative": "2"}, "of 'negative' is '2'"),
        ({"negative": True}, "of 'negative' is True"),
        ({"negative": 1, " negative": 2}, "label 'negative' twice"),
        ({"negative": 0, "positive": 0}, "zero"),
    ],
)
def test_bad_class_weights(weights, message, headless):
    with pytest.raises(LatePromptError, match=message):
        small(headless, class_weight=weights).fit(TEXTS, LABELS)


# -- rows to evaluate on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [EVAL, [EVAL], (np.array(EVAL[0]), pd.Series(EVAL[1]))])
def test_the_best_weights_on_the_eval_set_are_kept(given, headless):
    estimator = small(headless, max_steps=6, eval_every=2, lr=5e-2).fit(TEXTS, LABELS, eval_set=given)
    assert [entry["step"] for entry in estimator.history_] == [2, 4, 6]
    best = max(entry["dev_accuracy"] for entry in estimator.history_)
    assert estimator.metrics_["accuracy"] == best
    assert estimator.score(*EVAL) == pytest.approx(best)


def test_early_stop(headless, monkeypatch):
    monkeypatch.setattr(fit_module, "evaluate", lambda *a, **k: {"accuracy": 0.5, "loss": 0.0})
    estimator = small(headless, max_steps=20, eval_every=1, patience=2).fit(TEXTS, LABELS, eval_set=EVAL)
    assert [entry["step"] for entry in estimator.history_] == [1, 2, 3]


def test_an_eval_set_may_have_labels_that_the_task_alone_has(headless):
    estimator = small(headless, task="trec", max_steps=1)
    estimator.fit(TEXTS, ["human", "location"] * 16, eval_set=(TEXTS[:2], ["number", "human"]))
    assert estimator.classes_.tolist() == ["human", "location"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([EVAL, EVAL], "eval_set is a list of 2; give one set"),
        ("dev.csv", "eval_set is a str; give one set"),
        ((EVAL[0],), "tuple of 1"),
        ((EVAL[0], EVAL[1][:3]), r"eval_set's y has shape \(3,\) for 12 texts"),
        (([], []), "eval_set's X is empty"),
        (([("a", "b")], ["negative"]), "eval_set's X has 2 text columns, X has 1"),
        ((["a"], ["neutral"]), "eval_set's y has label 'neutral', y has negative, positive"),
        ((["a", None], ["negative"] * 2), "eval_set's X row 1 is None"),
    ],
)
def test_bad_eval_sets(given, message, headless):
    with pytest.raises(LatePromptError, match=message):
        small(headless).fit(TEXTS, LABELS, eval_set=given)


def test_patience_needs_rows_to_evaluate_on(headless):
    with pytest.raises(LatePromptError, match=r"patience 2 needs rows.*eval_set=\(X, y\)"):
        small(headless, patience=2).fit(TEXTS, LABELS)


# -- one method, two names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["method", "generator"])
def test_both_names_of_the_method_work(name, headless):
    estimator = clone(small(headless, max_steps=1, **{name: "fixed"}))
    assert estimator.get_params()[name] == "fixed"
    assert estimator.fit(TEXTS, LABELS).classifier_.settings.method == "fixed"
    estimator = small(headless, max_steps=1, method="mppg", generator="mppg").set_params(**{name: "fixed"})
    assert clone(estimator).fit(TEXTS, LABELS).classifier_.settings.method == "fixed"
    grid = GridSearchCV(small(headless, max_steps=1, method="appg"), {name: ["fixed", "npg"]}, cv=2)
    assert grid.fit(TEXTS, LABELS).best_params_[name] in ("fixed", "npg")
    assert grid.best_estimator_.classifier_.settings.method == grid.best_params_[name]


def test_two_methods_are_refused_by_fit(headless):
    estimator = small(headless, method="mppg", generator="fixed")
    assert clone(estimator).get_params() == estimator.get_params()
    with pytest.raises(LatePromptError, match="method 'mppg' and generator 'fixed' are two names"):
        estimator.fit(TEXTS, LABELS)
    assert LatePromptClassifier().method == "npg"
    assert LatePromptClassifier("m", None, "mppg").method == "mppg"


def test_a_folder_of_an_older_version_loads(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("method", "class_weight", "eval_every", "patience"):
        del run["estimator"][name]
    run["estimator"]["generator"] = "npg"
    run.pop("feature_names")
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    loaded = LatePromptClassifier.load(tmp_path / "run")
    assert (loaded.method, loaded.generator) == ("npg", "npg")
    assert loaded.set_params(method="fixed").fit(TEXTS, LABELS).classifier_.settings.method == "fixed"
    state = fitted.__getstate__()
    for name in ("method", "class_weight", "eval_every", "patience", "calibrate", "_device"):
        del state[name]
    state["generator"] = "mppg"
    older = LatePromptClassifier.__new__(LatePromptClassifier)
    older.__setstate__(state)
    assert (older.method, older.class_weight, older.calibrate) == ("mppg", None, True)
    np.testing.assert_array_equal(older.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


# -- what saving keeps -----------------------------------------------------------------------------------------------

CLASSES = {
    "int32": np.array([3, 7], dtype=np.int32),
    "int64": np.array([-1, 1]),
    "uint8": np.array([0, 255], dtype=np.uint8),
    "bool": np.array([False, True]),
    "float32": np.array([0.0, 1.0], dtype=np.float32),
    "float64": np.array([-1.0, 1.0]),
    "text": np.array(["a", "bcd"]),
    "longer text": np.array(["a", "b"], dtype="<U9"),
    "any text": np.array(["a", "bcd"], dtype=np.dtypes.StringDType()),
    "object": np.array(["no", "yes"], dtype=object),
    "days": np.array(["2026-01-01", "2026-02-01"], dtype="datetime64[D]"),
    "nanoseconds": np.array(["2026-01-01", "2026-02-01"], dtype="datetime64[ns]"),
    "dates": np.array([datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)], dtype=object),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_come_back_with_their_type(kind, headless, tmp_path):
    estimator = small(headless, max_steps=1).fit(TEXTS, CLASSES[kind][np.arange(32) % 2])
    estimator.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run")
    for found in (estimator.classes_, loaded.classes_):
        assert found.dtype == CLASSES[kind].dtype
        assert found.tolist() == CLASSES[kind].tolist()
    assert loaded.predict(TEXTS).dtype == CLASSES[kind].dtype
    assert loaded.score(TEXTS, estimator.predict(TEXTS)) == 1.0


@pytest.mark.parametrize(
    "series", [pd.Series([1, 0] * 16, dtype="Int64"), pd.Series([True, False] * 16, dtype="boolean")]
)
def test_labels_of_pandas_own_types(series, headless):
    estimator = small(headless, max_steps=1).fit(TEXTS, series)
    assert estimator.classes_.dtype.kind in "ib"
    assert 0 <= estimator.score(TEXTS, series) <= 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "1"], r"y mixes numbers and texts \(y\[0\] is 1, y\[1\] is '1'\)"),
        (np.array([1, "a"], dtype=object), "y mixes numbers and texts"),
        ([True, 1], "mixes booleans and numbers"),
        (["a", "a "], "'a' and 'a ', which are one label by name"),
        (["1", "1.0"], "'1' and '1.0', which are one label by name"),
        (["true", "True"], "one label by name"),
        ([0.5, 1.0], "fractions"),
        (["", "a"], r"y\[0\] is a gap"),
    ],
)
def test_labels_that_are_one_or_no_label(labels, message, headless):
    y = np.array(list(labels) * 16, dtype=object) if isinstance(labels, np.ndarray) else list(labels) * 16
    with pytest.raises(LatePromptError, match=message):
        small(headless).fit(TEXTS, y)


def test_parameters_and_history_come_back(headless, tmp_path):
    changes = {
        "method": "late-lora",
        "options": {"r": np.int64(2), "target_modules": ("query", "value")},
        "label_words": {0: "bad", 1: "good"},
        "class_weight": {0: np.float32(2), 1: 1},
        "prompt_layer": np.int64(2),
        "lr": np.float64(1e-2),
        "eval_every": 1,
        "patience": 3,
        "max_steps": 2,
    }
    estimator = small(headless, **changes).fit(TEXTS, [0, 1] * 16, eval_set=(TEXTS[:4], [0, 1, 0, 1]))
    estimator.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run")
    assert loaded.get_params() == estimator.get_params()
    assert isinstance(loaded.options["target_modules"], tuple)
    assert loaded.history_ == estimator.history_
    assert len(loaded.history_) == 2
    assert loaded.metrics_ == estimator.metrics_
    assert loaded.recipe_ == estimator.recipe_
    again = clone(loaded).fit(TEXTS, [0, 1] * 16, eval_set=(TEXTS[:4], [0, 1, 0, 1]))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), estimator.predict_proba(TEXTS))


VALUES = [None, (1, (2, "a")), [1.5, None], {"a": (1,)}, {1: "x", False: 2}, {"__tuple__": [1]}]
VALUES += [{(1, 2): datetime.date.min}, [datetime.datetime(2026, 1, 2, 3)]]


@pytest.mark.parametrize("value", VALUES)
def test_values_as_json(value):
    assert from_plain(json.loads(json.dumps(to_plain(value)))) == value


@pytest.mark.parametrize(
    "change",
    [
        {"classes": {"values": ["a"], "dtype": "<U1"}},
        {"classes": {"values": ["a", "b"], "dtype": "<U1"}},
        {"classes": {"values": ["a", "b"], "dtype": "no type"}},
        {"classes": {"values": [1, "x"], "dtype": "<i8"}},
        {"classes": 5},
        {"estimator": [1]},
        {"recipe": "paper"},
    ],
)
def test_a_folder_that_was_edited_is_refused(change, fitted, tmp_path):
    fitted.save(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LatePromptError, match=r"run\.json"):
        LatePromptClassifier.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("in_file", "y"),
    [
        ([0, 1], [0, 1]),
        (["0", "1"], [0.0, 1.0]),
        ([False, True], np.array([False, True])),
        ([1.0, 2.0], [1, 2]),
    ],
)
def test_a_run_of_the_command_line_scores_labels_of_any_type(in_file, y, headless, tmp_path):
    rows = [{"text": text, "label": in_file[i % 2]} for i, text in enumerate(TEXTS)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", headless, "--train", str(tmp_path / "train.jsonl"), "--output", str(tmp_path / "run")]
    assert main(["train", *arguments, "--max-steps", "12", "--lr", "2e-2", "--prompt-layer", "2", "--quiet"]) == 0
    loaded = LatePromptClassifier.load(tmp_path / "run")
    assert loaded.history_[-1]["step"] == 12
    assert loaded.score(TEXTS, [y[i % 2] for i in range(32)]) > 0.5
    assert loaded.score(TEXTS[:2], ["neither", "nor"]) == 0.0
    weights = np.arange(32) % 2
    assert loaded.score(TEXTS, loaded.predict(TEXTS), sample_weight=weights) == 1.0
    with pytest.raises(LatePromptError, match=r"y\[1\] is a gap"):
        loaded.score(TEXTS[:2], ["0", None])


# -- among scikit-learn's tools --------------------------------------------------------------------------------------


def test_in_a_pipeline(headless):
    pipeline = Pipeline(
        [("lower", FunctionTransformer(lambda X: [text.lower() for text in X])), ("lpt", small(headless))]
    )
    pipeline.set_params(lpt__generator="fixed").fit(TEXTS, LABELS, lpt__sample_weight=[1, 2] * 16)
    assert pipeline.predict(TEXTS).shape == (32,)
    assert pickle.loads(pickle.dumps(pipeline.named_steps["lpt"])).classifier_.settings.method == "fixed"


def test_calibrated(headless):
    calibrated = CalibratedClassifierCV(small(headless, max_steps=1), cv=2)
    calibrated.fit(np.array(TEXTS), LABELS, sample_weight=np.linspace(1, 2, 32))
    np.testing.assert_allclose(calibrated.predict_proba(np.array(TEXTS)).sum(1), 1.0)


def test_random_state_may_be_a_generator(headless):
    one, two = (small(headless, random_state=np.random.default_rng(5)).fit(TEXTS, LABELS) for _ in range(2))
    np.testing.assert_array_equal(one.predict_proba(TEXTS), two.predict_proba(TEXTS))
    random.seed(1)
    three = small(headless, random_state=None).fit(TEXTS, LABELS)
    assert three.recipe_["seed"] != one.recipe_["seed"]
