"""`TunedModel`: a task, a pretrained model with an adapter, and a readout; what classifiers and writers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict

from lateprompt.backbone.families import FAMILIES
from lateprompt.data import AnyTask, Example, Row, TargetEncoder, TaskEncoder
from lateprompt.data.batches import Batches
from lateprompt.data.row_checks import unknown_labels
from lateprompt.methods import adapter_config, check_method, check_model_given, is_late, is_linear
from lateprompt.peft_method.config import LatePromptConfig
from lateprompt.peft_method.layer import LatePromptLayer
from lateprompt.peft_method.wrapping import wrap
from lateprompt.predictors.fingerprints import check_fingerprint, model_fingerprint
from lateprompt.predictors.loading import AUTO, load_base, load_config, load_tokenizer, max_positions
from lateprompt.predictors.offload import OffloadedWeights
from lateprompt.predictors.saved_run import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_MODEL,
    RUN_FILE,
    calibration_in,
    check_finite,
    check_same,
    check_same_asked,
    load_adapter_weights,
    model_settings_in,
    read_adapter_config,
    read_run,
    read_task,
    section_of,
    write_description,
)
from lateprompt.readouts import Readout
from lateprompt.run_folder.folder import RunFolder, reading
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.fill import cache_states
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.calibration import Calibration
from lateprompt.training.distributed import processes
from lateprompt.training.evaluate import evaluate
from lateprompt.training.loop import FitResult, fit
from lateprompt.training.metrics import UNKNOWN
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError, first_line
from lateprompt.utils.files import write_json, write_tensors
from lateprompt.utils.randomness import seeded


def pick_device(device: str | None) -> torch.device:
    """The named device, or a GPU if there is one; LatePromptError for one that is not there."""
    if device is None:
        own = processes().device  # a launcher has given each process its own
        if own is not None:
            return own
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise LatePromptError(f"device {device!r} is not available: {first_line(error)}") from None
    return chosen


def encode_rows(encoder: Any, rows: Sequence[Row], task: AnyTask, *, any_label: bool) -> list[Any]:
    """The rows as an encoder makes them; with `any_label` those with labels that the task does not have, too."""
    unknown = unknown_labels(rows, task) if any_label else {}
    given = [replace(row, label=None) if row.label in unknown else row for row in rows]
    examples: list[Any] = encoder.encode(given)
    if unknown:
        pairs = zip(rows, examples, strict=True)
        examples = [replace(example, label=UNKNOWN) if row.label in unknown else example for row, example in pairs]
    return examples


class TunedModel:
    """A model with an adapter for a task: made by `build` or `load`, trained by `lateprompt.training.loop`.

    Its kinds are `TextClassifier` (`lateprompt.predictors.classifier`) and `TextWriter`
    (`lateprompt.predictors.text_generator`).

    Args:
        settings: the model's settings, `readout` and `head_pooling` resolved.
        task: what is asked.
        model: the PEFT model.
        tokenizer: the backbone's tokenizer.
        device: where it runs.
        adapter: which of the model's adapters is meant.
    """

    task: AnyTask
    encoder: TaskEncoder | TargetEncoder

    def __init__(
        self,
        settings: ModelSettings,
        task: AnyTask,
        model: PeftModel,
        tokenizer: Any,
        device: torch.device,
        adapter: str = ADAPTER,
    ) -> None:
        self.settings = settings
        self.adapter = adapter
        self.task = task
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        limit = max_positions(model.config)
        taken = cast(LatePromptConfig, model.peft_config[adapter]).input_tokens
        self.positions = limit - taken if limit else None
        """How many tokens a text may have; None where the architecture sets no limit."""
        if self.positions is not None and self.positions < 1:
            raise LatePromptError(
                f"{taken} prompt tokens leave no room for a text in the model's {limit} positions; give fewer"
            )
        self.max_length = settings.max_length if self.positions is None else min(settings.max_length, self.positions)
        self.encoder = self.make_encoder(tokenizer, task, settings, self.max_length)
        if self.positions is not None and self.max_length > self.positions - self.answer_positions:
            self.max_length = self.positions - self.answer_positions
            self.encoder = self.make_encoder(tokenizer, task, settings, self.max_length)
        self.layer.compile_tail = settings.compile
        self.readout = self.make_readout()
        self.base_fingerprint: str | None = None
        """Which weights the base model has, as `build` and `load` found them."""
        self.calibration = Calibration()
        """What label scores are divided by before they become probabilities."""
        self._offloaded: OffloadedWeights | None = None

    # -- what a kind of model defines --------------------------------------------------------------------------------

    @staticmethod
    def make_encoder(tokenizer: Any, task: Any, settings: ModelSettings, max_length: int) -> Any:
        """From rows to token ids; LatePromptError for what does not fit the tokenizer."""
        raise TypeError("a kind of TunedModel must override make_encoder")

    @staticmethod
    def resolve_readout(config: Any, settings: ModelSettings) -> str:
        """The readout that `settings.readout` stands for; LatePromptError for one that cannot be."""
        raise TypeError("a kind of TunedModel must override resolve_readout")

    def make_readout(self) -> Readout:
        """How answers are read from the tail's output."""
        raise TypeError(f"{type(self).__name__} must override make_readout")

    @property
    def answer_positions(self) -> int:
        """Positions that answers of known length take behind a text."""
        return 0

    @staticmethod
    def check_task(task: AnyTask, source: object) -> None:
        """Raise LatePromptError for a task of another kind."""

    def measure_more(self, feed: Batches, *, batch_size: int) -> dict[str, Any]:
        """Metrics that training does not compute at each evaluation; none here."""
        return {}

    def before_training(self, train: Batches) -> None:
        """Begin at what the training rows tell without training: nothing here."""

    def after_training(self, dev: Batches | None, *, batch_size: int) -> None:
        """Learn from the dev rows what training does not: nothing here."""

    def learn_from(self, scores: np.ndarray, batches: Batches) -> None:
        """Learn the same from scores (rows, labels) of rows that were not trained on: nothing here."""

    def facts(self) -> dict[str, Any]:
        """What `run.json` says of the trained model beside its settings: nothing here."""
        return {}

    def take_facts(self, run: Mapping[str, Any], folder: Path) -> None:
        """Take what `facts` has left in a run file; LatePromptError for what cannot be."""

    # -- its life ----------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls, settings: ModelSettings, task: AnyTask, *, seed: int, base: Any = None, tokenizer: Any = None
    ) -> Self:
        """A model with a fresh adapter, initialised from `seed`.

        Args:
            settings: what is built.
            task: what is asked.
            seed: seed of the adapter's weights.
            base, tokenizer: the pretrained model, which is changed, and its tokenizer, where they are loaded already.

        Raises:
            LatePromptError: a setting, model, task or label word that cannot be; nothing is left behind.
        """
        settings.check()
        check_method(settings.method, settings.options)
        check_model_given(settings.method, settings.model)
        config = load_config(settings.model)
        device = pick_device(settings.device)
        readout = cls.resolve_readout(config, settings)
        pooling = settings.head_pooling or ("last" if FAMILIES[config.model_type].causal else "mean")
        settings = ModelSettings(**{**asdict(settings), "readout": readout, "head_pooling": pooling})
        extra: dict[str, Any] = {"head_pooling": pooling}
        if readout == "head":
            extra["head_labels"] = len(task.labels)
        adapter = adapter_config(settings, extra)
        if tokenizer is None:
            tokenizer = load_tokenizer(settings.model)
        # What does not fit the tokenizer is found before weights are loaded.
        cls.make_encoder(tokenizer, task, settings, settings.max_length)
        found = None
        if base is None:
            base = load_base(settings.model, readout, dtype=settings.dtype)
            found = model_fingerprint(base)
        with seeded(seed):
            model = wrap(base, adapter)
        settings.prompt_layer = adapter.prompt_layer
        tuned = cls(settings, task, model, tokenizer, device)
        tuned.base_fingerprint = found
        return tuned

    @property
    def layer(self) -> LatePromptLayer:
        """The late backbone inside the model."""
        return cast(LatePromptLayer, self.model.base_model.layer)

    @property
    def num_layers(self) -> int | None:
        """How many layers the backbone has."""
        return self.layer.num_layers

    @property
    def prompt_layer(self) -> int | float | str | None:
        """How many of them are below the prompt."""
        return self.settings.prompt_layer

    @property
    def trainable_parameters(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def release(self) -> None:
        """Free the weights that training and evaluation from cached states do not use: trunk, embeddings, LM head rows.

        What needs them later (rows without cached states) loads them again by itself.
        """
        if self._offloaded is None:
            base, layer = self.model.get_base_model(), self.layer
            self._offloaded = OffloadedWeights.offload(base, layer, int(self.settings.prompt_layer), self.readout)

    def restore(self) -> None:
        """Load again what `release` has freed."""
        if self._offloaded is not None:
            self._offloaded.restore(load_base(self.settings.model, self.settings.readout, dtype=self.settings.dtype))
            self._offloaded = None

    def batches(self, rows: Sequence[Row], *, any_label: bool = False) -> Batches:
        """The rows, encoded.

        Args:
            rows: the rows.
            any_label: whether they may have labels that the task does not have, to be counted as wrong; else such a
                label is a LatePromptError.
        """
        return self.batched(encode_rows(self.encoder, rows, self.task, any_label=any_label))

    def batched(self, examples: Sequence[Example]) -> Batches:
        """Rows that `encoder` has encoded, together."""
        return Batches(examples, self.tokenizer.pad_token_id or 0)

    def cached(
        self, batches: Sequence[tuple[Batches, np.ndarray]], settings: StatesSettings, *, quiet: bool = True
    ) -> tuple[list[Batches], float]:
        """Batches (each with the rows that will be read) with cached trunk states, and the seconds that filling took.

        A method that changes what lies below the prompt layer has no states to keep: its batches come back as they are.
        """
        self.restore()
        if not is_late(self.settings.method):
            return [part for part, _ in batches], 0.0
        return cache_states(self.model, self.readout, int(self.settings.prompt_layer), batches, settings, quiet=quiet)

    feed, kept = batches, cached  # their names in earlier releases

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
        """Train; with dev rows, keep the weights that were best on them. Arguments and errors as of the `Trainer`."""
        return fit(
            self.model,
            self.readout,
            train,
            dev,
            recipe,
            metrics=self.task.metrics,
            device=self.device,
            checkpoint=checkpoint,
            settings=settings,
            quiet=quiet,
        )

    def evaluate(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64) -> dict[str, Any]:
        """The task's metrics on rows with answers, or on batches of them (with cached states, perhaps).

        A label that the task does not have counts as wrong.
        """
        batches = rows if isinstance(rows, Batches) else self.batches(rows, any_label=True)
        if not isinstance(batches, CachedBatches):
            self.restore()
        values = evaluate(self.readout, batches, self.task.metrics, batch_size=batch_size, device=self.device)
        return {**values, **self.measure_more(batches, batch_size=batch_size)}

    # -- the run folder's own files ----------------------------------------------------------------------------------

    def save(self, folder: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Leave a run folder with the adapter, the task and `run.json` (settings and `facts`).

        It takes the place of a run that is there; all other files stay.

        Raises:
            LatePromptError: a file of one of its names is there that no run wrote.
        """
        RunFolder(folder).put(lambda place: self.write_files(place, facts))

    def write_files(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        """Write the files of `save` straight into `folder`."""
        weights = get_peft_model_state_dict(self.model, adapter_name=self.adapter)
        check_finite(weights, "the trained model")
        write_tensors(folder / ADAPTER_WEIGHTS, weights, {"format": "pt"})
        config = self.model.peft_config[self.adapter].to_dict()
        config |= {"inference_mode": True, "base_model_name_or_path": self.settings.model}
        # What AutoPeftModel loads the base model with.
        config["auto_mapping"] = {
            "base_model_class": AUTO[self.settings.readout].__name__,
            "parent_library": "transformers",
        }
        write_json(folder / ADAPTER_CONFIG, config)
        facts = {**self.facts(), **(facts or {})}
        write_description(folder, self.settings, self.task, self.base_fingerprint, self.calibration, facts)

    @classmethod
    def load(
        cls, folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
    ) -> Self:
        """The model of a run folder.

        Args:
            folder: what `save` left.
            model: where the base model is, if not where it was.
            device: where to run, if not where it was trained or a GPU.
            check_model: refuse a base model with other weights than the one that the run was trained on.

        Raises:
            LatePromptError: no run folder, files that are broken or of another method, another base model, or a task of
                another kind.
        """
        with reading(folder):
            return cls._load(Path(folder), model, device, check_model)

    @classmethod
    def _load(cls, folder: Path, model: str | None, device: str | None, check_model: bool) -> Self:
        opened = cls.open_run(folder, model, device)
        settings = opened.settings
        base = load_base(settings.model, settings.readout, dtype=settings.dtype)
        found = model_fingerprint(base)
        if check_model:
            check_fingerprint(opened.fingerprint, found, model=settings.model, run_file=str(folder / RUN_FILE))
        with seeded(0):  # for weights that the file's take the place of
            peft_model = wrap(base, opened.adapter)
        load_adapter_weights(peft_model, folder / ADAPTER_WEIGHTS)
        tuned = cls(settings, opened.task, peft_model, load_tokenizer(settings.model), pick_device(device))
        tuned.base_fingerprint = found
        tuned.calibration = opened.calibration
        tuned.take_facts(opened.run, folder)
        return tuned

    @classmethod
    def open_run(cls, folder: Path, model: str | None, device: str | None) -> OpenedRun:
        """What a run folder says, checked, without its weights; arguments and errors as in `load`."""
        run = read_run(folder)
        settings = model_settings_in(run, folder)
        if is_linear(settings.method):
            raise LatePromptError(
                f"run {str(folder)!r} is of method {settings.method!r}, a linear model without an adapter; load it "
                "alone (lateprompt.predictors.kinds.load_run)"
            )
        settings.model = model or settings.model
        settings.device = device
        task = read_task(folder)
        cls.check_task(task, folder)
        adapter = read_adapter_config(folder)
        check_same(settings, adapter, task, folder)
        check_same_asked(run, task, folder)
        cls.resolve_readout(load_config(settings.model), settings)
        fingerprint = section_of(run, BASE_MODEL, folder).get("fingerprint")
        return OpenedRun(settings, task, adapter, fingerprint, calibration_in(run, folder), run)


@dataclass(frozen=True)
class OpenedRun:
    """What a run folder says.

    Args:
        settings: the model's.
        task: what is asked.
        adapter: the adapter's configuration.
        fingerprint: of the base model that it was trained on; None in runs of earlier versions.
        calibration: of its probabilities.
        run: the whole run file.
    """

    settings: ModelSettings
    task: AnyTask
    adapter: LatePromptConfig
    fingerprint: str | None
    calibration: Calibration
    run: Mapping[str, Any] = field(default_factory=dict)
