"""`TextClassifier`: a tuned model whose answers are labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lateprompt.backbone.families import hidden_dropout_of
from lateprompt.backbone.packed import can_pack
from lateprompt.data import AnyTask, MultiLabelTask, Task, TaskEncoder
from lateprompt.data.batches import Batches
from lateprompt.predictors.base import TunedModel
from lateprompt.predictors.labelling import Labelling
from lateprompt.predictors.loading import resolve_readout
from lateprompt.readouts import HeadReadout, Loss, Readout, word_readout
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.training.evaluate import predict_scores
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError


class TextClassifier(Labelling, TunedModel):
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
        if isinstance(task, MultiLabelTask):
            raise LatePromptError(f"{str(source)!r}: task {task.name} is multi-label; load it by load_run")

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

    def batch_scores(
        self,
        batches: Batches,
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Label scores (rows, labels) of encoded rows in their order, or of those whose numbers are given."""
        if not isinstance(batches, CachedBatches):
            self.restore()
        return predict_scores(
            self.readout, batches, batch_size=batch_size, device=self.device, progress=progress, rows=rows
        )
