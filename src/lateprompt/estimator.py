"""`LatePromptClassifier`: the training recipe as a scikit-learn estimator."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted

from lateprompt.classifier import TextClassifier
from lateprompt.errors import LatePromptError
from lateprompt.files import as_json, clear_folder, prepare_folder, read_json, write_json, write_lines, write_text
from lateprompt.model_card import CARD_FILE, model_card
from lateprompt.run import HISTORY_FILE, METRICS_FILE, versions
from lateprompt.tasks import Row, Task, default_task, label_name, load_label_task
from lateprompt.tasks.readers import check_characters
from lateprompt.training.fit import fit
from lateprompt.training.kept import StatesSettings, rows_needed
from lateprompt.training.settings import ModelSettings, RecipeSettings

_CLASSES = "classes"
_FILES = "_files"


class LatePromptClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier by Late Prompt Tuning, with scikit-learn's contract.

    Texts are a list, array or Series of strings; pairs are two columns (an (n, 2) array, a data frame of two columns,
    or a list of pairs). Labels may be of any type scikit-learn takes.

    Args:
        model: folder or hub id of a pretrained model.
        task: name of a task or a YAML file, whose label names `y` then holds; None: a plain template, labels from `y`.
        generator: npg, mppg, appg, atpg, rpg or fixed; `head` trains a linear head on the frozen model; any other
            method of `lateprompt methods` too: late-lora, npg+late-lora, …
        options: the method's own options, by name; None: its defaults.
        prompt_layer: number of layers below the prompt, or a fraction of the depth.
        num_prompt_tokens: number of prompt vectors; None: 5 with a generator, 20 without.
        bottleneck_dim: inner width of the generator.
        readout: mask, label, head or auto.
        head_pooling: cls, mean or last; None: mean for encoders, last for decoders.
        loss: vocabulary or labels.
        label_words: label to label word, without a task; None: the labels' own names.
        max_length: longest input in tokens.
        dtype: the frozen backbone's float type.
        device: where to run; None: a GPU if there is one.
        epochs, steps, batch_size, lr, weight_decay, warmup, clip, precision: the recipe, see `RecipeSettings`.
        states: on, off or a folder: whether and where trunk states are kept, see `StatesSettings`.
        random_state: seed; None: another one at each `fit`.
        verbose: show a progress bar.

    Attributes:
        classes_: the labels seen by `fit`, sorted.
        classifier_: the trained `TextClassifier`.
        recipe_: the recipe it was trained by, the seed in it.
        n_features_in_: 1 for texts, 2 for pairs.
    """

    def __init__(
        self,
        model: str = "roberta-base",
        task: str | None = None,
        generator: str = "npg",
        options: dict[str, Any] | None = None,
        prompt_layer: int | float | str = "0.5",
        num_prompt_tokens: int | None = None,
        bottleneck_dim: int = 128,
        readout: str = "auto",
        head_pooling: str | None = None,
        loss: str = "vocabulary",
        label_words: dict[Any, str] | None = None,
        max_length: int = 256,
        dtype: str = "float32",
        device: str | None = None,
        epochs: int = 10,
        steps: int | None = None,
        batch_size: int = 32,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.06,
        clip: float = 1.0,
        precision: str = "fp32",
        states: str = "on",
        random_state: int | np.random.RandomState | None = 42,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.task = task
        self.generator = generator
        self.options = options
        self.prompt_layer = prompt_layer
        self.num_prompt_tokens = num_prompt_tokens
        self.bottleneck_dim = bottleneck_dim
        self.readout = readout
        self.head_pooling = head_pooling
        self.loss = loss
        self.label_words = label_words
        self.max_length = max_length
        self.dtype = dtype
        self.device = device
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.clip = clip
        self.precision = precision
        self.states = states
        self.random_state = random_state
        self.verbose = verbose

    def _settings(self) -> tuple[ModelSettings, RecipeSettings]:
        seed = self.random_state
        if seed is None or isinstance(seed, np.random.RandomState):  # scikit-learn's other ways to say it
            seed = int(check_random_state(seed).randint(2**31))
        parameters = {**self.get_params(deep=False), "method": self.generator, "seed": seed}
        parameters["options"] = dict(self.options or {})
        for name in ("model", "task", "device"):  # paths and devices as users have them
            if isinstance(parameters[name], os.PathLike | torch.device):
                parameters[name] = str(parameters[name])
        model = ModelSettings(**{f.name: parameters[f.name] for f in fields(ModelSettings) if f.name in parameters})
        recipe = RecipeSettings(**{f.name: parameters[f.name] for f in fields(RecipeSettings) if f.name in parameters})
        return model, recipe

    def _task(self, names: Sequence[str], pair: bool) -> Task:
        if self.task is not None:
            task = load_label_task(self.task)
            unknown = sorted(set(names) - set(task.labels))
            if unknown:
                raise LatePromptError(f"y has label {unknown[0]!r}, task {task.name!r} has {', '.join(task.labels)}")
            return task
        words = None
        if self.label_words is not None:
            if not hasattr(self.label_words, "items"):
                raise LatePromptError(f"label_words {self.label_words!r} is no mapping; give one from label to word")
            given = {label_name(label): word for label, word in self.label_words.items()}
            missing = sorted(set(names) - set(given))
            if missing:
                raise LatePromptError(
                    f"label_words has no word for label {missing[0]!r}; give one for each of {sorted(names)}"
                )
            words = [given[name] for name in names]
        return default_task(names, pair=pair, label_words=words)

    def fit(self, X: Any, y: Any) -> LatePromptClassifier:
        """Train on texts `X` (or pairs) and labels `y`.

        Raises:
            LatePromptError: settings, texts or labels that cannot be.
        """
        model, recipe = self._settings()
        model.check()
        recipe.check()
        states = StatesSettings(str(self.states) if isinstance(self.states, os.PathLike) else self.states)
        states.check(model.trunk_dropout)
        texts = as_texts(X)
        labels = np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise LatePromptError(f"y has shape {labels.shape} for {len(texts)} texts; give one label a text")
        gap = next((number for number, label in enumerate(y) if _is_gap(label)), None)
        if gap is not None:  # before numpy makes the text 'nan' of it
            raise LatePromptError(f"y[{gap}] is a gap, NaN or infinity; give every text a label")
        self.classes_ = unique_labels(labels)
        if len(self.classes_) < 2:
            raise LatePromptError(f"y has one class ({self.classes_[0]!r}); a classifier needs at least two")
        names = [label_name(label) or "" for label in self.classes_]
        pair = texts[0][1] is not None
        task = self._task(names, pair)
        rows = [Row(a, b, label_name(label), {}) for (a, b), label in zip(texts, labels, strict=True)]
        self.classifier_ = TextClassifier.build(model, task, seed=recipe.seed)
        feed = self.classifier_.feed(rows)
        (feed,), fill_seconds = self.classifier_.kept(
            [(feed, rows_needed(feed, recipe))], states, quiet=not self.verbose
        )
        result = fit(
            self.classifier_.model,
            self.classifier_.readout,
            feed,
            None,
            recipe,
            metrics=task.metrics,
            device=self.classifier_.device,
            quiet=not self.verbose,
        )
        self.n_features_in_ = 2 if pair else 1
        self.recipe_ = asdict(recipe)
        self.history_ = result.history
        self.metrics_ = {
            "train_rows": len(rows),
            "steps": result.steps,
            "trainable_parameters": self.classifier_.trainable_parameters,
            "train_seconds": result.train_seconds,
            "tokens_per_second": result.tokens_per_second,
            "trunk_fill_seconds": fill_seconds,
        }
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Label probabilities (texts, classes), columns as in `classes_`."""
        check_is_fitted(self, "classifier_")
        texts = as_texts(X)
        if texts and (texts[0][1] is not None) != (self.n_features_in_ == 2):
            raise LatePromptError(
                f"X has {1 if texts[0][1] is None else 2} text columns, fit saw {self.n_features_in_}"
            )
        probabilities = self.classifier_.probabilities([Row(a, b, None, {}) for a, b in texts])
        order = [self.classifier_.task.labels.index(label_name(label)) for label in self.classes_]
        chosen = probabilities[:, order]  # a task may have labels that y did not
        return chosen / np.maximum(chosen.sum(1, keepdims=True), 1e-30)  # type: ignore[no-any-return]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each text."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]  # type: ignore[no-any-return]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder, which `load` and the command line read.

        Raises:
            LatePromptError: a folder that is not empty, unless `overwrite`.
        """
        check_is_fitted(self, "classifier_")
        folder = Path(folder)
        prepare_folder(folder, overwrite=overwrite, resume=False)
        parameters = self.get_params(deep=False)
        if self.label_words is not None:
            parameters["label_words"] = {label_name(label): word for label, word in self.label_words.items()}
        facts = {
            "estimator": parameters,
            _CLASSES: _classes_as_json(self.classes_),
            "recipe": self.recipe_,
            "versions": versions(),
        }
        try:
            json.dumps(facts, default=as_json)
        except (TypeError, ValueError) as error:
            raise LatePromptError(f"this estimator cannot be saved: {error}; give plain values") from None
        if overwrite:  # nothing can be wrong any more
            clear_folder(folder)
        self.classifier_.save(folder, facts)
        write_lines(folder / HISTORY_FILE, self.history_)
        write_json(folder / METRICS_FILE, self.metrics_)
        write_text(folder / CARD_FILE, model_card(self.classifier_, self.metrics_, self.recipe_))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, joblib and copies: a fitted model as its run folder's files, the base model by name."""
        state = dict(super().__getstate__())
        classifier = state.pop("classifier_", None)
        if classifier is not None:
            with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
                classifier.save(Path(name))
                state[_FILES] = {path.name: path.read_bytes() for path in Path(name).iterdir()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.get(_FILES)
        super().__setstate__({name: value for name, value in state.items() if name != _FILES})
        if files is not None:
            with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
                for file, content in files.items():
                    (Path(name) / file).write_bytes(content)
                self.classifier_ = TextClassifier.load(name, device=self.device)

    @classmethod
    def load(cls, folder: str | Path, *, model: str | None = None, device: str | None = None) -> LatePromptClassifier:
        """The estimator of a run folder, whether `save` or `lateprompt train` left it.

        Raises:
            LatePromptError: no run folder, or one that is broken.
        """
        folder = Path(folder)
        classifier = TextClassifier.load(folder, model=model, device=device)
        run = read_json(folder / "run.json", "run file")
        known = set(cls().get_params(deep=False))
        recipe = run.get("recipe", {})
        saved = run.get("estimator")
        if saved is None:  # a run of the command line
            saved = {**asdict(classifier.settings), **recipe, "generator": classifier.settings.method}
            saved["random_state"] = recipe.get("seed", 42)
        estimator = cls(**{name: value for name, value in saved.items() if name in known})
        estimator.set_params(model=classifier.settings.model, device=device)
        classes = run.get(_CLASSES, {})
        dtype = classes.get("dtype") if classes.get("kind") == "M" else None
        estimator.classes_ = np.array(classes.get("values") or sorted(classifier.task.labels), dtype=dtype)
        estimator.recipe_ = recipe
        estimator.classifier_ = classifier
        estimator.n_features_in_ = 2 if classifier.task.is_pair else 1
        metrics = folder / METRICS_FILE
        estimator.metrics_ = read_json(metrics, "metrics") if metrics.is_file() else {}
        estimator.history_ = []
        return estimator


def _classes_as_json(classes: np.ndarray) -> dict[str, Any]:
    """Classes for the run file; dates as text, with the unit that they are read again with."""
    kind = classes.dtype.kind
    values = [str(value) for value in classes] if kind == "M" else classes.tolist()
    return {"kind": kind, "dtype": classes.dtype.str, "values": values}


def _is_gap(label: Any) -> bool:
    """Whether a label is missing: None, NaN, infinite, or pandas' NA."""
    if label is None:
        return True
    try:
        return bool(label != label) or label in (float("inf"), float("-inf"))
    except (TypeError, ValueError):  # NA has no truth
        return True


def as_texts(X: Any) -> list[tuple[str, str | None]]:
    """Texts or pairs as (text, text_pair or None).

    Raises:
        LatePromptError: no texts, something that is no string, or more than two columns.
    """
    if isinstance(X, str):
        raise LatePromptError(f"X is one string ({X[:40]!r}); give a list of texts")
    if not np.iterable(X):
        raise LatePromptError(f"X is {X!r}; give a list of texts")
    values = X.to_numpy() if hasattr(X, "to_numpy") else X
    rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
    texts: list[tuple[str, str | None]] = []
    for number, row in enumerate(rows):
        columns = list(row) if isinstance(row, list | tuple | np.ndarray) else [row]
        if not 1 <= len(columns) <= 2:
            raise LatePromptError(f"X row {number} has {len(columns)} columns; give a text, or a text and its pair")
        for column in columns:
            if not isinstance(column, str):
                raise LatePromptError(f"X row {number} is {column!r}, not a string; give texts")
            check_characters(column, f"X row {number}")
        texts.append((columns[0], columns[1] if len(columns) == 2 else None))
    if len({pair is None for _, pair in texts}) > 1:
        raise LatePromptError("X mixes texts and pairs; give all rows one text, or all two")
    if not texts:
        raise LatePromptError("X is empty; give at least one text")
    return texts
