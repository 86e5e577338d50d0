"""From rows to token ids: a template is filled with the row's texts, which are cut if they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lateprompt.data.label_words import WordTokenizer, label_word_problems, tokenizer_name
from lateprompt.data.rows import Row
from lateprompt.data.task import MultiLabelTask, Task
from lateprompt.data.task_library import AnyTask
from lateprompt.data.template import LITERAL, Piece, split_template
from lateprompt.utils.aliases import todays_value
from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.names import READOUTS as READOUTS
from lateprompt.utils.suggestions import some_of, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = ("text", "text_pair")


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row, without padding.

    Args:
        input_ids: token ids, `(length,)`, int32.
        token_type_ids: 0 up to the first separator and 1 after it, `(length,)`, int32; None where the template has no
            `{sep}` or the model reads no token types.
        read: index of the token whose output is read: the mask (readout mask), the last source token (label, text);
            -1 for a head.
        label: class id, -1 if unknown.
        target: in a text-to-text task, the token ids of the answer; `input_ids` ends with all of them but the last.
            None if the answer is not known.
        reference: the answer as text.
        labels: in a multi-label task, (labels,) 1 for each label that the row has, 0 for the others.
        missed: how many labels the row has that the task has not.

    Example:
        >>> import numpy as np
        >>> from lateprompt.data import Example
        >>> Example(np.array([2, 17, 4, 3], dtype=np.int32), token_type_ids=None, read=2, label=1).label
        1
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None
    read: int
    label: int
    target: NDArray[np.int32] | None = None
    reference: str | None = None
    labels: NDArray[np.uint8] | None = None
    missed: int = 0


class Source(NamedTuple):
    """The token ids of a row up to its answer, their token types (or None), and the index of the mask (-1: none)."""

    input_ids: list[int]
    token_type_ids: NDArray[np.int32] | None
    mask: int


class SourceEncoder:
    """Encode rows by a template; base class of `TaskEncoder` and `TargetEncoder`.

    Each piece of the template is tokenised on its own, so that its tokens do not depend on the text. Texts are
    stripped; a space before a text in the template is tokenised with the text. Too long a text is cut at its end (of a
    pair the longer one first); the template, the mask and special tokens are never cut.

    Args:
        tokenizer: the model's tokenizer.
        task: the task; its name appears in error messages.
        template: the template, up to the answer.
        max_length: largest number of tokens.
        at_mask: whether the answer is read at a mask.
        before, after: token ids before and after the template.

    Raises:
        LatePromptError: a tokenizer without a mask or separator where the template has one, or a template longer than
            max_length.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: AnyTask,
        template: str,
        max_length: int,
        *,
        at_mask: bool,
        before: Sequence[int],
        after: Sequence[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.task: AnyTask = task
        self.words = WordTokenizer(tokenizer)
        self._at_mask = at_mask
        pieces = split_template(template)
        self._pieces: list[tuple[str, list[int]]] = [
            (LITERAL, list(before)),
            *((piece.kind, self._piece_ids(piece)) for piece in pieces),
            (LITERAL, list(after)),
        ]
        self._leads = {piece.kind: self.words.spaced(piece.text) for piece in pieces if piece.kind in TEXTS}
        self._has_types = "token_type_ids" in tokenizer.model_input_names and any(p.kind == "sep" for p in pieces)
        self._budget = max_length - sum(len(ids) for _, ids in self._pieces)
        if self._budget < len(self._leads):
            raise LatePromptError(
                f"max_length {max_length!r} is too short: the template and special tokens of task {task.name} take "
                f"{max_length - self._budget} tokens, and each text needs one; give at least "
                f"{max_length - self._budget + len(self._leads)}"
            )

    @property
    def may_be_empty(self) -> bool:
        """Return whether an empty text would give no tokens at all, since the template has none either."""
        return not any(ids for _, ids in self._pieces)

    @property
    def signature(self) -> tuple[object, ...]:
        """Return what token ids depend on beside the tokenizer: encoders that have the same encode texts alike."""
        pieces = tuple((kind, tuple(ids)) for kind, ids in self._pieces)
        return pieces, tuple(self._leads.items()), self._budget, self._has_types, self._at_mask

    def sources(self, rows: Sequence[Row]) -> list[Source]:
        """Encode rows up to their answers; all texts go through the tokenizer in one call.

        Raises:
            LatePromptError: a row without the second text of a pair, or without tokens.
        """
        columns: dict[str, list[list[int]]] = {}
        for field, lead in self._leads.items():
            texts = [getattr(row, field) for row in rows]
            if None in texts:
                raise LatePromptError(
                    f"row {texts.index(None) + 1} has no {field}, which task {self.task.name} reads; give one"
                )
            stripped = [text.strip() for text in texts]
            # An empty text has no tokens; with the space before it, it would have one.
            columns[field] = self.words.texts([lead + text if text else "" for text in stripped])
        return [
            self._fill({field: texts[index] for field, texts in columns.items()}, index + 1)
            for index in range(len(rows))
        ]

    def _fill(self, texts: dict[str, list[int]], number: int) -> Source:
        """Fill the template with the token ids of one row's texts."""
        lengths = _cut([len(ids) for ids in texts.values()], self._budget)
        kept = {field: ids[:length] for (field, ids), length in zip(texts.items(), lengths, strict=True)}
        ids: list[int] = []
        mask, second = -1, None
        for kind, fixed in self._pieces:
            if kind == "mask":
                mask = len(ids)
            ids += kept[kind] if kind in TEXTS else fixed
            if kind == "sep" and second is None:
                second = len(ids)
        if not ids:
            raise LatePromptError(f"row {number} gives no tokens; give it a text")
        types = None
        if self._has_types:
            types = np.zeros(len(ids), dtype=np.int32)
            types[second:] = 1
        return Source(ids, types, mask)

    def _piece_ids(self, piece: Piece) -> list[int]:
        """Return the token ids of a piece of the template; none for a text."""
        tokenizer = self.tokenizer
        if piece.kind in TEXTS:
            return []
        if piece.kind == "mask":
            if tokenizer.mask_token_id is None:
                raise LatePromptError(_no_mask(tokenizer))
            return [tokenizer.mask_token_id]
        if piece.kind == "sep":
            separator = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
            if separator is None:
                raise LatePromptError(
                    f"{tokenizer_name(tokenizer)} has no separator for {{sep}}; write one into the task's head_template"
                )
            return [separator]
        ids = self.words.literal(piece.text)
        if self._at_mask and tokenizer.mask_token_id in ids:
            raise LatePromptError(f"template text {piece.text!r} has the mask token in it; write it as {{mask}}, once")
        return ids


class TaskEncoder(SourceEncoder):
    """Encode rows of a classification task for one tokenizer and readout; see `SourceEncoder`.

    Args:
        tokenizer: the model's tokenizer.
        task: the task.
        readout: `masked_lm` (a masked LM predicts the label word), `causal_lm` (a causal LM goes on with it) or `head`
            (a trained head).
        max_length: largest number of tokens of an example.

    Attributes:
        label_tokens: token ids of each label word: one for `masked_lm`, one or more for `causal_lm`; `[]` for `head`.
        prefix_ids: special tokens before the text.
        suffix_ids: special tokens after the text; none for `label`, where the label word follows.

    Raises:
        LatePromptError: an unknown readout, a tokenizer without a mask or separator where the template has one, a label
            word that does not fit (see `check_task`), or a template longer than max_length.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from lateprompt.data import Row, TaskEncoder, default_task
        >>> words = ["[UNK]", "[MASK]", "It", "was", "good", "bad", "fun", "."]
        >>> tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(
        ...     tokenizer_object=tokenizer, unk_token="[UNK]", mask_token="[MASK]", pad_token="[UNK]"
        ... )
        >>> task = default_task(["good", "bad"], pair=False)
        >>> encoder = TaskEncoder(tokenizer, task, readout="mask")
        >>> (example,) = encoder.encode([Row("fun fun", label="good")])
        >>> example.input_ids.tolist(), example.read, example.label  # fun fun . It was [MASK] .
        ([6, 6, 7, 2, 3, 1, 7], 5, 0)
        >>> encoder.label_tokens
        [[4], [5]]
    """

    task: Task

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, readout: str, max_length: int = 256) -> None:
        self.readout = readout = todays_value("readout", readout)
        self.max_length = max_length
        source = _source(task, readout)
        self.prefix_ids, self.suffix_ids = special_ids(tokenizer)
        if readout == "causal_lm":
            self.suffix_ids = []
        super().__init__(
            tokenizer,
            task,
            source,
            max_length,
            at_mask=readout == "masked_lm",
            before=self.prefix_ids,
            after=self.suffix_ids,
        )
        self.label_tokens = self._label_tokens()
        self._label_ids = {label: number for number, label in enumerate(task.labels)}

    @property
    def signature(self) -> tuple[object, ...]:
        return *super().signature, self.readout

    def encode(self, rows: Sequence[Row], *, any_label: bool = False) -> list[Example]:
        """Encode rows; all texts go through the tokenizer in one call.

        Args:
            rows: the rows.
            any_label: of a multi-label task: count labels that the task does not have as missed ones.

        Raises:
            LatePromptError: a row without the second text of a pair, with a label the task does not have, or without
                tokens.
        """
        if isinstance(self.task, MultiLabelTask):
            return self._with_labels(rows, any_label)
        labels = [self._label_id(row, number) for number, row in enumerate(rows, 1)]
        return [
            Example(
                np.array(source.input_ids, dtype=np.int32),
                source.token_type_ids,
                len(source.input_ids) - 1 if self.readout == "causal_lm" else source.mask,
                label,
            )
            for source, label in zip(self.sources(rows), labels, strict=True)
        ]

    def _label_tokens(self) -> list[list[int]]:
        if self.readout == "head":
            return []
        tokens, problems = label_word_problems(self.task, self.words, single=self.readout == "masked_lm")
        for problem in problems:
            if problem:
                raise LatePromptError(problem)
        return tokens

    def _label_id(self, row: Row, number: int) -> int:
        if row.label is None:
            return -1
        found = self._label_ids.get(row.label)
        if found is None:
            raise self._unknown(row.label, number)
        return found

    def _unknown(self, label: str, number: int) -> LatePromptError:
        return LatePromptError(
            f"row {number} has label {label!r}, which task {self.task.name} does not have; its labels are "
            f"{some_of(self.task.labels)}"
        )

    def _with_labels(self, rows: Sequence[Row], any_label: bool) -> list[Example]:
        """Encode rows that may have several labels each."""
        examples = []
        for number, (row, source) in enumerate(zip(rows, self.sources(rows), strict=True), 1):
            own = np.zeros(len(self._label_ids), dtype=np.uint8)
            ids = [self._label_ids.get(label) for label in row.labels or ()]
            if None in ids and not any_label:
                raise self._unknown((row.labels or ())[ids.index(None)], number)
            known = [label for label in ids if label is not None]
            own[known] = 1
            tokens = np.array(source.input_ids, dtype=np.int32)
            missed = len(ids) - len(known)
            examples.append(Example(tokens, source.token_type_ids, source.mask, -1, labels=own, missed=missed))
        return examples


