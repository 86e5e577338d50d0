"""Linear baselines: what they are fitted on, their run folders, and all commands that take a run or a method."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import make_rows, write_rows
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from lateprompt import LatePromptClassifier, LatePromptError
from lateprompt.cli.app import main
from lateprompt.data import Row, Task, default_task
from lateprompt.methods import NAMES, check_method, is_late, is_linear, read_only_name
from lateprompt.predictors.kinds import load_run
from lateprompt.predictors.linear.classifier import PooledBatches
from lateprompt.predictors.linear.logistic import LabelledFeatures, choose_C, fit_logistic
from lateprompt.predictors.multi_task import MultiTask
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.evaluate import softmax
from lateprompt.training.settings import ModelSettings, RecipeSettings

METHODS = ("tfidf", "embedding-lr")
TASK = default_task(["negative", "positive"], pair=False)
PAIRS = default_task(["no", "yes"], pair=True)


def rows(number: int, start: int = 0) -> list[Row]:
    return [Row(row["text"], None, row["label"], {}) for row in make_rows(number, start)]


def settings_of(method: str, model: str, **given) -> ModelSettings:
    return ModelSettings("" if method == "tfidf" else model, method, device="cpu", **given)


def fitted(method, model, train, task=TASK, *, states="off", **more):
    pipeline = Pipeline(settings_of(method, model), Rows(task, train, **more), RecipeSettings(), StatesSettings(states))
    pipeline.run()
    return pipeline


@pytest.fixture(scope="module")
def runs(tmp_path_factory, headless, data):
    """A run of each method, by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        model = [] if method == "tfidf" else ["--model", headless]
        files = ["--train", data["train"], "--dev", data["dev"], "--test", data["test"]]
        assert main(["train", "--method", method, *model, *files, "--output", str(folder / method), "--quiet"]) == 0
    return {method: folder / method for method in METHODS}


def test_tfidf_is_scikit_learn_s():
    train, new = rows(40), rows(12, 300)
    texts, labels = [row.text for row in train], [row.label for row in train]
    tuned = fitted("tfidf", "", train).tuned
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=fitted("tfidf", "", train).metrics["C"], max_iter=500)
    model.fit(vectorizer.fit_transform(texts), labels)
    expected = model.predict_proba(vectorizer.transform([row.text for row in new]))
    np.testing.assert_allclose(tuned.probabilities(new), expected, atol=1e-5)
    assert tuned.trainable_parameters == len(vectorizer.vocabulary_) + 1


