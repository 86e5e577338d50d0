"""`MultiLabelClassifier`: a tuned model whose answers are any number of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lateprompt.backbone.families import hidden_dropout_of
from lateprompt.data import AnyTask, MultiLabelTask, Row, Task
from lateprompt.data.batches import Batches
from lateprompt.predictors.assessment import BY_LABEL, MultiLabelAssessment
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.saved_run import TASK_FILE, broken_run, read_task, section_of
from lateprompt.readouts import MultiLabelReadout
from lateprompt.training.multi_label import DEFAULT, answers, choose_thresholds, sigmoid
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError

THRESHOLDS = "thresholds"
"""In the run file: of each label the probability from which on it is an answer."""


class MultiLabelClassifier(TextClassifier):
    """A tuned classifier whose texts have any number of labels; the arguments are `TunedModel`'s.

    Attributes:
        thresholds: (labels,) probabilities from which on a label is an answer; 0.5 until `choose_thresholds`.

    Example:
        >>> from lateprompt.data import Row, multi_label_task
        >>> from lateprompt.demo import installed_encoder
        >>> from lateprompt.predictors.multi_label import MultiLabelClassifier
        >>> from lateprompt.training.settings import ModelSettings
        >>> task = multi_label_task(["film", "food", "music"], pair=False)
        >>> classifier = MultiLabelClassifier.build(ModelSettings(installed_encoder()), task, seed=42)
        >>> rows = [Row("a warm film", labels=("film",)), Row("songs of a film", labels=("film", "music"))]
        >>> classifier.probabilities(rows).shape  # (rows, labels), of an untrained prompt
        (2, 3)
        >>> 0.0 <= classifier.evaluate(rows)["micro_f1"] <= 1.0
        True
    """

    task: MultiLabelTask
    readout: MultiLabelReadout

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.thresholds = np.full(len(self.task.labels), DEFAULT)

    @staticmethod
    def resolve_readout(config: Any, settings: ModelSettings) -> str:
        if settings.readout not in ("auto", "head"):
            raise LatePromptError(
                f"readout {settings.readout!r} reads one label word a text, but the task is multi-label; give head, or "
                "leave it out"
            )
        return "head"

    @staticmethod
    def check_task(task: AnyTask, source: object) -> None:
        if not isinstance(task, MultiLabelTask):
            raise LatePromptError(f"{str(source)!r}: task {task.name} is no multi-label task")

    def make_readout(self) -> MultiLabelReadout:
        dropout = hidden_dropout_of(self.layer.config, self.layer.family)
        pooling = self.settings.head_pooling or "cls"
        return MultiLabelReadout(self.model.get_base_model(), self.layer, self.adapter, pooling, dropout)

    def batches(self, rows: Sequence[Row], *, any_label: bool = False) -> Batches:
        examples = self.encoder.encode(rows, any_label=any_label)
        return Batches(examples, self.tokenizer.pad_token_id or 0)

    def probabilities_of(self, scores: np.ndarray) -> np.ndarray:
        """Each label's own probability (rows, labels) of scores."""
        return sigmoid(scores)

    def answers_of(self, scores: np.ndarray) -> list[list[str]]:
        """The labels of each row, from scores (rows, labels): those with a probability from their thresholds on."""
        names = self.task.labels
        chosen = answers(sigmoid(scores), self.thresholds)
        return [[names[i] for i in np.flatnonzero(row).tolist()] for row in chosen]

    def before_training(self, train: Batches) -> None:
        """Let the head begin at how often the training rows have each label."""
        shares = (train.labels.sum(0) + 0.5) / (len(train) + 1)  # never 0 or 1
        self.readout.start_at(torch.from_numpy(shares))

    def after_training(self, dev: Batches | None, *, batch_size: int) -> None:
        """Choose the thresholds on the dev rows; without them they are 0.5."""
        self.thresholds = np.full(len(self.task.labels), DEFAULT)
        if dev is not None:
            self.learn_from(self.batch_scores(dev, batch_size=batch_size), dev)

    def learn_from(self, scores: np.ndarray, batches: Batches) -> None:
        """Choose the thresholds by scores (rows, labels) of rows that were not trained on."""
        self.thresholds = choose_thresholds(sigmoid(scores), batches.labels)

    def measure(self, scores: np.ndarray, batches: Batches) -> dict[str, Any]:
        """Micro and macro F1, subset accuracy and the loss, and under `by_label` each label's own figures."""
        found = self._assessment(scores, batches)
        return {**found.metrics(), **found.details()}

    def evaluate(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64, details: bool = True) -> dict[str, Any]:
        """`measure` of rows with answers, without `details` without `by_label`; a label that the task lacks is missed.

        There is no calibration error: thresholds are chosen, and probabilities stay as they are.
        """
        return super().evaluate(rows, batch_size=batch_size, details=details)

    def assess(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64) -> MultiLabelAssessment:
        """The scores of labelled rows, with all that can be measured of them."""
        batches = rows if isinstance(rows, Batches) else self.batches(rows, any_label=True)
        return self._assessment(self.batch_scores(batches, batch_size=batch_size), batches)

    def calibrate(self, batches: Batches, *, batch_size: int = 64) -> dict[str, float]:
        """Nothing: each label has a threshold instead of a temperature."""
        return {}

    def _assessment(self, scores: np.ndarray, batches: Batches) -> MultiLabelAssessment:
        return MultiLabelAssessment(self.task.labels, batches.labels, batches.missed, scores, self.thresholds)

    def measure_more(self, feed: Batches, *, batch_size: int) -> dict[str, Any]:
        """Each label's own figures."""
        return {BY_LABEL: self.evaluate(feed, batch_size=batch_size)[BY_LABEL]}

    def facts(self) -> dict[str, Any]:
        return {THRESHOLDS: dict(zip(self.task.labels, self.thresholds.tolist(), strict=True))}

    def take_facts(self, run: Mapping[str, Any], folder: Path) -> None:
        saved = section_of(run, THRESHOLDS, folder)
        found = [saved.get(label) for label in self.task.labels]
        for label, value in zip(self.task.labels, found, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise broken_run(folder, THRESHOLDS, f"{value!r} for label {label!r} is no number; train it again")
        self.thresholds = np.array(found, dtype=np.float64)


def classifier_kind(task: Task) -> type[TextClassifier]:
    """The kind of classifier that learns a task with labels."""
    return MultiLabelClassifier if isinstance(task, MultiLabelTask) else TextClassifier


def classifier_kind_in(folder: Path) -> type[TextClassifier]:
    """The kind of classifier that a run folder holds; of what is none, loading will say what is wrong."""
    task = read_task(folder) if (folder / TASK_FILE).is_file() else None
    return classifier_kind(task) if isinstance(task, Task) else TextClassifier