def check_task(task: Task, tokenizer: PreTrainedTokenizerBase, readout: str) -> list[dict[str, Any]]:
    """Check how each label word of a task fits a tokenizer.

    Args:
        task: the task.
        tokenizer: the model's tokenizer.
        readout: mask (each word must be a single token), label or head.

    Returns:
        One dict a label, with `label`, `word`, `pieces` (its tokens as strings), `ok` and `message` ('' if ok).

    Raises:
        LatePromptError: an unknown readout.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from lateprompt.data import check_task, default_task
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "good": 2}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", mask_token="[MASK]")
        >>> [found["ok"] for found in check_task(default_task(["good", "bad"], pair=False), tokenizer, "masked_lm")]
        [True, False]
    """
    readout = todays_value("readout", readout)
    _source(task, readout)
    tokens, problems = label_word_problems(task, WordTokenizer(tokenizer), single=readout == "masked_lm")
    if readout == "head":
        problems = [""] * len(problems)
    elif readout == "masked_lm" and tokenizer.mask_token_id is None:
        problems = [_no_mask(tokenizer)] * len(problems)
    return [
        {
            "label": label,
            "word": word,
            "pieces": list(tokenizer.convert_ids_to_tokens(ids)),
            "ok": not problem,
            "message": problem,
        }
        for label, word, ids, problem in zip(task.labels, task.label_words, tokens, problems, strict=True)
    ]