def test_embeddings_are_means_over_real_tokens(headless):
    """Whatever the batch, and from the store or not."""
    from transformers import AutoModel

    train = rows(9)
    tuned = fitted("embedding-lr", headless, train).tuned
    states = tuned.output.compute(tuned.batches(train).examples, batch_size=4)
    model = AutoModel.from_pretrained(headless).eval()
    ids = tuned.tokenizer(train[3].text, return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(states[3], expected.numpy(), atol=1e-5)


def test_pooled_states_are_kept_and_shared(headless, tmp_path, monkeypatch):
    first = fitted("embedding-lr", headless, rows(24), dev=rows(8, 50), states=str(tmp_path))
    assert first.fill_seconds > 0
    assert isinstance(first.batches["dev"], PooledBatches)
    (store,) = tmp_path.glob("*-float32-mean-*")
    assert store.is_dir()
    monkeypatch.setattr("lateprompt.state_cache.store.run_trunk", lambda *args: pytest.fail("computed again"))
    again = fitted("embedding-lr", headless, rows(24), states=str(tmp_path))
    assert again.fill_seconds == 0.0
    assert fitted("embedding-lr", headless, rows(24)).metrics["C"] == again.metrics["C"]


def test_a_causal_model(causal_lm):
    tuned = fitted("embedding-lr", causal_lm, rows(24)).tuned
    assert tuned.probabilities(rows(5)).shape == (5, 2)


def test_pairs_have_features_of_their_own(headless):
    words = ["red", "blue", "green", "black"]
    train = [Row(words[i % 4], words[i // 4 % 4], "yes" if i // 4 % 2 else "no", {}) for i in range(32)]
    swapped = [Row(row.text_pair or "", row.text, None, {}) for row in train]
    for method in METHODS:
        pipeline = fitted(method, headless, train, PAIRS, test={"test": train})
        assert not np.allclose(pipeline.tuned.scores(train), pipeline.tuned.scores(swapped))
    assert fitted("tfidf", "", train, PAIRS, test={"test": train}).metrics["test"]["test"]["accuracy"] == 1.0
    with pytest.raises(LatePromptError, match="row 1 has no text_pair"):
        fitted("tfidf", "", train, PAIRS).tuned.scores([Row("red")])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_folder(runs, method, headless, data, capsys, tmp_path):
    run = runs[method]
    files = {path.name for path in run.iterdir()}
    own = {"linear_model.safetensors", *(["vocabulary.json"] if method == "tfidf" else [])}
    others = {"task.yaml", "run.json", "metrics.json", "history.jsonl", "README.md", "manifest.json"}
    assert files == own | others
    measured = json.loads((run / "metrics.json").read_text())
    assert measured["trainable_parameters"] == sum(
        load_file(run / "linear_model.safetensors")[name].numel() for name in ("coef", "intercept")
    )
    assert measured["steps"] > 0
    assert measured["tokens_per_second"] is None
    card = (run / "README.md").read_text()
    assert "linear baseline" in card
    assert ("language model" in card) == (method == "tfidf")
    assert "PEFT adapter" not in card
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", data["test"], "--json"]) == 0
    (test,) = measured["test"].values()
    assert json.loads(capsys.readouterr().out)["accuracy"] == test["accuracy"]
    output = tmp_path / "found.jsonl"
    assert main(["predict", str(run), "--data", data["test"], "--output", str(output)]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert np.mean([line["prediction"] == line["label"] for line in found]) == pytest.approx(test["accuracy"])
    assert all(sum(line["scores"].values()) == pytest.approx(1, abs=1e-5) for line in found)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_same_after_loading(method, headless, tmp_path):
    new = rows(20, 400)
    pipeline = fitted(method, headless, rows(30), dev=rows(10, 60))
    expected = pipeline.tuned.scores(new)
    pipeline.save(tmp_path / "run")
    np.testing.assert_allclose(load_run(tmp_path / "run", device="cpu").scores(new), expected, atol=1e-6)
    pipeline.save(tmp_path / "run")  # a run takes the place of one


@pytest.mark.parametrize("method", METHODS)
def test_the_estimator(method, headless, tmp_path):
    train, new = rows(30), [row.text for row in rows(10, 70)]
    texts, labels = [row.text for row in train], [row.label for row in train]
    classifier = LatePromptClassifier(headless, method=method, states="off", device="cpu").fit(texts, labels)
    expected = classifier.predict_proba(new)
    # Half are right by chance; the vocabulary of the tiny tokenizer, and so its states, differ from run to run.
    assert classifier.score(texts, labels) >= 0.7
    for other in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        np.testing.assert_allclose(other.predict_proba(new), expected, atol=1e-6)
    classifier.save(tmp_path / "run")
    loaded = LatePromptClassifier.load(tmp_path / "run", device="cpu")
    np.testing.assert_allclose(loaded.predict_proba(new), expected, atol=1e-6)
    assert loaded.method == method
    weighted = LatePromptClassifier(headless, method=method, states="off", device="cpu")
    weighted.fit(texts, labels, sample_weight=np.where(np.array(labels) == "positive", 50.0, 0.02))
    assert weighted.predict_proba(new)[:, 1].mean() > expected[:, 1].mean() + 0.05  # class weights work alike


def test_a_label_without_training_rows_is_never_answered():
    task = Task("t", ("a", "b", "c"), ("a", "b", "c"), "{text} {mask}", "{text} {label}", "{text}")
    train = [Row("one two", None, "c", {}), Row("one three", None, "a", {})] * 6
    tuned = fitted("tfidf", "", train, task).tuned
    probabilities = tuned.probabilities([Row("three"), Row("two"), Row("nothing known")])
    assert probabilities.argmax(1)[:2].tolist() == [0, 2]
    assert (probabilities[:, 1] == 0).all()
    assert np.isfinite(tuned.scores([Row("three")])).all()


def test_held_out_rows_choose():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    train = LabelledFeatures(generator.normal(size=(60, 30)) + 3 * np.eye(3, 30)[labels], labels)
    strong, tried = choose_C(train, None, (1e-4, 1.0, 1e6), seed=1)
    assert strong == 1.0
    assert min(one["loss"] for one in tried) == tried[1]["loss"]
    dev = LabelledFeatures(np.eye(3, 30)[labels] * 50, labels)  # sure answers are right there
    assert choose_C(train, dev, (1e-4, 1.0, 1e6), seed=1)[0] >= 1.0
    assert choose_C(train, None, (1e-4, 1.0, 1e6), seed=1)[1] == tried
    single = LabelledFeatures(np.eye(4), np.arange(4))
    assert choose_C(single, None, (1.0, 2.0), seed=1)[0] == 1.0  # nothing can be held out
    with pytest.raises(LatePromptError, match="one label alone"):
        fit_logistic(LabelledFeatures(np.eye(4), np.zeros(4, dtype=int)), 1.0)


def test_two_classes_give_scikit_learn_s_probabilities():
    generator = np.random.default_rng(3)
    for classes in (2, 4):
        labels = np.arange(80) % classes
        features = generator.normal(size=(80, 6)) + labels[:, None]
        model, _ = fit_logistic(LabelledFeatures(features, labels), 0.5)
        expected = LogisticRegression(C=0.5, max_iter=500).fit(features, labels).predict_proba(features)
        np.testing.assert_allclose(softmax(model.scores(features, classes)), expected, atol=1e-5)


def test_names():
    assert {name for name in NAMES if is_linear(name)} == set(METHODS)
    assert not any(is_late(name) for name in METHODS)
    for name in METHODS:
        with pytest.raises(LatePromptError, match=rf"'{name}' is a linear model.*use it alone"):
            check_method(f"npg+{name}")
        with pytest.raises(LatePromptError, match="no read-only form"):
            read_only_name(name)
        with pytest.raises(LatePromptError, match=f"'late-{name}' is unknown"):
            check_method(f"late-{name}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--method", "embedding-lr"], "--model is needed: method 'embedding-lr'"),
        (["--method", "npg"], "--model is needed: method 'npg'"),
        (["--method", "tfidf", "--set", "C=-1"], "option C -1; give a number above 0"),
        (["--method", "tfidf", "--set", "ngrams=0"], "option ngrams 0; give a whole number from 1"),
        (["--method", "tfidf", "--readout", "masked_lm"], "readout 'masked_lm' is none of method 'tfidf'"),
        (["--method", "tfidf", "--set", "r=4"], "has no option 'r'"),
    ],
)
def test_settings_that_cannot_be(given, message, data, tmp_path, capsys):
    command = ["train", "--train", data["train"], "--output", str(tmp_path / "run"), *given]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rows_that_cannot_be(tmp_path, capsys):
    command = ["train", "--method", "tfidf", "--output", str(tmp_path / "run"), "--train"]
    targets = [{"text": f"a text {i}", "target": f"an answer of words {i}"} for i in range(8)]
    assert main([*command, write_rows(tmp_path / "targets.jsonl", targets)]) == 2
    assert "method 'tfidf' sorts texts into labels" in capsys.readouterr().err
    signs = [{"text": "! ?", "label": "ab"[i % 2]} for i in range(8)]
    assert main([*command, write_rows(tmp_path / "signs.jsonl", signs)]) == 2
    assert "has no words" in capsys.readouterr().err


def broken(run, tmp_path, change):
    """A copy of a run with its files changed."""
    copied = tmp_path / "broken"
    copied.mkdir()
    for path in run.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / "manifest.json").unlink()
    change(copied)
    return copied


def set_tensor(name, value):
    def change(folder):
        tensors = load_file(folder / "linear_model.safetensors")
        tensors[name] = value(tensors[name])
        save_file(tensors, folder / "linear_model.safetensors")

    return change


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("tfidf", lambda folder: (folder / "vocabulary.json").unlink(), "vocabulary.json"),
        ("tfidf", lambda folder: (folder / "vocabulary.json").write_text('{"text": ["a"]}'), "does not fit"),
        ("tfidf", lambda folder: (folder / "vocabulary.json").write_text('{"text": 3}'), "no list of terms"),
        (
            "tfidf",
            lambda folder: (folder / "linear_model.safetensors").write_bytes(b"x"),
            "truncated or no safetensors",
        ),
        ("tfidf", set_tensor("coef", lambda coef: coef[:, :-1].contiguous()), "'coef' has shape"),
        ("tfidf", set_tensor("coef", lambda coef: coef * float("nan")), "NaN or infinity"),
        ("tfidf", set_tensor("classes", lambda classes: classes + 5), "classes up to 6, the task 2 labels"),
        ("embedding-lr", set_tensor("mean", lambda mean: mean[:-1].contiguous()), "'mean' has not"),
        ("embedding-lr", set_tensor("scale", lambda scale: scale * 0), "'scale' has values up to 0"),
    ],
)
def test_broken_runs(runs, method, change, message, tmp_path):
    with pytest.raises(LatePromptError, match=message):
        load_run(broken(runs[method], tmp_path, change))


