"""`TextClassifier`: a tuned model whose answers are labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lateprompt.backbone.families import hidden_dropout_of
from lateprompt.backbone.packed import can_pack
from lateprompt.data import AnyTask, Row, Task, TaskEncoder
from lateprompt.data.batches import Batches
from lateprompt.predictors.assessment import Assessment
from lateprompt.predictors.base import TunedModel
from lateprompt.predictors.loading import resolve_readout
from lateprompt.readouts import HeadReadout, Loss, Readout, word_readout
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.training.calibration import fit_calibration
from lateprompt.training.evaluate import predict_scores
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError

_TOGETHER = 16384
"""Rows that are encoded and sorted at a time."""


class TextClassifier(TunedModel):
    """A tuned classifier, from rows to label probabilities; `build`, `load` and the arguments are `TunedModel`'s.

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
        >>> from lateprompt.data import Row, default_task
        >>> from lateprompt.predictors.classifier import TextClassifier
        >>> from lateprompt.training.settings import ModelSettings
        >>> settings = ModelSettings(folder, prompt_layer=2, bottleneck_dim=8)
        >>> classifier = TextClassifier.build(settings, default_task(["bad", "good"], pair=False), seed=42)
        >>> classifier.probabilities([Row("good fun"), Row("dull")]).shape  # (rows, labels), of an untrained prompt
        (2, 2)
        >>> 0.0 <= classifier.evaluate([Row("good fun", label="good"), Row("dull", label="bad")])["accuracy"] <= 1.0
        True
    """

    task: Task
    encoder: TaskEncoder

    @staticmethod
    def make_encoder(tokenizer: Any, task: Any, settings: ModelSettings, max_length: int) -> TaskEncoder:
        return TaskEncoder(tokenizer, task, settings.readout, max_length)

    @staticmethod
    def resolve_readout(config: Any, settings: ModelSettings) -> str:
        return resolve_readout(config, settings.readout, settings.model)

    @staticmethod
    def check_task(task: AnyTask, source: object) -> None:
        if not isinstance(task, Task):
            raise LatePromptError(f"{str(source)!r}: task {task.name} has texts for answers, not labels")

    @property
    def answer_positions(self) -> int:
        longest = max(map(len, self.encoder.label_tokens), default=1)
        if longest == 1:
            return 0  # read where the text ends
        return longest - 1 if can_pack(self.layer) else longest

    def make_readout(self) -> Readout:
        layer, base = self.layer, self.model.get_base_model()
        if self.settings.readout == "head":
            dropout = hidden_dropout_of(layer.config, layer.family)
            return HeadReadout(base, layer, self.adapter, self.settings.head_pooling or "cls", dropout)
        loss: Loss = "labels" if self.settings.loss == "labels" else "vocabulary"
        return word_readout(base, layer, self.encoder.label_tokens, self.settings.readout, loss)

    def evaluate(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64, details: bool = False) -> dict[str, Any]:
        """The task's metrics on labelled rows, or on batches of them (with cached states, perhaps).

        A label that the task does not have counts as wrong.

        Args:
            rows: the rows.
            batch_size: rows in a batch.
            details: whether to give `classes` and `confusion` too, as `Assessment.details`.

        Returns:
            The metrics, `loss` (before calibration), `ece` (the expected calibration error of the probabilities, 15
            bins) and, if they are calibrated, `ece_before`.
        """
        found = self.assess(rows, batch_size=batch_size)
        return {**found.metrics(), **(found.details() if details else {})}

    def assess(self, rows: Sequence[Row] | Batches, *, batch_size: int = 64) -> Assessment:
        """The scores of labelled rows, with all that can be measured of them."""
        names = None if isinstance(rows, Batches) else [row.label for row in rows]
        batches = rows if isinstance(rows, Batches) else self.batches(rows, any_label=True)
        if not isinstance(batches, CachedBatches):
            self.restore()
        scores = predict_scores(self.readout, batches, batch_size=batch_size, device=self.device)
        return Assessment(self.task.labels, self.task.metrics, batches.labels, scores, self.calibration, names)

    def calibrate(self, batches: Batches, *, batch_size: int = 64) -> dict[str, float]:
        """Fit the temperature of the probabilities on held-out rows; predictions stay as they are.

        Returns:
            The rows' calibration error, as `fit_calibration` gives it.
        """
        scores = self.assess(batches, batch_size=batch_size).scores
        self.calibration, errors = fit_calibration(scores, batches.labels)
        return errors

    def scores(
        self, rows: Sequence[Row], *, batch_size: int = 64, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Label scores (rows, labels) before calibration: the softmax of `calibration.scaled(scores)` is probabilities.

        Rows are encoded and sorted by length some thousand at a time, so that only the result grows with their number.
        """
        self.restore()
        parts = [np.zeros((0, len(self.task.labels)), dtype=np.float32)]
        for start in range(0, len(rows), _TOGETHER):
            feed = self.batches(rows[start : start + _TOGETHER])
            parts.append(
                predict_scores(self.readout, feed, batch_size=batch_size, device=self.device, progress=progress)
            )
        return np.concatenate(parts)

    def probabilities(
        self, rows: Sequence[Row], *, batch_size: int = 64, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Label probabilities (rows, labels), calibrated where training had dev rows."""
        return self.calibration.probabilities(self.scores(rows, batch_size=batch_size, progress=progress))