def _no_mask(tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"{tokenizer_name(tokenizer)} has no mask token; use {option('readout', 'causal_lm')} for a causal model, or "
        f"{option('readout', 'head')}"
    )


def _source(task: Task, readout: str) -> str:
    """Return the template for a readout; of a decoder's, the part before the label."""
    if readout == "masked_lm":
        return task.template.rstrip()
    if readout == "causal_lm":
        # The space before the label belongs to its word; a line break is part of the source.
        return task.decoder_template.partition("{label}")[0].rstrip(" ")
    if readout == "head":
        return task.head_template.rstrip()
    raise LatePromptError(unknown("readout", readout, READOUTS))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text, found by encoding one."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    if 0 not in special:
        raise LatePromptError(f"{tokenizer_name(tokenizer)} finds no text in 'a'; use a tokenizer that knows letters")
    first, last = special.index(0), len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]


def _cut(lengths: list[int], budget: int) -> list[int]:
    """Cut one or two lengths so that they fit together: the longer first, of equal ones the second.

    Args:
        lengths: tokens of each text.
        budget: tokens all may take together.
    """
    if sum(lengths) <= budget:
        return lengths
    if len(lengths) == 1:
        return [budget]
    first, second = lengths
    if min(first, second) > budget // 2:
        return [budget - budget // 2, budget // 2]
    return [first, budget - first] if first < second else [budget - second, second]
