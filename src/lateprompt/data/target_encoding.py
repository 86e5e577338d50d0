"""Encode text-to-text rows: the source (in the model's chat template, if it has one), then the target."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jinja2 import TemplateError

from lateprompt.data.encoding import Example, SourceEncoder, special_ids
from lateprompt.data.generation_task import TextTask
from lateprompt.data.label_words import WordTokenizer, tokenizer_name
from lateprompt.data.rows import Row
from lateprompt.utils.errors import LatePromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Placeholders for the texts, to find what the chat template puts around them; no template changes letters.
_USER, _ANSWER = "LATEPROMPTUSERTEXT", "LATEPROMPTANSWERTEXT"


class Frame(NamedTuple):
    """Token ids before a source, between source and answer, and at the answer's end; the space before an answer."""

    before: list[int]
    after: list[int]
    end: int
    lead: str = ""


class TargetEncoder(SourceEncoder):
    """Encode rows of a text-to-text task: `input_ids` are the source and all but the last token of the target.

    If the tokenizer has a chat template, and the task does not turn it off, the source is the user's message and the
    target the assistant's. Otherwise the target follows the source, and ends with the end-of-text token. Sources are
    cut as if each target had `max_target_length` tokens, since it is not known when the model is used.

    Args:
        tokenizer: the model's tokenizer.
        task: the task.
        max_length: largest number of tokens of source and target together.
        max_target_length: largest number of tokens of a target, its end included; longer ones are cut, with a warning.

    Attributes:
        before, after: token ids before a source, and between source and target.
        end: the token id that ends a target.
        chat: whether the chat template is used.

    Raises:
        LatePromptError: a tokenizer without an end-of-text token, a chat template that is missing or does not take
            these messages, a template longer than max_length, or no room for a source.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from lateprompt.data import Row, TargetEncoder, TextTask
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[END]": 1, "one": 2, "two": 3}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[END]")
        >>> encoder = TargetEncoder(tokenizer, TextTask("count", template="{text} {target}"))
        >>> (example,) = encoder.encode([Row("one one", target="two")])
        >>> example.input_ids.tolist(), example.target.tolist(), example.read
        ([2, 2, 3], [3, 1], 1)
    """

    task: TextTask

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, task: TextTask, max_length: int = 256, max_target_length: int = 64
    ) -> None:
        source = task.template.partition("{target}")[0]
        self.max_target_length = max_target_length
        self.chat = task.chat == "on" or (task.chat == "auto" and bool(getattr(tokenizer, "chat_template", None)))
        if max_target_length >= max_length:
            raise LatePromptError(
                f"max_target_length {max_target_length!r} leaves no room for a source in max_length {max_length!r}; "
                "lower the one or raise the other"
            )
        if self.chat:
            frame = chat_frame(tokenizer, task.system)
            lead, template = frame.lead, source.strip()
        else:
            frame = _plain_frame(tokenizer, task.system)
            # The space before the target belongs to its first word; a line break is part of the source.
            lead, template = (" ", source.rstrip(" ")) if source.endswith(" ") else ("", source)
        super().__init__(
            tokenizer,
            task,
            template,
            max_length - max_target_length,
            at_mask=False,
            before=frame.before,
            after=frame.after,
        )
        self.before, self.after, self.end = frame[:3]
        self._lead = self.words.spaced(lead)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Encode rows; a row without a target is encoded up to the end of its source.

        Raises:
            LatePromptError: a row without the second text of a pair, or without tokens.
        """
        known = [None if row.target is None else row.target.strip() for row in rows]
        targets = self.words.texts([self._lead + (target or "") for target in known])
        room = self.max_target_length
        long = sum(target is not None and len(ids) >= room for ids, target in zip(targets, known, strict=True))
        if long:
            warnings.warn(
                f"{long} of {len(rows)} targets are longer than max_target_length {room} and were cut; raise it "
                "if they matter",
                stacklevel=2,
            )
        examples = []
        for source, target, reference in zip(self.sources(rows), targets, known, strict=True):
            ids, answer = list(source.input_ids), None
            if reference is not None:
                answer = np.array([*target, self.end][:room], dtype=np.int32)
                ids += answer[:-1].tolist()
            examples.append(
                Example(np.array(ids, dtype=np.int32), None, len(source.input_ids) - 1, -1, answer, reference)
            )
        return examples


def chat_frame(tokenizer: PreTrainedTokenizerBase, system: str | None) -> Frame:
    """Find what a tokenizer's chat template puts around a user's message and its answer.

    Raises:
        LatePromptError: there is no chat template, or it refuses or changes these messages.
    """
    name = tokenizer_name(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise LatePromptError(f"{name} has no chat template, which the task asks for (chat: on); use chat: auto or off")
    asked = [{"role": "system", "content": system}] if system is not None else []
    asked.append({"role": "user", "content": _USER})
    try:
        question = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": _ANSWER}], tokenize=False)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise LatePromptError(
            f"the chat template of {name} does not take these messages ({error}); use chat: off"
        ) from None
    before, found, after = str(question).partition(_USER)
    if not found or _USER in after or str(whole).count(_ANSWER) != 1:
        raise LatePromptError(f"the chat template of {name} does not repeat each message once; use chat: off")
    if system is not None and system.strip() not in question:
        raise LatePromptError(
            f"the chat template of {name} leaves out system {system!r}; put it into the task's template"
        )
    words = WordTokenizer(tokenizer)
    opening, _, rest = str(whole).partition(_ANSWER)
    lead = opening.removeprefix(str(question))  # Llama 2's template has a space there, which is the answer's
    closing = words.literal(rest.lstrip())
    special = {*tokenizer.all_special_ids, *(getattr(tokenizer, "added_tokens_decoder", None) or {})}
    end = closing[0] if closing and closing[0] in special else tokenizer.eos_token_id
    if end is None:
        raise LatePromptError(f"{name} has no token that ends an answer; use chat: off, or another model")
    return Frame(words.literal(before), words.literal(after), int(end), lead if lead.isspace() else "")


def _plain_frame(tokenizer: PreTrainedTokenizerBase, system: str | None) -> Frame:
    if system is not None:
        raise LatePromptError(
            f"system {system!r} is part of a chat, and {tokenizer_name(tokenizer)} has no chat template; leave it out"
        )
    if tokenizer.eos_token_id is None:
        raise LatePromptError(
            f"{tokenizer_name(tokenizer)} has no end-of-text token to end a target with; set eos_token"
        )
    return Frame(special_ids(tokenizer)[0], [], int(tokenizer.eos_token_id))
