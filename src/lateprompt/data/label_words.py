"""Tokenise texts and label words, without special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lateprompt.data.task import Task
from lateprompt.data.vocabulary import check_ids
from lateprompt.utils.errors import option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 4096
"""Texts in one call of the tokenizer: enough to be fast, few enough for its memory (several times the texts')."""


class WordTokenizer:
    """Tokenise plain text: no special tokens are added, and none are made of what a text says.

    Args:
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        ids = (
            tokenizer.mask_token_id,
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
        self._structural = frozenset(ids) - {None, tokenizer.unk_token_id}
        probe = tokenizer.convert_ids_to_tokens(self.texts(["a"])[0])
        # Llama's and XLM-RoBERTa's tokenizers add the first space themselves: a second one would be one more token.
        self._own_space = bool(probe) and probe[0].startswith(("▁", "Ġ"))

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids. A special token typed in a text (`[MASK]`, `</s>`) is split, or left out."""
        found: list[list[int]] = []
        for start in range(0, len(texts), CHUNK):
            found += self._call(list(texts[start : start + CHUNK]), split=True)
        # Splitting does not help where a special token is a piece of the vocabulary, as for XLM-RoBERTa.
        return [
            ids if self._structural.isdisjoint(ids) else [token for token in ids if token not in self._structural]
            for ids in found
        ]

    def literal(self, text: str) -> list[int]:
        """Return the token ids of a template's own text, in which special tokens count, as in `<|im_start|>user`."""
        ids = self._call([self.spaced(text)], split=False)[0]
        check_ids(self.tokenizer, ids, text)
        return ids

    def spaced(self, text: str) -> str:
        """Return `text` without its leading space if the tokenizer adds one itself."""
        return text.removeprefix(" ") if self._own_space else text

    def word(self, word: str) -> list[int]:
        """Return the token ids of a word within a sentence: with a space before it, unless that takes more tokens."""
        spaced, plain = self.texts([f" {word}", word])
        return plain if len(plain) < len(spaced) else spaced

    def _call(self, texts: list[str], *, split: bool) -> list[list[int]]:
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=split,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def label_word_problems(task: Task, words: WordTokenizer, *, single: bool) -> tuple[list[list[int]], list[str]]:
    """Return the token ids of each label word, and what is wrong with each word ('' if nothing).

    Args:
        task: the task.
        words: the model's tokenizer.
        single: whether a word must be a single token, as for a masked LM.
    """
    tokens = [words.word(word) for word in task.label_words]
    problems: list[str] = []
    differ = len(set(map(tuple, tokens))) > 1
    first: dict[tuple[int, ...], int] = {}
    for index, (word, ids) in enumerate(zip(task.label_words, tokens, strict=True)):
        pieces = words.tokenizer.convert_ids_to_tokens(ids)
        model = tokenizer_name(words.tokenizer)
        problem = ""
        if not ids:
            problem = f"label word {word!r} is no token for {model}; choose another word"
        elif words.tokenizer.unk_token_id in ids:
            problem = f"label word {word!r} has tokens unknown to {model} {tuple(pieces)}; choose a word it knows"
        elif single and len(ids) != 1:
            listed = ", ".join(map(repr, pieces))
            problem = (
                f"label word {word!r} is {len(ids)} tokens ({listed}) for {model}; choose a word that is a single "
                f"token, or use {option('readout', 'head')}"
            )
        elif tuple(ids) in first:
            other = first[tuple(ids)]
            problem = (
                f"label words {task.label_words[other]!r} ({task.labels[other]}) and {word!r} ({task.labels[index]}) "
                f"are the same tokens for {model}; choose different words"
            )
        elif differ and all(other[: len(ids)] == ids for other in tokens):
            problem = (
                f"label word {word!r} ({task.labels[index]}) is how every label's words begin for {model}, so nothing "
                f"of it tells the labels apart; choose another, or end it with a word of its own"
            )
        first.setdefault(tuple(ids), index)
        problems.append(problem)
    return tokens, problems


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's name, for messages."""
    return str(tokenizer.name_or_path) or type(tokenizer).__name__
