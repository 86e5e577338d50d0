"""`LinearClassifier`: a linear model of scikit-learn's with its task, in the place of a tuned model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from lateprompt.backbone.families import FAMILIES
from lateprompt.data import AnyTask, MultiLabelTask, Row, Task, TaskEncoder
from lateprompt.data.batches import Batches
from lateprompt.methods import METHODS, check_method, check_model_given
from lateprompt.predictors.base import encode_rows, pick_device
from lateprompt.predictors.fingerprints import check_fingerprint, model_fingerprint
from lateprompt.predictors.labelling import Labelling
from lateprompt.predictors.linear.logistic import LabelledFeatures, Logistic, choose_C, fit_logistic
from lateprompt.predictors.linear.tfidf import TextBatches, TextEncoder, Tfidf
from lateprompt.predictors.loading import load_base, load_config, load_tokenizer, max_positions
from lateprompt.predictors.saved_run import (
    BASE_MODEL,
    RUN_FILE,
    check_finite,
    check_same_asked,
    model_settings_in,
    read_run,
    read_task,
    section_of,
    write_description,
)
from lateprompt.run_folder.folder import RunFolder, reading
from lateprompt.state_cache.pooled import PooledOutput
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.calibration import Calibration
from lateprompt.training.loop import FitResult
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_tensors, write_tensors

WEIGHTS_FILE = "linear_model.safetensors"
_TOGETHER = 16384
"""Rows whose features are in memory at a time."""


class LinearClassifier(Labelling):
    """Logistic regression on features of the texts: a baseline, with the face of a `TextClassifier`.

    Its kinds are `TfidfClassifier` and `EmbeddingClassifier`; made by `build` or `load`.

    Args:
        settings: the model's settings.
        task: what is asked.

    Example:
        >>> from lateprompt.data import Row, default_task
        >>> from lateprompt.predictors.linear.classifier import TfidfClassifier
        >>> from lateprompt.training.settings import ModelSettings, RecipeSettings
        >>> rows = [Row("good fun", label="good"), Row("so good", label="good"), Row("dull", label="bad")]
        >>> classifier = TfidfClassifier.build(ModelSettings(method="tfidf"), default_task(["bad", "good"], pair=False))
        >>> result = classifier.fit(classifier.batches(rows), None, RecipeSettings())
        >>> classifier.probabilities([Row("good film")]).argmax(1).tolist()  # (rows, labels)
        [1]
    """

    task: Task
    grid: ClassVar[tuple[float, ...]]
    """What `C` is chosen from."""
    prompt_layer = num_layers = None
    """There is no prompt."""

    def __init__(self, settings: ModelSettings, task: Task) -> None:
        self.settings, self.task = settings, task
        self.options: dict[str, Any] = {**METHODS[settings.method].options, **settings.options}
        self.tokenizer: Any = None
        self.device = torch.device("cpu")
        self.max_length: int | None = None
        self.base_fingerprint: str | None = None
        self.logistic: Logistic | None = None
        self.encoder: Any = None
        self.calibration = Calibration()

    # -- what a kind defines -----------------------------------------------------------------------------------------

    def batched(self, examples: Sequence[Any]) -> Batches:
        """Rows that `encoder` has encoded, together."""
        raise TypeError(f"{type(self).__name__} must override batched")

    def learn_features(self, train: Batches) -> None:
        """Take from the training rows what features depend on."""
        raise TypeError(f"{type(self).__name__} must override learn_features")

    def features(self, batches: Batches, *, batch_size: int, progress: Callable[[int], None] | None = None) -> Any:
        """Features (rows, features), an array or a sparse matrix."""
        raise TypeError(f"{type(self).__name__} must override features")

    def _prepare(self) -> None:
        """Load what turns rows into features."""

    def _write_features(self, folder: Path) -> dict[str, np.ndarray]:
        """Write files of the features, and return the arrays that belong to them."""
        return {}

    def _read_features(self, folder: Path, arrays: dict[str, np.ndarray]) -> int:
        """Take what `_write_features` left; the number of features."""
        raise TypeError(f"{type(self).__name__} must override _read_features")

    # -- its life ----------------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, settings: ModelSettings, task: AnyTask, *, seed: int = 0) -> Self:
        """A model that is not fitted yet; nothing of it is random.

        Raises:
            LatePromptError: a setting, model or task that cannot be.
        """
        settings.check()
        check_method(settings.method, settings.options)
        check_model_given(settings.method, settings.model)
        _check_task(task, settings.method)
        if settings.readout not in ("auto", "head"):
            raise LatePromptError(
                f"readout {settings.readout!r} is none of method {settings.method!r}, which has a linear model of its "
                "own; leave it out"
            )
        assert isinstance(task, Task)
        made = cls(ModelSettings(**{**asdict(settings), "readout": "head"}), task)
        made._check_options()
        made._prepare()
        return made

    def _check_options(self) -> None:
        C = self.options["C"]
        good = isinstance(C, int | float) and not isinstance(C, bool) and 0 < C < math.inf
        if C is not None and not good:
            raise LatePromptError(
                f"method {self.settings.method!r} has option C {C!r}; give a number above 0, or leave it out"
            )

    @property
    def trainable_parameters(self) -> int:
        """How many numbers are fitted; 0 before."""
        return 0 if self.logistic is None else self.logistic.parameters

    def release(self) -> None:
        """Nothing is freed: there is nothing that fitting does not use."""

    def restore(self) -> None:
        """Nothing was freed."""

    def batches(self, rows: Sequence[Row], *, any_label: bool = False) -> Batches:
        """The rows, encoded; as `TunedModel.batches`."""
        return self.batched(encode_rows(self.encoder, rows, self.task, any_label=any_label))

    def cached(
        self, batches: Sequence[tuple[Batches, np.ndarray]], settings: StatesSettings, *, quiet: bool = True
    ) -> tuple[list[Batches], float]:
        """Batches with all that comes from the frozen model, and the seconds that computing it took."""
        return [part for part, _ in batches], 0.0

    def fit(
        self,
        train: Batches,
        dev: Batches | None,
        recipe: RecipeSettings,
        *,
        checkpoint: Path | None = None,
        settings: str = "{}",
        quiet: bool = True,
    ) -> FitResult:
        """Choose the regularisation and fit; of the recipe the seed and the batch size for measuring count.

        Args:
            train: training rows; their weights are those of their losses.
            dev: rows that choose the regularisation; None: cross-validation on the training rows does.
            recipe: how tuned models are trained.
            checkpoint, settings: not used: there is nothing to resume.
            quiet: not used.

        Raises:
            LatePromptError: training rows of one label alone, or without any words.
        """
        started = time.perf_counter()
        self.learn_features(train)
        own = self._labelled(train, recipe)
        held = None if dev is None else self._labelled(dev, recipe)
        C: float | None = self.options["C"]
        tried: list[dict[str, float]] = []
        if C is None:
            C, tried = choose_C(own, held, self.grid, seed=recipe.seed)
        self.logistic, steps = fit_logistic(own, C)
        seconds = time.perf_counter() - started
        metrics = {"C": float(C)}
        if dev is not None:
            metrics |= self.evaluate(dev, batch_size=recipe.eval_batch_size)
        history = [{"C": float(one["C"]), "held_out_accuracy": one["accuracy"], "loss": one["loss"]} for one in tried]
        return FitResult(metrics, history, steps, seconds, None)

    def _labelled(self, batches: Batches, recipe: RecipeSettings) -> LabelledFeatures:
        features = self.features(batches, batch_size=recipe.eval_batch_size)
        return LabelledFeatures(features, batches.labels, batches.weights)

    # -- answers -----------------------------------------------------------------------------------------------------

    def batch_scores(
        self,
        batches: Batches,
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Label scores (rows, labels) of encoded rows in their order, or of those whose numbers are given."""
        if self.logistic is None:
            raise LatePromptError("this linear model is not fitted; fit it, or load a run")
        features = self.features(batches, batch_size=batch_size, progress=progress)
        return self.logistic.scores(features if rows is None else features[rows], len(self.task.labels))

    def measure_more(self, feed: Batches, *, batch_size: int) -> dict[str, float]:
        """Metrics beside those of `fit`: none."""
        return {}

    # -- the run folder's own files ----------------------------------------------------------------------------------

    def save(self, folder: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Leave a run folder with the model, the task and `run.json` (settings and `facts`); as `TunedModel.save`."""
        RunFolder(folder).put(lambda place: self.write_files(place, facts))

    def write_files(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        """Write the files of `save` straight into `folder`."""
        if self.logistic is None:
            raise LatePromptError("this linear model is not fitted; fit it before it is saved")
        arrays = {name: np.asarray(getattr(self.logistic, name)) for name in ("coef", "intercept", "classes")}
        tensors = {name: torch.tensor(value) for name, value in {**arrays, **self._write_features(folder)}.items()}
        check_finite(tensors, "the linear model")
        write_tensors(folder / WEIGHTS_FILE, tensors)
        write_description(folder, self.settings, self.task, self.base_fingerprint, self.calibration, facts)

    @classmethod
    def load(
        cls, folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
    ) -> Self:
        """The model of a run folder; arguments and errors as `TunedModel.load`."""
        with reading(folder):
            return cls._load(Path(folder), model, device, check_model)

    @classmethod
    def _load(cls, folder: Path, model: str | None, device: str | None, check_model: bool) -> Self:
        run, task = read_run(folder), read_task(folder)
        settings = model_settings_in(run, folder)
        settings.model, settings.device = model or settings.model, device
        _check_task(task, settings.method)
        assert isinstance(task, Task)
        check_same_asked(run, task, folder)
        made = cls(settings, task)
        made._prepare()
        if check_model:
            saved = section_of(run, BASE_MODEL, folder).get("fingerprint")
            check_fingerprint(saved, made.base_fingerprint, model=settings.model, run_file=str(folder / RUN_FILE))
        path = folder / WEIGHTS_FILE
        tensors, _ = read_tensors(path, "weight file")
        check_finite(tensors, f"weight file {str(path)!r}")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        features = made._read_features(folder, arrays)
        made.logistic = _logistic_of(arrays, features, len(task.labels), str(path))
        return made


def _logistic_of(arrays: dict[str, np.ndarray], features: int, labels: int, source: str) -> Logistic:
    """The logistic regression in a file's arrays; LatePromptError where they do not fit task and features."""
    for name in ("coef", "intercept", "classes"):
        if name not in arrays:
            raise LatePromptError(f"weight file {source!r} is broken: {name!r} is missing")
    coef, intercept, classes = arrays["coef"], arrays["intercept"], arrays["classes"]
    rows = 1 if len(classes.reshape(-1)) == 2 else len(classes.reshape(-1))
    known = classes.ndim == 1 and classes.dtype == np.int64 and len(np.unique(classes)) == len(classes) >= 2
    if coef.shape != (rows, features) or intercept.shape != (rows,):
        raise LatePromptError(
            f"weight file {source!r} does not fit: 'coef' has shape {coef.shape}, expected {(rows, features)}; take "
            "all files from the same run, and the base model it was trained on"
        )
    if not known or classes.min() < 0 or classes.max() >= labels:
        raise LatePromptError(
            f"weight file {source!r} does not fit: it has classes up to {classes.max()}, the task {labels} labels; "
            "take both from the same run"
        )
    return Logistic(coef, intercept, classes)


def _check_task(task: AnyTask, method: str) -> None:
    if not isinstance(task, Task):
        raise LatePromptError(
            f"method {method!r} sorts texts into labels, but task {task.name} has texts for answers; give another "
            "method, or, if the targets are classes, --label-column target (in Python: columns={'label': 'target'})"
        )
    if isinstance(task, MultiLabelTask):
        raise LatePromptError(
            f"method {method!r} gives a text one label, but task {task.name} has several labels a row; give another "
            "method, such as npg"
        )


class TfidfClassifier(LinearClassifier):
    """Logistic regression on TF-IDF features of words and pairs of words; no model is read.

    The texts of a pair have features of their own. See `LinearClassifier`.
    """

    # Below 1 few rows give no more than the most frequent class, though their held-out loss is the least.
    grid = (1.0, 3.0, 10.0, 30.0, 100.0)
    encoder: TextEncoder

    def __init__(self, settings: ModelSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.encoder = TextEncoder(task)
        self.tfidf = Tfidf(self.encoder.fields, self.options["ngrams"], self.options["min_df"])

    def _check_options(self) -> None:
        super()._check_options()
        for name in ("ngrams", "min_df"):
            if self.options[name] < 1:
                raise LatePromptError(
                    f"method 'tfidf' has option {name} {self.options[name]!r}; give a whole number from 1"
                )

    def batched(self, examples: Sequence[Any]) -> Batches:
        return TextBatches(examples)

    def learn_features(self, train: Batches) -> None:
        assert isinstance(train, TextBatches)
        self.tfidf.fit(train.texts)

    def features(self, batches: Batches, *, batch_size: int, progress: Callable[[int], None] | None = None) -> Any:
        assert isinstance(batches, TextBatches)
        found = self.tfidf.transform(batches.texts)
        if progress is not None:
            progress(len(batches))
        return found

    def _write_features(self, folder: Path) -> dict[str, np.ndarray]:
        return self.tfidf.write(folder)

    def _read_features(self, folder: Path, arrays: dict[str, np.ndarray]) -> int:
        self.tfidf.read(folder, arrays, str(folder / WEIGHTS_FILE))
        return self.tfidf.terms


class PooledBatches(Batches):
    """`Batches` with the frozen model's pooled output.

    Args:
        batches: the rows.
        pooled: (rows, hidden).
    """

    def __init__(self, batches: Batches, pooled: np.ndarray) -> None:
        super().__init__(batches.examples, batches.pad_token_id, batches.weights)
        self.pooled = pooled


class EmbeddingClassifier(LinearClassifier):
    """Logistic regression on the frozen model's own output, pooled to one state a text.

    For encoders it is the mean over all tokens, for decoders too, unless `head_pooling` says otherwise. See
    `LinearClassifier`.
    """

    grid = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    encoder: TaskEncoder

    def _prepare(self) -> None:
        settings = self.settings
        config = load_config(settings.model)
        self.device = pick_device(settings.device)
        settings.head_pooling = settings.head_pooling or _POOLING[FAMILIES[config.model_type].causal]
        self.tokenizer = load_tokenizer(settings.model)
        positions = max_positions(config)
        self.max_length = settings.max_length if positions is None else min(settings.max_length, positions)
        self.encoder = TaskEncoder(self.tokenizer, self.task, "head", self.max_length)
        base = load_base(settings.model, "head", dtype=settings.dtype)
        self.base_fingerprint = model_fingerprint(base)
        self.output = PooledOutput(base.to(self.device), settings.head_pooling)
        self.mean = np.zeros(self.output.width, dtype=np.float32)
        self.scale = np.ones(self.output.width, dtype=np.float32)

    def batched(self, examples: Sequence[Any]) -> Batches:
        return Batches(examples, self.tokenizer.pad_token_id or 0)

    def cached(
        self, batches: Sequence[tuple[Batches, np.ndarray]], settings: StatesSettings, *, quiet: bool = True
    ) -> tuple[list[Batches], float]:
        parts = [part for part, _ in batches]
        examples = [example for part in parts for example in part.examples]
        states, seconds = self.output.cached(examples, settings, batch_size=_TEXTS, quiet=quiet)
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [PooledBatches(part, own) for part, own in zip(parts, np.split(states, ends), strict=True)], seconds

    def learn_features(self, train: Batches) -> None:
        states = self._states(train, _TEXTS).astype(np.float64)
        deviation = states.std(0)
        if not self.options["scale"]:  # one scale for all, so that C means the same whatever the model
            deviation = np.full_like(deviation, np.sqrt((deviation**2).mean()))
        self.mean = states.mean(0).astype(np.float32)
        self.scale = np.where(deviation > 0, deviation, 1.0).astype(np.float32)

    def features(self, batches: Batches, *, batch_size: int, progress: Callable[[int], None] | None = None) -> Any:
        states = self._states(batches, batch_size, progress)
        return (states.astype(np.float64) - self.mean) / self.scale

    def _states(self, batches: Batches, batch_size: int, progress: Callable[[int], None] | None = None) -> np.ndarray:
        if not isinstance(batches, PooledBatches):
            return self.output.compute(batches.examples, batch_size=batch_size, progress=progress)
        if progress is not None:
            progress(len(batches))
        return batches.pooled

    def _write_features(self, folder: Path) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "scale": self.scale}

    def _read_features(self, folder: Path, arrays: dict[str, np.ndarray]) -> int:
        for name in ("mean", "scale"):
            if name not in arrays or arrays[name].shape != (self.output.width,):
                raise LatePromptError(
                    f"weight file {str(folder / WEIGHTS_FILE)!r} does not fit the model: {name!r} has not "
                    f"{self.output.width} values; give the base model it was trained on"
                )
        if not (arrays["scale"] > 0).all():
            raise LatePromptError(f"weight file {str(folder / WEIGHTS_FILE)!r} is broken: 'scale' has values up to 0")
        self.mean, self.scale = arrays["mean"], arrays["scale"]
        return self.output.width


_TEXTS = 64
"""Texts in a batch of the frozen model."""
_POOLING = {False: "mean", True: "mean"}
"""By whether the model is a decoder, what a text's state is; for decoders the mean and the last were not compared."""
