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
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from lateprompt.classifier import TextClassifier
from lateprompt.errors import LatePromptError
from lateprompt.files import as_json, clear_folder, prepare_folder, read_json, write_json, write_lines
from lateprompt.given import (
    Labels,
    Texts,
    as_eval_set,
    as_labels,
    as_texts,
    as_weights,
    class_weights,
    column_names,
    label_names,
)
from lateprompt.plain import classes_from_plain, classes_to_plain, from_plain, to_plain
from lateprompt.run import HISTORY_FILE, METRICS_FILE, versions
from lateprompt.tasks import Row, Task, default_task, label_name, load_label_task
from lateprompt.training.evaluate import softmax
from lateprompt.training.feed import Feed
from lateprompt.training.fit import FitResult, fit
from lateprompt.training.kept import StatesSettings, rows_needed
from lateprompt.training.metrics import check_metrics
from lateprompt.training.settings import ModelSettings, RecipeSettings

__all__ = ["LatePromptClassifier", "as_texts"]

_CLASSES = "classes"
_COLUMNS = "feature_names"
_FILES = "_files"
_DEVICE = "_device"
_FITTED = ("classifier_", "classes_", "n_features_in_", "feature_names_in_", "recipe_", "history_", "metrics_")


class LatePromptClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier by Late Prompt Tuning, with scikit-learn's contract.

    Texts are a list, array or Series of strings; pairs are two columns (an (n, 2) array, a data frame of two columns,
    or a list of pairs). Labels are texts, whole numbers, booleans or dates.

    A `fit` that fails or is interrupted leaves the estimator as it was. The same `random_state` gives the same model,
    in any thread; torch's, numpy's and Python's own random numbers are neither used nor changed. Fits in threads of one
    process take turns, step by step; use processes to fit several at the same time.

    Args:
        model: folder or hub id of a pretrained model.
        task: name of a task or a YAML file, whose label names `y` then holds; None: a plain template, labels from `y`.
        method: npg, mppg, appg, atpg, rpg or fixed; `head` trains a linear head on the frozen model; any other
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
        generator: another name of `method`, which it takes the place of.
        class_weight: None, "balanced", or label to weight: what the losses of a class's rows are multiplied with.
        eval_every: evaluate `eval_set` every so many steps; None: once an epoch.
        early_stop: stop after so many evaluations of `eval_set` without a better result; None: never.

    Attributes:
        classes_: the labels seen by `fit`, sorted.
        classifier_: the trained `TextClassifier`.
        recipe_: the recipe it was trained by, the seed in it.
        history_: one entry per evaluation: step, epoch, train_loss, seconds, and the metrics on `eval_set` (dev_…).
        metrics_: steps, times, trained parameters, and the metrics of the weights kept.
        n_features_in_: 1 for texts, 2 for pairs.
        feature_names_in_: the columns' names, of a data frame.

    Example:
        >>> from lateprompt import LatePromptClassifier
        >>> from lateprompt.demo import installed_encoder
        >>> classifier = LatePromptClassifier(installed_encoder(), steps=2, class_weight="balanced")
        >>> classifier.fit(["good", "fine", "bad"], [1, 1, 0]).predict(["a good film"]).shape
        (1,)
    """

    def __init__(
        self,
        model: str = "roberta-base",
        task: str | None = None,
        method: str = "npg",
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
        generator: str | None = None,
        class_weight: Any = None,
        eval_every: int | None = None,
        early_stop: int | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.method = method
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
        self.generator = generator
        self.class_weight = class_weight
        self.eval_every = eval_every
        self.early_stop = early_stop

    def set_params(self, **params: Any) -> LatePromptClassifier:
        """Set parameters by name. A fitted model stays as it is until the next `fit`.

        `method` and `generator` are one parameter under two names: setting one sets the other.
        """
        given = [name for name in ("method", "generator") if name in params]
        if given == ["method"] and self.generator is not None:
            params["generator"] = params["method"]
        if given == ["generator"] and params["generator"] is not None:
            params["method"] = params["generator"]
        super().set_params(**params)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return "classifier_" in vars(self)

    def _method(self) -> str:
        if self.generator is None:
            return self.method
        if self.method not in ("npg", self.generator):  # npg is what it is when nobody has said it
            raise LatePromptError(
                f"method {self.method!r} and generator {self.generator!r} are two names of one parameter and differ; "
                "give method alone"
            )
        return self.generator

    def _settings(self) -> tuple[ModelSettings, RecipeSettings]:
        seed = self.random_state
        if seed is None:  # numpy's own generator stays as it is
            seed = int(np.random.default_rng().integers(2**31))
        elif isinstance(seed, np.random.RandomState | np.random.Generator):
            draw = seed.randint if isinstance(seed, np.random.RandomState) else seed.integers
            seed = int(draw(2**31))
        parameters = {**self.get_params(deep=False), "method": self._method(), "seed": seed}
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: Any = None) -> LatePromptClassifier:
        """Train on texts `X` (or pairs) and labels `y`.

        Args:
            X: (n,) texts, or (n, 2) pairs.
            y: (n,) labels.
            sample_weight: (n,) what each row's loss is multiplied with; rows of weight 0 are as if they were not there.
            eval_set: `(X, y)` to evaluate while training: the weights that are best on it are kept. Without it the last
                ones are.

        Raises:
            LatePromptError: settings, texts, labels or weights that cannot be, or a training that diverged. Then, and
                when it is interrupted, the estimator is what it was before.
        """
        model, recipe = self._settings()
        model.check()
        recipe.check()
        states = StatesSettings(str(self.states) if isinstance(self.states, os.PathLike) else self.states)
        states.check(model.trunk_dropout)
        held_out = as_eval_set(eval_set)
        if recipe.early_stop is not None and held_out is None:
            raise LatePromptError(
                f"early_stop {recipe.early_stop!r} needs rows to evaluate on; give fit an eval_set=(X, y)"
            )
        texts, columns = as_texts(X), column_names(X)
        labels = as_labels(y, len(texts))
        texts, labels, weights = self._counted(texts, labels, sample_weight)
        classes = labels.classes()
        if len(classes) < 2:
            raise LatePromptError(f"y has one class ({classes[0]!r}); a classifier needs at least two")
        pair = texts[0][1] is not None
        task = self._task([label_name(label) or "" for label in classes], pair)
        dev = None if held_out is None else _dev_rows(*held_out, task, pair)
        texts, labels, weights = self._weighted(texts, labels, weights, task)
        classifier = TextClassifier.build(model, task, seed=recipe.seed)
        rows = [Row(a, b, name, {}) for (a, b), name in zip(texts, labels.names, strict=True)]
        feeds = [classifier.feed(rows), *([] if dev is None else [classifier.feed(dev)])]
        feeds[0].weights = None if weights is None else weights.astype(np.float32)
        result, fill_seconds = self._train(classifier, feeds, recipe, states)
        fitted = {
            "classifier_": classifier,
            "classes_": classes,
            "n_features_in_": 2 if pair else 1,
            **({} if columns is None else {"feature_names_in_": np.array(columns, dtype=object)}),
            "recipe_": asdict(recipe),
            "history_": result.history,
            "metrics_": {
                **result.metrics,
                "steps": result.steps,
                "trainable_parameters": classifier.trainable_parameters,
                "train_seconds": result.train_seconds,
                "tokens_per_second": result.tokens_per_second,
                "trunk_fill_seconds": fill_seconds,
            },
        }
        # All at once: whatever interrupts finds the old model or the new one.
        self.__dict__ = {**{name: value for name, value in vars(self).items() if name not in _FITTED}, **fitted}
        return self

    def _counted(self, texts: Texts, labels: Labels, sample_weight: Any) -> tuple[Texts, Labels, np.ndarray | None]:
        """The rows that have a weight, and their weights."""
        weights = as_weights(sample_weight, len(texts))
        if weights is None or weights.all():
            return texts, labels, weights
        kept = weights > 0
        return [text for text, keep in zip(texts, kept, strict=True) if keep], labels.of(kept), weights[kept]

    def _weighted(
        self, texts: Texts, labels: Labels, weights: np.ndarray | None, task: Task
    ) -> tuple[Texts, Labels, np.ndarray | None]:
        """The same with the classes' weights; 1 on the average, None if they are all alike."""
        by_class = class_weights(self.class_weight, labels, task.labels, weights)
        texts, labels, weights = self._counted(texts, labels, by_class if weights is None else weights * by_class)
        assert weights is not None
        if (weights == weights[0]).all():
            return texts, labels, None
        return texts, labels, weights / weights.mean()

    def _train(
        self, classifier: TextClassifier, feeds: list[Feed], recipe: RecipeSettings, states: StatesSettings
    ) -> tuple[FitResult, float]:
        wanted = [rows_needed(feeds[0], recipe), *(np.arange(len(feed)) for feed in feeds[1:])]
        kept, fill_seconds = classifier.kept(list(zip(feeds, wanted, strict=True)), states, quiet=not self.verbose)
        result = fit(
            classifier.model,
            classifier.readout,
            kept[0],
            kept[1] if len(kept) > 1 else None,
            recipe,
            metrics=classifier.task.metrics,
            device=classifier.device,
            quiet=not self.verbose,
        )
        return result, fill_seconds

    def _scores(self, X: Any) -> np.ndarray:
        """Scores (texts, classes), columns as in `classes_`."""
        check_is_fitted(self)
        texts = as_texts(X)
        if (texts[0][1] is not None) != (self.n_features_in_ == 2):
            raise LatePromptError(
                f"X has {1 if texts[0][1] is None else 2} text columns, fit saw {self.n_features_in_}"
            )
        columns, known = column_names(X), getattr(self, "feature_names_in_", None)
        if columns is not None and known is not None and len(known) == 2 and columns != list(known):
            raise LatePromptError(f"X has the columns {', '.join(columns)}, fit saw {', '.join(known)}; order them so")
        scores = self.classifier_.scores([Row(a, b, None, {}) for a, b in texts])
        labels = list(self.classifier_.task.labels)
        chosen = scores[:, [labels.index(label_name(label) or "") for label in self.classes_]]  # a task may have more
        if not np.isfinite(chosen).all():
            raise LatePromptError(
                "the model's scores are no numbers: its weights are broken, or its float type overflows; "
                "fit it again (dtype='float32')"
            )
        return chosen

    def predict_proba(self, X: Any) -> np.ndarray:
        """Label probabilities (texts, classes), columns as in `classes_`.

        Raises:
            LatePromptError: texts that cannot be, or weights that give no numbers.
        """
        return softmax(self._scores(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the label probabilities (texts, classes); finite, however small a probability is."""
        scores = self._scores(X)
        scores = scores - scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))  # type: ignore[no-any-return]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each text."""
        best = self._scores(X).argmax(1)
        return self.classes_[best]  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; labels are compared by name, so that 1, 1.0 and "1" are the same one."""
        predicted = self.predict(X)
        names = label_names(y, len(predicted))
        return float(accuracy_score(names, label_names(predicted, len(names)), sample_weight=sample_weight))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder, which `load` and the command line read.

        Raises:
            LatePromptError: a folder that is not empty, unless `overwrite`.
        """
        check_is_fitted(self)
        folder = Path(folder)
        prepare_folder(folder, overwrite=overwrite, resume=False)
        facts = {
            "estimator": {name: to_plain(value) for name, value in self.get_params(deep=False).items()},
            _CLASSES: classes_to_plain(self.classes_),
            _COLUMNS: list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None,
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

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, joblib and copies: a fitted model as its run folder's files, the base model by name."""
        state = dict(super().__getstate__())
        classifier = state.pop("classifier_", None)
        if classifier is not None:
            with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
                classifier.save(Path(name))
                state[_FILES] = {path.name: path.read_bytes() for path in Path(name).iterdir()}
            state[_DEVICE] = classifier.settings.device  # the parameter may have another value by now
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files, device = state.get(_FILES), state.get(_DEVICE, state.get("device"))
        known = {name: None for name in self._get_param_names() if name not in state}  # pickled by an older version
        if "method" in known:
            known["method"] = state.get("generator", "npg")
        super().__setstate__(
            {**known, **{name: value for name, value in state.items() if name not in (_FILES, _DEVICE)}}
        )
        if files is not None:
            with tempfile.TemporaryDirectory(prefix="lateprompt-") as name:
                for file, content in files.items():
                    (Path(name) / file).write_bytes(content)
                self.classifier_ = TextClassifier.load(name, device=device)

    @classmethod
    def load(cls, folder: str | Path, *, model: str | None = None, device: str | None = None) -> LatePromptClassifier:
        """The estimator of a run folder, whether `save` or `lateprompt train` left it.

        Raises:
            LatePromptError: no run folder, or one that is broken.
        """
        folder = Path(folder)
        classifier = TextClassifier.load(folder, model=model, device=device)
        run = read_json(folder / "run.json", "run file")
        recipe, saved, source = run.get("recipe") or {}, run.get("estimator"), f"run file {str(folder / 'run.json')!r}"
        for name, value in (("recipe", recipe), ("estimator", saved)):
            if value is not None and not isinstance(value, dict):
                raise LatePromptError(f"{source}: {name} {str(value)[:40]!r} is no mapping; save it again")
        if saved is None:  # a run of the command line
            saved = {**asdict(classifier.settings), **recipe, "random_state": recipe.get("seed", 42)}
            saved["generator"] = classifier.settings.method
        saved = {name: from_plain(value) for name, value in saved.items()}
        if "method" not in saved or run.get("estimator") is None:
            saved["method"] = saved.get("generator", "npg")  # its only name once
        estimator = cls(**{name: value for name, value in saved.items() if name in cls._get_param_names()})
        estimator.model, estimator.device = classifier.settings.model, device
        classes = classes_from_plain(run.get(_CLASSES), source)
        estimator.classes_ = np.array(sorted(classifier.task.labels)) if classes is None else classes
        unknown = [label for label in estimator.classes_ if label_name(label) not in classifier.task.labels]
        if unknown:
            raise LatePromptError(f"{source}: class {unknown[0]!r} is no label of its task; save it again")
        estimator.recipe_ = recipe
        estimator.n_features_in_ = 2 if classifier.task.is_pair else 1
        if run.get(_COLUMNS):
            estimator.feature_names_in_ = np.array(run[_COLUMNS], dtype=object)
        metrics = folder / METRICS_FILE
        estimator.metrics_ = read_json(metrics, "metrics") if metrics.is_file() else {}
        estimator.history_ = _read_history(folder / HISTORY_FILE)
        estimator.classifier_ = classifier
        return estimator


def _dev_rows(X: Any, y: Any, task: Task, pair: bool) -> list[Row]:
    """The rows of an `eval_set`."""
    check_metrics(task.metrics)
    texts = as_texts(X, "eval_set's X")
    if (texts[0][1] is not None) != pair:
        raise LatePromptError(f"eval_set's X has {1 if pair else 2} text columns, X has {2 if pair else 1}")
    names = as_labels(y, len(texts), "eval_set's y").names
    unknown = next((name for name in names if name not in task.labels), None)
    if unknown is not None:
        raise LatePromptError(f"eval_set's y has label {unknown!r}, y has {', '.join(task.labels)}")
    return [Row(a, b, name, {}) for (a, b), name in zip(texts, names, strict=True)]


def _read_history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LatePromptError(f"history {str(path)!r} is broken: {error}") from None
