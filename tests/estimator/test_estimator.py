"""scikit-learn's contract: clone, cross validation, grid search, lists and arrays and Series, save and load."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_rows
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.utils.validation import check_is_fitted

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import main
from lateprompt.estimator.classifier import as_texts

ROWS = make_rows(32)
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]


def small(model, **settings):
    return LatePromptClassifier(
        **{"model": model, "prompt_layer": 2, "bottleneck_dim": 8, "max_steps": 4, "batch_size": 8, **settings}
    )


@pytest.fixture(scope="module")
def fitted(headless):
    return small(headless).fit(TEXTS, LABELS)


def _through_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


def test_parameters_are_kept_as_given(headless):
    estimator = small(headless, generator="mppg")
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert copy.set_params(prompt_layer=1).prompt_layer == 1
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)


def test_fit_does_not_change_parameters(headless):
    estimator = small(headless, prompt_layer="0.5")
    before = estimator.get_params()
    assert estimator.fit(TEXTS, LABELS) is estimator
    assert estimator.get_params() == before


def test_predictions(fitted):
    check_is_fitted(fitted)
    assert fitted.classes_.tolist() == ["negative", "positive"]
    probabilities = fitted.predict_proba(TEXTS[:5])
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    assert fitted.predict(TEXTS[:5]).tolist() == fitted.classes_[probabilities.argmax(1)].tolist()
    assert fitted.score(TEXTS, LABELS) == np.mean(fitted.predict(TEXTS) == np.array(LABELS))


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, lambda x: pd.DataFrame({"text": x})])
def test_texts_of_any_kind(fitted, kind):
    np.testing.assert_array_equal(fitted.predict_proba(kind(TEXTS[:6])), fitted.predict_proba(TEXTS[:6]))


@pytest.mark.parametrize("labels", [[0, 1], [True, False], [3.0, 1.0], ["b", "a"]])
def test_labels_of_any_kind(headless, labels):
    y = [labels[i % 2] for i in range(len(TEXTS))]
    estimator = small(headless, max_steps=1).fit(TEXTS, y)
    assert estimator.classes_.tolist() == sorted(labels)
    assert set(estimator.predict(TEXTS[:4])) <= set(labels)


@pytest.mark.parametrize("shape", ["list", "array", "frame"])
def test_pairs(headless, shape):
    pairs = [(text, TEXTS[-i]) for i, text in enumerate(TEXTS)]
    X = {"list": pairs, "array": np.array(pairs), "frame": pd.DataFrame(pairs)}[shape]
    estimator = small(headless, max_steps=1).fit(X, LABELS)
    assert estimator.predict(X).shape == (32,)
    with pytest.raises(ValueError, match="X has 1 text columns, fit saw 2"):
        estimator.predict(TEXTS)


def test_label_words_of_a_task_and_of_ones_own(masked_lm):
    by_task = small(masked_lm, task="sst2").fit(TEXTS, LABELS)
    assert by_task.classifier_.settings.readout == "masked_lm"
    own = small(masked_lm, label_words={0: "terrible", 1: "great"}).fit(
        TEXTS, [int(label == "positive") for label in LABELS]
    )
    assert own.classifier_.task.label_words == ("terrible", "great")
    with pytest.raises(ValueError, match="label_words has no word for label '1'"):
        small(masked_lm, label_words={0: "terrible"}).fit(TEXTS, [0, 1] * 16)
    with pytest.raises(ValueError, match="y has label 'fine'"):
        small(masked_lm, task="sst2").fit(TEXTS, ["fine", "positive"] * 16)


def test_a_decoder(causal_lm):
    estimator = small(causal_lm, task="sst2").fit(TEXTS, LABELS)
    assert estimator.classifier_.settings.readout == "causal_lm"
    assert estimator.predict(TEXTS).shape == (32,)


def test_cross_validation_and_grid_search(headless):
    assert cross_val_score(small(headless, max_steps=1), TEXTS, LABELS, cv=2).shape == (2,)
    grid = GridSearchCV(small(headless, max_steps=1), {"prompt_layer": [1, 3], "generator": ["npg", "fixed"]}, cv=2)
    grid.fit(np.array(TEXTS), LABELS)
    assert set(grid.best_params_) == {"prompt_layer", "generator"}
    assert not np.isnan(grid.cv_results_["mean_test_score"]).any()


def test_save_and_load(fitted, tmp_path, headless):
    fitted.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert loaded.get_params() == fitted.get_params()
    assert loaded.classes_.dtype == fitted.classes_.dtype
    clone(loaded).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="not empty"):
        fitted.save(tmp_path / "run")
    fitted.save(tmp_path / "run", overwrite=True)


def test_integer_classes_survive_saving(headless, tmp_path):
    estimator = small(headless, max_steps=1).fit(TEXTS, [int(label == "positive") for label in LABELS])
    estimator.save(tmp_path / "run")
    assert LatePromptClassifier.load(tmp_path / "run").predict(TEXTS).dtype.kind == "i"


def test_one_format_for_estimator_and_command_line(fitted, headless, data, tmp_path, capsys):
    fitted.save(tmp_path / "from_estimator")
    assert main(["evaluate", str(tmp_path / "from_estimator"), "--data", data["dev"], "--json"]) == 0
    arguments = [
        "--model",
        headless,
        "--task",
        "sst2",
        "--train",
        data["train"],
        "--output",
        str(tmp_path / "from_cli"),
    ]
    assert main(["train", *arguments, "--max-steps", "2", "--lr", "0.002", "--quiet"]) == 0
    loaded = LatePromptClassifier.load(tmp_path / "from_cli")
    assert (loaded.lr, loaded.max_steps, loaded.generator, loaded.task) == (0.002, 2, "npg", None)
    assert loaded.predict(TEXTS).shape == (32,)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("one text", "one string"),
        ([], "empty"),
        ([["a", "b", "c"]], "3 columns"),
        ([1, 2], "not a string"),
        (["a", None], "not a string"),
        (["a", ("b", "c")], "mixes"),
        (None, "X is None"),
        (["a", "half \ud800 a pair"], "row 1 has half a surrogate pair"),
    ],
)
def test_bad_texts(X, message):
    with pytest.raises(ValueError, match=message):
        as_texts(X)


def test_bad_labels(headless):
    with pytest.raises(ValueError, match="one label a text"):
        small(headless).fit(TEXTS, LABELS[:3])
    for shape in (np.array(LABELS)[:, None], None):
        with pytest.raises(ValueError, match="one label a text"):
            small(headless).fit(TEXTS, shape)
    with pytest.raises(ValueError, match="one class"):
        small(headless).fit(TEXTS, ["a"] * 32)
    with pytest.raises(ValueError, match="method 'best' is unknown"):
        small(headless, generator="best").fit(TEXTS, LABELS)
    for gap in (None, float("nan"), float("inf"), pd.NA, np.nan):
        with pytest.raises(ValueError, match=r"y\[31\] is a gap"):
            small(headless).fit(TEXTS, [*LABELS[:31], gap])
    with pytest.raises(ValueError, match=r"y\[0\] is a gap"):
        small(headless).fit(TEXTS, pd.Series([pd.NA, *LABELS[1:]], dtype="string"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "1e-3"}, "lr '1e-3' is no value for it; give a number above 0"),
        ({"epochs": 1.5}, "epochs 1.5 is no value for it; give a whole number from 1"),
        ({"batch_size": True}, "batch_size True"),
        ({"max_length": None}, "max_length None"),
        ({"states": False}, "states False is no value for it; give a text"),
        ({"label_words": ["good", "bad"]}, "label_words .* is no mapping"),
        ({"options": {"r": 2}}, "no option 'r'"),
    ],
)
def test_parameters_of_the_wrong_type(headless, changes, message):
    with pytest.raises(ValueError, match=message):
        small(headless, **changes).fit(TEXTS, LABELS)


def test_parameters_as_users_have_them(headless, tmp_path):
    estimator = small(
        Path(headless),
        states=tmp_path / "states",
        device=torch.device("cpu"),
        max_steps=2.0,
        generator="late-lora",
        options={"lora_alpha": 16, "r": 2},
        label_words=pd.Series({"positive": "good", "negative": "bad"}),
    ).fit(TEXTS, LABELS)
    estimator.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(TEXTS), estimator.predict(TEXTS))


def test_numbers_of_numpy_and_other_random_states(headless, tmp_path):
    changes = {"prompt_layer": np.int64(2), "epochs": np.int64(1), "lr": np.float32(1e-3), "max_steps": None}
    estimator = small(headless, **changes, random_state=np.random.RandomState(5)).fit(TEXTS, LABELS)
    other = small(headless, **changes, random_state=None).fit(TEXTS, LABELS)
    assert estimator.recipe_["seed"] != other.recipe_["seed"]
    with pytest.raises(ValueError, match=r"cannot be saved: RandomState"):
        estimator.save(tmp_path / "run")
    other.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"cannot be saved: RandomState"):
        estimator.save(tmp_path / "run", overwrite=True)
    loaded = LatePromptClassifier.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), other.predict_proba(TEXTS))


@pytest.mark.parametrize("unit", ["D", "s", "ns", "series"])
def test_dates_as_classes_survive_saving(headless, tmp_path, unit):
    days = np.array(["2026-01-01", "2026-02-01"], dtype="datetime64[s]")[np.arange(32) % 2]
    days = pd.Series(days) if unit == "series" else days.astype(f"datetime64[{unit}]")
    estimator = small(headless).fit(TEXTS, days)
    estimator.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(TEXTS), estimator.predict(TEXTS))


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, _through_joblib])
def test_a_fitted_estimator_can_be_copied(fitted, copied):
    twin = copied(fitted)
    np.testing.assert_array_equal(twin.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert twin.get_params() == fitted.get_params()
    assert len(pickle.dumps(fitted)) < 100_000  # the base model goes by name


def test_cross_validation_gives_its_estimators_back(headless):
    found = cross_validate(small(headless), TEXTS, LABELS, cv=2, return_estimator=True)
    assert [len(estimator.predict(TEXTS)) for estimator in found["estimator"]] == [32, 32]


def test_a_blank_folder_is_not_the_working_directory(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for work in (lambda: fitted.save("", overwrite=True), lambda: LatePromptClassifier.load("")):
        with pytest.raises(ValueError, match="is no name"):
            work()
    assert not any(tmp_path.iterdir())


def test_read_only(headless, tmp_path):
    estimator = small(headless, method="npg+late-lora", read_only=True)
    copied = clone(estimator)
    assert copied.get_params()["read_only"] is True
    assert copied.get_params()["method"] == "npg+late-lora"  # as given
    copied.fit(TEXTS, LABELS)
    assert copied.classifier_.settings.method == "read-npg+lora"
    copied.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run")
    np.testing.assert_allclose(loaded.predict_proba(TEXTS), copied.predict_proba(TEXTS), atol=1e-5)
    again = clone(loaded).fit(TEXTS, LABELS)
    assert again.classifier_.settings.method == "read-npg+lora"
    by_name = small(headless, method="read-npg+lora").fit(TEXTS, LABELS)
    np.testing.assert_allclose(by_name.predict_proba(TEXTS), copied.predict_proba(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lora", "read_only": True}, "method 'lora' has no read-only form"),
        ({"read_only": "yes"}, "read_only 'yes' is neither True nor False"),
    ],
)
def test_read_only_that_cannot_be(headless, settings, message):
    with pytest.raises(ValueError, match=message):
        small(headless, **settings).fit(TEXTS, LABELS)
