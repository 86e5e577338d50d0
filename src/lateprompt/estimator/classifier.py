"""`LatePromptClassifier`: the training recipe as a scikit-learn estimator."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from lateprompt.data import Row, label_name
from lateprompt.estimator.files import load_estimator, pickled_state, save_estimator, unpickled_state
from lateprompt.estimator.inputs import (
    LabelSets,
    TrainRows,
    as_eval_set,
    as_label_sets,
    as_texts,
    column_names,
    dev_rows,
    label_names,
)
from lateprompt.estimator.parameters import plain_class_weight, settings_of, task_of
from lateprompt.predictors.multi_label import MultiLabelClassifier
from lateprompt.runs.data import Rows
from lateprompt.runs.pipeline import Pipeline
from lateprompt.runs.searching import find_settings
from lateprompt.search.settings import SearchSettings, asks_search
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.multi_label import answers, sigmoid
from lateprompt.utils.aliases import takes_earlier_names, todays_names
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.names import DEFAULT_METHOD

__all__ = ["LatePromptClassifier", "as_texts"]

_FITTED = (
    "classifier_",
    "classes_",
    "indicator_",
    "n_features_in_",
    "feature_names_in_",
    "recipe_",
    "history_",
    "metrics_",
    "search_",
)


@takes_earlier_names
class LatePromptClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier by Late Prompt Tuning, with scikit-learn's contract.

    Texts are a list, array or Series of strings; pairs are two columns (an (n, 2) array, a data frame of two columns,
    or a list of pairs). Labels are texts, whole numbers, booleans or dates. Several labels a text (a multi-label task)
    are a list of lists, or a matrix of 0 and 1 with a column for each label; `predict` gives them back in this form.

    A `fit` that fails or is interrupted leaves the estimator as it was. The same `random_state` gives the same model,
    in any thread; torch's, numpy's and Python's own random numbers are neither used nor changed. Fits in threads of one
    process take turns, step by step; use processes to fit several at the same time.

    Args:
        model: folder or hub id of a pretrained model.
        task: name of a task or a YAML file, whose label names `y` then holds; None: a plain template, labels from `y`.
        method: npg, mppg, appg, atpg, rpg or fixed; `head` trains a linear head on the frozen model; any other
            method of `lateprompt methods` too: late-lora, npg+late-lora, …; auto: the best of several for these texts.
        options: the method's own options, by name; None: its defaults.
        prompt_layer: number of layers below the prompt, a fraction of the depth, or auto.
        num_prompt_tokens: number of prompt vectors; None: 5 with a generator, 20 without.
        bottleneck_dim: inner width of the generator.
        readout: masked_lm, causal_lm, head or auto.
        head_pooling: cls, mean or last; None: mean for encoders, last for decoders.
        loss: vocabulary or labels.
        label_words: label to label word, without a task; None: the labels' own names.
        max_length: longest input in tokens.
        dtype: the frozen backbone's float type.
        device: where to run; None: a GPU if there is one.
        recipe, epochs, max_steps, batch_size, lr, weight_decay, warmup_ratio, schedule, max_grad_norm, precision: the
            recipe, see `RecipeSettings`; what is left out follows from the number of texts and the method.
        folds: without an eval set, folds of a cross-validation that says what accuracy to expect
            (`metrics_["cross_validation"]`), see `RecipeSettings`.
        states: on, off or a folder: whether and where trunk states are kept, see `StatesSettings`.
        random_state: seed; None: another one at each `fit`.
        verbose: show a progress bar.
        generator: another name of `method`, which it takes the place of.
        class_weight: None, "balanced", or label to weight: what the losses of a class's rows are multiplied with.
        eval_every: evaluate `eval_set` every so many steps; None: once an epoch.
        patience: stop after so many evaluations of `eval_set` without a better result; None: never.
        budget, tries: with `method` or `prompt_layer` "auto", how long what is best for the texts is searched: a time
            such as "2m", or a number of settings, see `SearchSettings`.
        read_only: the late prompt reads the text and is not seen by it: `method="npg"` is then `read-npg`.
        calibrate: with an `eval_set`, fit the temperature of the probabilities on it; predictions stay as they are.

    Attributes:
        classes_: the labels seen by `fit`, sorted; of a matrix, its columns.
        indicator_: of several labels a text, whether they were given as a matrix.
        classifier_: the trained `TextClassifier`.
        recipe_: the recipe it was trained by, the seed in it.
        history_: one entry per evaluation: step, epoch, train_loss, seconds, and the metrics on `eval_set` (dev_…).
        metrics_: steps, times, trained parameters, the metrics of the weights kept, and how they are calibrated. After
            a search also what was chosen (`chosen_method`, …) and `expected_accuracy` with its interval,
            `expected_low` to `expected_high`.
        search_: what a search has tried, a mapping for each setting; None: there was none.
        n_features_in_: 1 for texts, 2 for pairs.
        feature_names_in_: the columns' names, of a data frame.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast
        >>> words = ["[PAD]", "[UNK]", "[MASK]", "It", "was", "good", "bad", "fun", "dull", "."]
        >>> vocabulary = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
        >>> tokenizer = Tokenizer(vocabulary)
        >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> special = dict(unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> folder = tempfile.mkdtemp()  # a tiny random model; give your model's folder or hub id
        >>> BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
        >>> _ = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
        >>> from lateprompt import LatePromptClassifier
        >>> classifier = LatePromptClassifier(folder, max_steps=2, states="off")
        >>> classifier.fit(["good fun", "fun", "dull"], ["good", "good", "bad"]).predict(["good fun ."]).shape
        (1,)
        >>> classifier.predict_proba(["good fun .", "dull ."]).shape  # (texts, classes)
        (2, 2)
    """

    def __init__(
        self,
        model: str = "roberta-base",
        task: str | None = None,
        method: str = DEFAULT_METHOD,
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
        recipe: str = "auto",
        epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int = 32,
        lr: float | None = None,
        weight_decay: float = 0.1,
        warmup_ratio: float = 0.06,
        schedule: str | None = None,
        max_grad_norm: float = 1.0,
        folds: int | None = 0,
        precision: str = "fp32",
        states: str = "on",
        random_state: int | np.random.RandomState | None = 42,
        verbose: bool = False,
        generator: str | None = None,
        class_weight: Any = None,
        eval_every: int | None = None,
        patience: int | None = None,
        read_only: bool = False,
        calibrate: bool = True,
        budget: str | None = None,
        tries: int | None = None,
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
        self.recipe = recipe
        self.epochs = epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.folds = folds
        self.precision = precision
        self.states = states
        self.random_state = random_state
        self.verbose = verbose
        self.generator = generator
        self.class_weight = class_weight
        self.eval_every = eval_every
        self.patience = patience
        self.read_only = read_only
        self.calibrate = calibrate
        self.budget = budget
        self.tries = tries

    def set_params(self, **params: Any) -> LatePromptClassifier:
        """Set parameters by name. A fitted model stays as it is until the next `fit`.

        `method` and `generator` are one parameter under two names: setting one sets the other.
        """
        params = todays_names(params, self._get_param_names())
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
        tags.classifier_tags.multi_label = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return "classifier_" in vars(self)

    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: Any = None) -> LatePromptClassifier:
        """Train on texts `X` (or pairs) and labels `y`.

        Args:
            X: (n,) texts, or (n, 2) pairs.
            y: (n,) labels; of several labels a text a list of lists, or a matrix (n, labels) of 0 and 1.
            sample_weight: (n,) what each row's loss is multiplied with; rows of weight 0 are as if they were not there.
            eval_set: `(X, y)` to evaluate while training: the weights that are best on it are kept. Without it the last
                ones are.

        Raises:
            LatePromptError: settings, texts, labels or weights that cannot be, or a training that diverged. Then, and
                when it is interrupted, the estimator is what it was before.
        """
        model, recipe = settings_of(self.get_params(deep=False))
        model.check()
        recipe.check()
        states = StatesSettings(str(self.states) if isinstance(self.states, os.PathLike) else self.states)
        states.check(model.trunk_dropout)
        search = SearchSettings(self.budget, self.tries)
        search.check(model)
        held_out = as_eval_set(eval_set)
        if recipe.patience is not None and held_out is None:
            raise LatePromptError(
                f"patience {recipe.patience!r} needs rows to evaluate on; give fit an eval_set=(X, y)"
            )
        columns, rows = column_names(X), TrainRows.of(X, y, sample_weight)
        classes = rows.labels.classes()
        if len(classes) < 2:
            raise LatePromptError(f"y has one class ({classes[0]!r}); a classifier needs at least two")
        several = isinstance(rows.labels, LabelSets)
        names = [label_name(label) or "" for label in classes]
        task = task_of(self.task, self.label_words, names, rows.pair, multi_label=several)
        dev = [] if held_out is None else dev_rows(*held_out, task, rows.pair)
        rows = rows.with_class_weights(self.class_weight, task)
        recipe = replace(recipe, class_weight=plain_class_weight(self.class_weight))
        given, weights, quiet = Rows(task, rows.rows(), dev), rows.relative_weights(), not self.verbose
        found = None
        if asks_search(model):
            found = find_settings(model, given, recipe, states, search, weights=weights, quiet=quiet)
            model, recipe = found.model, found.recipe
        pipeline = Pipeline(model, given, recipe, states, weights=weights, quiet=quiet, found=found)
        pipeline.build()
        pipeline.encode()
        pipeline.cache_states()
        pipeline.fit()  # no weights were freed: `predict` needs all of them
        pipeline.cross_validate()
        pipeline.calibrate()
        fitted = {
            "classifier_": pipeline.tuned,
            "classes_": classes,
            **({"indicator_": rows.labels.indicator} if isinstance(rows.labels, LabelSets) else {}),
            "n_features_in_": 2 if rows.pair else 1,
            **({} if columns is None else {"feature_names_in_": np.array(columns, dtype=object)}),
            "recipe_": asdict(pipeline.recipe),
            "history_": pipeline.result.history,
            "metrics_": {
                **pipeline.result.metrics,
                **pipeline.calibrated,
                "train_rows": len(rows.texts),
                **pipeline.expected(),
                **pipeline.costs(),
                **({} if found is None else found.metrics()),
            },
            "search_": None if found is None else found.records,
        }
        # All at once: whatever interrupts finds the old model or the new one.
        self.__dict__ = {**{name: value for name, value in vars(self).items() if name not in _FITTED}, **fitted}
        return self

    def _scores(self, X: Any) -> np.ndarray:
        """Scores (texts, classes) before calibration, columns as in `classes_`."""
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
        chosen = scores[:, self._columns()]
        if not np.isfinite(chosen).all():
            raise LatePromptError(
                "the model's scores are no numbers: its weights are broken, or its float type overflows; "
                "fit it again (dtype='float32')"
            )
        return chosen  # type: ignore[no-any-return]

    def _columns(self) -> list[int]:
        """The number in the task of each of `classes_`: it may have more."""
        numbers = {label: number for number, label in enumerate(self.classifier_.task.labels)}
        return [numbers[label_name(label) or ""] for label in self.classes_]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Label probabilities (texts, classes), columns as in `classes_`; of several labels a text, each label's own.

        Of one label a text they are calibrated, if `fit` had an `eval_set` or cross-validated.

        Raises:
            LatePromptError: texts that cannot be, or weights that give no numbers.
        """
        scores = self._scores(X)  # which asks first whether it is fitted
        return self.classifier_.probabilities_of(scores)  # type: ignore[no-any-return]

    @property
    def _multi_label(self) -> bool:
        return isinstance(self.classifier_, MultiLabelClassifier)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the label probabilities (texts, classes); finite, however small a probability is."""
        scores = self._scores(X)
        if self._multi_label:
            return -np.logaddexp(0.0, -scores.astype(np.float64))
        scores = self.classifier_.calibration.scaled(scores)
        scores = scores - scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))  # type: ignore[no-any-return]

    def predict(self, X: Any) -> Any:
        """The most probable label of each text (texts,).

        Of several labels a text, those whose probability is at least their threshold: a matrix (texts, classes) of 0
        and 1 where `fit` was given one, else a list of lists. Thresholds are chosen on `eval_set`, or by
        cross-validation; without either all are 0.5.
        """
        scores = self._scores(X)
        if not self._multi_label:
            return self.classes_[scores.argmax(1)]
        chosen = answers(sigmoid(scores), self.classifier_.thresholds[self._columns()])
        return chosen.astype(np.int64) if self.indicator_ else [self.classes_[row].tolist() for row in chosen]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; labels are compared by name, so that 1, 1.0 and "1" are the same one.

        Of several labels a text, the share of texts with all labels right (subset accuracy).
        """
        predicted = self.predict(X)
        if self._multi_label:
            given = as_label_sets(y, len(predicted))
            if given is None:
                raise LatePromptError("y has one label a text, fit saw several; give them in the same form")
            lists = [self.classes_[row > 0] for row in predicted] if self.indicator_ else predicted
            own = [{label_name(label) for label in labels} for labels in lists]
            right = [set(names) == chosen for names, chosen in zip(given.sets, own, strict=True)]
            return float(np.average(right, weights=sample_weight))
        names = label_names(y, len(predicted))
        return float(accuracy_score(names, label_names(predicted, len(names)), sample_weight=sample_weight))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder, which `load` and the command line read.

        Raises:
            LatePromptError: a folder that is not empty, unless `overwrite`; then one that has what no run wrote.
        """
        check_is_fitted(self)
        save_estimator(vars(self), self.get_params(deep=False), folder, overwrite=overwrite)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, joblib and copies: a fitted model as its run folder's files, the base model by name."""
        return pickled_state(dict(super().__getstate__()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(unpickled_state(state, self._get_param_names()))

    @classmethod
    def load(
        cls, folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
    ) -> LatePromptClassifier:
        """The estimator of a run folder, whether `save` or `lateprompt train` left it.

        Args:
            folder: the run folder.
            model: where the base model is, if not where it was.
            device: where to run; None: a GPU if there is one.
            check_model: refuse a base model with other weights than the one that the run was trained on.

        Raises:
            LatePromptError: no run folder, or one that is broken; another base model.
        """
        defaults = cls().get_params(deep=False)
        parameters, fitted = load_estimator(folder, defaults, model=model, device=device, check_model=check_model)
        estimator = cls(**parameters)
        for name, value in fitted.items():
            setattr(estimator, name, value)
        return estimator