def test_a_run_of_another_model_is_refused(runs, masked_lm):
    with pytest.raises(LatePromptError, match="has other weights"):
        load_run(runs["embedding-lr"], model=masked_lm)


def test_several_runs_share_no_linear_model(runs):
    for run in runs.values():
        with pytest.raises(LatePromptError, match="a linear model without an adapter"):
            MultiTask.load([run])


def test_resuming_a_finished_run(runs, data, capsys):
    command = ["train", "--method", "tfidf", "--train", data["train"], "--dev", data["dev"], "--test", data["test"]]
    assert main([*command, "--output", str(runs["tfidf"]), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train_rows"] == 64


def test_in_a_comparison(headless, tmp_path, capsys, monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    for name, number in (("train", 80), ("dev", 20)):
        (tmp_path / "sst2").mkdir(exist_ok=True)
        write_rows(tmp_path / "sst2" / f"{name}.jsonl", make_rows(number, 0 if name == "train" else 300))
    command = ["compare", "--model", headless, "--methods", *METHODS, "--tasks", "sst2", "--data", str(tmp_path)]
    results = str(tmp_path / "results")
    assert main([*command, "--shots", "24", "--dev-rows", "16", "--output", results, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["status"]) for row in found] == [(method, "done") for method in METHODS]
    assert all(row["trainable_parameters"] > 0 and row["test"] is not None for row in found)
    assert all(json.loads(row["settings"])["prompt_layer"] is None for row in found)
    assert main(["report", results, "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [row["method"] for row in table["methods"]] == list(METHODS)
