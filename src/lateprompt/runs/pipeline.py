"""`Pipeline`: from rows to a tuned, measured and saved model, one stage after the other."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.data.batches import Batches
from lateprompt.methods import is_late
from lateprompt.predictors.assessment import BY_LABEL
from lateprompt.predictors.base import TunedModel
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.kinds import Tuned, kind_of
from lateprompt.predictors.multi_label import MultiLabelClassifier
from lateprompt.predictors.saved_run import asked_by
from lateprompt.run_folder.folder import RunFolder
from lateprompt.runs.answers import MOST_TRAINING_ROWS, OUT_OF_FOLD, calibrate, some_scores, warn_of_one_class
from lateprompt.runs.cross_validation import OutOfFold, cross_validate, folds_for, wilson_interval
from lateprompt.runs.data import DEV, TEST, TRAIN, VALIDATION, Rows
from lateprompt.runs.environment import peak_memory_bytes
from lateprompt.runs.saving import write_run
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.distributed import processes
from lateprompt.training.loop import FitResult, rows_needed, snapshot, trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import as_json

MOST_LABELS = 20
"""Labels whose own figures go to `metrics.json`."""


@dataclass
class Pipeline:
    """Train a model on rows: `run` calls the stages from `build` to `evaluate` in their order, `save` writes the files.

    What a stage makes lies on the pipeline, where the later stages find it. So a caller can call the stages one by one
    (to time them, or to leave one out), or put the result of an earlier one there and begin behind it.

    Args:
        model: the model's and the method's settings.
        rows: the task, and the rows to train and measure on.
        recipe: how to train; what it leaves open is filled in for these rows and this method.
        states: whether and where trunk states are kept.
        weights: (training rows,) what a row's loss is multiplied with, 1 on the average; None: 1 each.
        data: where the rows come from, for the run folder; a checkpoint of a run on other data is refused.
        checkpoint: folder to write the state of the training to, and to resume it from; None: nowhere.
        quiet: no progress bars.
        found: the search that gave the settings, for the run folder; None: there was none.

    Attributes:
        tuned: the classifier or writer (`build`).
        batches: the encoded rows by the name of their set (`encode`), with their trunk states (`cache_states`).
        fill_seconds: seconds in which trunk states were computed; 0 if all were there (`cache_states`).
        result: history, dev metrics and times of the training (`fit`).
        calibrated: how the probabilities were calibrated, for `metrics.json` (`calibrate`).
        metrics: what goes to `metrics.json` (`evaluate`).

    Example:
        >>> from lateprompt.data import Row, default_task
        >>> from lateprompt.demo import installed_encoder
        >>> from lateprompt.training.settings import ModelSettings, RecipeSettings
        >>> rows = [Row("a gem .", None, "good", {}), Row("a bore .", None, "bad", {})]
        >>> task = default_task(["bad", "good"], pair=False)
        >>> pipeline = Pipeline(
        ...     ModelSettings(installed_encoder(), readout="head"),
        ...     Rows(task, rows, dev=rows),
        ...     RecipeSettings(max_steps=2),
        ... )
        >>> sorted(pipeline.run())[:2]
        ['accuracy', 'calibration']
    """

    model: ModelSettings
    rows: Rows
    recipe: RecipeSettings
    states: StatesSettings = field(default_factory=StatesSettings)
    weights: np.ndarray | None = None
    data: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    quiet: bool = True
    found: Any = None

    tuned: Tuned = field(init=False, repr=False)
    batches: dict[str, Batches] = field(init=False, repr=False)
    fill_seconds: float = field(init=False, default=0.0)
    result: FitResult = field(init=False, repr=False)
    calibrated: dict[str, Any] = field(init=False, repr=False, default_factory=dict)
    out_of_fold: OutOfFold | None = field(init=False, default=None, repr=False)
    metrics: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.recipe = self.recipe.resolved(len(self.rows.train), self.model.method)

    # -- the stages --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Call all stages but `save`; return what goes to `metrics.json`."""
        self.build()
        self.encode()
        self.cache_states()
        self.free_weights()
        self.fit()
        self.cross_validate()
        self.calibrate()
        return self.evaluate()

    def build(self) -> None:
        """Load the frozen model and put a fresh adapter on it, initialised from the recipe's seed.

        Raises:
            LatePromptError: a setting, model, task or label word that cannot be.
        """
        self.tuned = kind_of(self.rows.task, self.model.method).build(self.model, self.rows.task, seed=self.recipe.seed)

    def encode(self) -> None:
        """Make token ids of all rows.

        Raises:
            LatePromptError: a row that cannot be encoded, or a training row with a label that the task does not have.
        """
        sets = self.rows.sets().items()
        self.batches = {name: self.tuned.batches(rows, any_label=name != TRAIN) for name, rows in sets if rows}
        self.batches[TRAIN].weights = self.weights

    def cache_states(self) -> None:
        """Compute the trunk states that no earlier run has kept, so that no later stage runs the trunk.

        Of the training rows these are the ones that the recipe's steps will reach. The batches stay as they are if
        states are off, do not fit on the disk, or depend on what is trained.
        """
        whole = self._folds() > 0  # which reads all training rows
        wanted = [
            (part, np.arange(len(part)) if whole else self._read_rows(name)) for name, part in self.batches.items()
        ]
        with processes().main_first():  # it fills; the others find the states there
            cached, self.fill_seconds = self.tuned.cached(wanted, self.states, quiet=self.quiet)
        self.batches = dict(zip(self.batches, cached, strict=True))

    def free_weights(self) -> None:
        """Free trunk, embeddings and unread rows of the LM head, if all rows have cached states.

        Predicting other rows loads them again.
        """
        if all(isinstance(part, CachedBatches) for part in self.batches.values()):
            self.tuned.release()

    def fit(self) -> None:
        """Train; with dev rows, keep the weights that were best on them, and what else is chosen by them.

        Raises:
            LatePromptError: the training diverged, or the checkpoint is of another run.
        """
        if isinstance(self.tuned, TunedModel):
            self.tuned.before_training(self.batches[TRAIN])
            self._fresh = snapshot(trainable_parameters(self.tuned.model))
        self.result = self.tuned.fit(
            self.batches[TRAIN],
            self.batches.get(DEV),
            self.recipe,
            checkpoint=self.checkpoint,
            settings="{}" if self.checkpoint is None else self._identity(),
            quiet=self.quiet,
        )
        if isinstance(self.tuned, TunedModel):
            self.tuned.after_training(self.batches.get(DEV), batch_size=self.recipe.eval_batch_size)

    def calibrate(self) -> None:
        """Fit the temperature of a classifier's probabilities on the dev rows, and warn if it has learnt but one class.

        Without dev rows it is fitted on the scores that `cross_validate` left, or is 1. Predictions stay as they are.
        Of several labels a row each has a threshold instead.
        """
        tuned, batch_size = self.tuned, self.recipe.eval_batch_size
        if not isinstance(tuned, TextClassifier) or isinstance(tuned, MultiLabelClassifier):
            return
        name = DEV if DEV in self.batches else TRAIN
        most = None if name == DEV else MOST_TRAINING_ROWS
        labels, scores = some_scores(tuned, self.batches[name], self._read_rows(name), batch_size, most=most)
        if processes().is_main:
            warn_of_one_class(scores.argmax(1), labels, tuned.task.labels, name, self.recipe)
        source = DEV if name == DEV else None
        if source is None and self.out_of_fold is not None:
            source, scores, labels = OUT_OF_FOLD, self.out_of_fold.scores, self.batches[TRAIN].labels
        self.calibrated = calibrate(tuned, scores, labels, source=source, wanted=self.recipe.calibrate)

    def _read_rows(self, name: str) -> np.ndarray:
        """The numbers of a set's rows that are read: of the training rows those that the recipe's steps reach."""
        part = self.batches[name]
        return rows_needed(part, self.recipe) if name == TRAIN else np.arange(len(part))

    def cross_validate(self) -> None:
        """Without dev rows, score the training rows by models that were trained without them (`RecipeSettings.folds`).

        The weights that `fit` left stay as they are.
        """
        train, folds = self.batches[TRAIN], self._folds()
        if folds and isinstance(self.tuned, TextClassifier):
            self.out_of_fold = cross_validate(
                self.tuned.model,
                self.tuned.readout,
                train,
                self.recipe,
                self._fresh,
                folds=folds,
                device=self.tuned.device,
                quiet=self.quiet,
            )
            self.tuned.learn_from(self.out_of_fold.scores, train)

    def _folds(self) -> int:
        """How many folds the training rows are cross-validated in; 0: they are not."""
        train, asked = self.batches[TRAIN], self.recipe.folds
        if not isinstance(self.tuned, TextClassifier) or processes().count > 1 or self.rows.dev:
            return 0
        kept = is_late(self.model.method) and self.states.folder is not None
        if asked is None and len(rows_needed(train, self.recipe)) < len(train):
            return 0  # a training that ends within its first epoch is a trial
        if hasattr(self, "result"):  # the states are there by now, or could not be kept
            kept = isinstance(train, CachedBatches)
        return folds_for(asked, rows=len(train), dev_rows=0, cached=kept)

    def evaluate(self) -> dict[str, Any]:
        """Measure the further sets, and the dev rows by what training has not; return what goes to `metrics.json`.

        The dev rows' other metrics are those of the weights that `fit` kept.
        """
        tuned, batch_size = self.tuned, self.recipe.eval_batch_size
        scores = {
            name: _short(tuned.evaluate(part, batch_size=batch_size))
            for name, part in self.batches.items()
            if name not in (TRAIN, DEV)
        }
        more = tuned.measure_more(self.batches[DEV], batch_size=batch_size) if DEV in self.batches else {}
        self.metrics = {
            **self.result.metrics,
            **_short(more),
            **self.calibrated,
            "dev_sets": {path: scores[self.rows.name_of(path, VALIDATION)] for path in self.rows.more_dev},
            "test": {path: scores[self.rows.name_of(path, TEST)] for path in self.rows.test},
            "train_rows": len(self.rows.train),
            "dev_rows": len(self.rows.dev),
            **self.expected(),
            **self.costs(),
            **({} if self.found is None else self.found.metrics()),
            "peak_memory_bytes": peak_memory_bytes(tuned.device),
        }
        return self.metrics

    def save(self, folder: str | Path) -> None:
        """Leave a run folder; it takes the place of a run that is there, other files stay.

        Raises:
            LatePromptError: a file of one of its names is there that no run wrote.
        """
        RunFolder(folder).put(self.write_files)

    @property
    def adapted(self) -> TunedModel:
        """What was built, with its adapter, layers and readout; LatePromptError for a linear model, which has none."""
        if not isinstance(self.tuned, TunedModel):
            raise LatePromptError(f"method {self.model.method!r} is a linear model without an adapter; give another")
        return self.tuned

    # -- what is known of the run ------------------------------------------------------------------------------------

    def costs(self) -> dict[str, Any]:
        """What training took: steps, trained parameters, seconds."""
        return {
            "steps": self.result.steps,
            "trainable_parameters": self.tuned.trainable_parameters,
            "train_seconds": self.result.train_seconds,
            "tokens_per_second": self.result.tokens_per_second,
            "trunk_fill_seconds": self.fill_seconds,
        }

    def expected(self) -> dict[str, Any]:
        """What the scores of rows that a fold was not trained on let one expect: `cross_validation`, if there was."""
        found, labels = self.out_of_fold, self.batches[TRAIN].labels
        if found is None or not isinstance(self.tuned, TextClassifier):
            return {}
        values = _short(self.tuned.measure(found.scores, self.batches[TRAIN]))
        if isinstance(self.tuned, MultiLabelClassifier):
            return {"cross_validation": {"folds": found.folds, **values, "seconds": found.seconds}}
        right = int((found.scores.argmax(1) == labels).sum())
        interval = list(wilson_interval(right, len(labels)))
        own = {"folds": found.folds, **values, "accuracy_interval": interval, "seconds": found.seconds}
        return {"cross_validation": own}

    def write_files(self, place: Path) -> None:
        """Write the files of `save` straight into a folder."""
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {**self._asked(), "states": asdict(self.states), "finished": finished}
        recipe, history = asdict(self.recipe), self.result.history
        if self.found is not None:
            facts["search"] = self.found.run_facts()
            self.found.write_files(place)
        write_run(place, self.tuned, recipe=recipe, history=history, metrics=self.metrics, facts=facts)

    def _asked(self) -> dict[str, Any]:
        """What was to be trained, beside the model's settings."""
        return {
            "recipe": asdict(self.recipe),
            "data": self.data,
            "labels": list(self.tuned.task.labels),
            "num_layers": self.tuned.num_layers,
        }

    def _identity(self) -> str:
        """Which run it is, as JSON: a checkpoint of another one is refused."""
        asked = {"task": asked_by(self.tuned.task), "model weights": self.tuned.base_fingerprint}
        named = {"model": asdict(self.tuned.settings), **self._asked(), **asked}
        return json.dumps(named, sort_keys=True, default=as_json)


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics without each label's own figures, where labels are many."""
    return {name: value for name, value in values.items() if name != BY_LABEL or len(value) <= MOST_LABELS}
