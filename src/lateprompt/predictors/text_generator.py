"""`TextWriter`: a tuned causal model whose answers are texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lateprompt.data import AnyTask, Example, Row, TargetEncoder, TextTask
from lateprompt.data.batches import Batches, sorted_batches
from lateprompt.data.padding import pad
from lateprompt.predictors.base import TunedModel
from lateprompt.predictors.loading import causal_readout
from lateprompt.readouts import Readout, TextReadout
from lateprompt.training.distributed import processes
from lateprompt.training.metrics import text_metrics
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import TURN


class TextWriter(TunedModel):
    """A tuned writer, from rows to texts; `build`, `load` and the arguments are `TunedModel`'s.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = ["[END]", "[UNK]", "one", "two", "three"]
        >>> tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> folder = tempfile.mkdtemp()  # a tiny random model; give your model's folder or hub id
        >>> ends = dict(bos_token_id=0, eos_token_id=0)
        >>> sizes = dict(n_embd=16, n_layer=4, n_head=2, n_positions=64)
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **sizes, **ends))
        >>> model.save_pretrained(folder)
        >>> special = dict(unk_token="[UNK]", eos_token="[END]")
        >>> _ = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
        >>> from lateprompt.data import Row, TextTask
        >>> from lateprompt.predictors.text_generator import TextWriter
        >>> from lateprompt.training.settings import ModelSettings
        >>> settings = ModelSettings(folder, prompt_layer=2, bottleneck_dim=8, max_length=24, max_target_length=4)
        >>> writer = TextWriter.build(settings, TextTask("count", template="{text} {target}"), seed=42)
        >>> answers = writer.write([Row("one two"), Row("two")])  # of an untrained prompt
        >>> len(answers), all(len(answer.split()) <= 4 for answer in answers)
        (2, True)
    """

    task: TextTask
    encoder: TargetEncoder

    @staticmethod
    def make_encoder(tokenizer: Any, task: Any, settings: ModelSettings, max_length: int) -> TargetEncoder:
        return TargetEncoder(tokenizer, task, max_length, settings.max_target_length)

    @staticmethod
    def resolve_readout(config: Any, settings: ModelSettings) -> str:
        return causal_readout(config, settings.readout, settings.model)

    @staticmethod
    def check_task(task: AnyTask, source: object) -> None:
        if not isinstance(task, TextTask):
            raise LatePromptError(f"{str(source)!r}: task {task.name} has labels for answers, not texts")

    def make_readout(self) -> Readout:
        return TextReadout(self.model.get_base_model(), self.layer)

    def write(
        self,
        rows: Sequence[Row] | Sequence[Example],
        *,
        batch_size: int = 64,
        beams: int = 1,
        max_new_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The text that answers each row: greedy, or the best of some beams.

        Args:
            rows: rows, or what `encoder` made of them; targets are not looked at.
            batch_size: rows at a time.
            beams: how many beams.
            max_new_tokens: most tokens of an answer; default `max_target_length`.
            progress: told the number of rows done since it was last told.

        Raises:
            LatePromptError: a row without tokens, or more tokens than the model has positions for.
        """
        examples = self._sources(rows)
        self.restore()
        written = [""] * len(examples)
        lengths = np.array([example.read + 1 for example in examples], dtype=np.int64)
        new = max_new_tokens or self.settings.max_target_length
        problem = self.no_room(int(lengths.max(initial=0)), new)
        if problem is not None:
            raise LatePromptError(problem)
        ends = {self.encoder.end, *_ids(self.model.generation_config.eos_token_id)}
        filler = self.tokenizer.pad_token_id or 0
        tuner: Any = self.model.base_model  # PeftModel.generate goes past it where there is no task type
        for batch in self._batches(lengths, batch_size):
            ids, mask = pad([examples[i].input_ids[: lengths[i]] for i in batch], filler, left=True)
            with TURN, torch.inference_mode():
                output = tuner.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    max_new_tokens=new,
                    num_beams=beams,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=sorted(ends),
                    pad_token_id=filler,
                )
            texts = self.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for row, text in zip(batch, texts, strict=True):
                written[row] = text.strip()
            if progress is not None:
                progress(len(batch))
        return written

    def no_room(self, length: int, new: int) -> str | None:
        """What is wrong with `new` tokens behind a source of `length` tokens; None if there is room for them."""
        if self.positions is None or not length or length + new <= self.positions:
            return None
        return (
            f"max_new_tokens {new!r} do not fit behind a source of {length} tokens: the model has "
            f"{self.positions} positions; lower it"
        )

    def _sources(self, rows: Sequence[Row] | Sequence[Example]) -> Sequence[Example]:
        unanswered = [Row(row.text, row.text_pair) for row in rows if isinstance(row, Row)]
        return self.encoder.encode(unanswered) or [row for row in rows if isinstance(row, Example)]

    def _batches(self, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Rows of similar length; of the same where padding would shift positions (a prompt at the input)."""
        batches = sorted_batches(lengths, batch_size)
        if not self.layer.input_prompts:
            return batches
        return [part for rows in batches for part in np.split(rows, np.flatnonzero(np.diff(lengths[rows])) + 1)]

    def measure_more(self, feed: Batches, *, batch_size: int) -> dict[str, Any]:
        """The metrics for which the texts must be written; processes that train together share the rows."""
        if not self.task.written:
            return {}
        together = processes()
        own = together.share(np.arange(len(feed.examples)))
        texts = [""] * len(feed.examples)
        share = self.write([feed.examples[i] for i in own], batch_size=batch_size)
        for rows, written in together.gather((own, share)):
            for row, text in zip(rows, written, strict=True):
                texts[row] = text
        references = [example.reference or "" for example in feed.examples]
        return text_metrics(self.task.written, references, texts)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
