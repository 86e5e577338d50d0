"""Check that a tokenizer belongs to a model: another model's tokenizer would give ids that mean something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import check_file

_FEWEST = 50
"""A tokenizer is refused if the embedding has more than this many times as many rows as it has tokens. (Embeddings are
padded by a few percent; character vocabularies have small embeddings.)"""
_PAIR = ("vocab.json", "merges.txt")
_USED = ("pad", "mask", "unk", "bos", "eos", "cls", "sep")


def check_vocabulary(tokenizer: Any, config: Any, model: str) -> None:
    """Compare a tokenizer with its model's embedding, and set `tokenizer.embedding_rows` to its number of rows.

    More rows than tokens are usual (padding). Special tokens with ids beyond the last row (Gemma 3's image token) are
    accepted unless they are used around texts or as padding: typed in a text they are plain text, and a template that
    has one is refused by the encoder.

    Args:
        tokenizer: the tokenizer.
        config: the model's configuration.
        model: the model's name, for messages.

    Raises:
        LatePromptError: a tokenizer without words, with ids beyond the embedding, or with far fewer tokens than the
            embedding has rows.
    """
    words: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special |= {index for index, token in added.items() if token.special}
    if not set(words.values()) - special:
        raise LatePromptError(
            f"the tokenizer of {model!r} knows {len(words)} special tokens and no word: its files are missing or empty "
            f"({', '.join(_names(tokenizer))}); copy them from where the model came from"
        )
    rows = getattr(config, "vocab_size", None)
    if not isinstance(rows, int):
        return
    used = {getattr(tokenizer, f"{name}_token_id", None) for name in _USED}
    beyond = {index: word for word, index in words.items() if index >= rows}
    wrong = sorted(index for index in beyond if index not in special or index in used)
    if wrong:
        raise LatePromptError(
            f"the tokenizer of {model!r} has ids up to {max(wrong)} (token {beyond[wrong[0]]!r} is {wrong[0]}), but "
            f"the model's embedding has {rows} rows; take the model's own tokenizer, or save the model after "
            f"model.resize_token_embeddings({max(wrong) + 1})"
        )
    if len(words) * _FEWEST < rows:
        raise LatePromptError(
            f"the tokenizer of {model!r} has {len(words)} tokens, but the model's embedding has {rows} rows: it is not "
            f"this model's; take the model's own tokenizer, or save the model after "
            f"model.resize_token_embeddings({len(words)})"
        )
    tokenizer.embedding_rows = rows


def check_ids(tokenizer: Any, ids: list[int], text: str) -> None:
    """Raise LatePromptError if `text`, a part of a template, has a token that is not in the model's embedding."""
    rows = getattr(tokenizer, "embedding_rows", None)
    wrong = next((index for index in ids if rows is not None and index >= rows), None)
    if wrong is not None:
        raise LatePromptError(
            f"template {text!r} has the token {tokenizer.convert_ids_to_tokens(wrong)!r} ({wrong}), which the model's "
            f"embedding of {rows} rows does not have; take it out"
        )


def check_tokenizer_files(folder: Path) -> None:
    """Raise LatePromptError if a model's folder has only one of vocab.json and merges.txt, and no tokenizer.json."""
    present = [name for name in _PAIR if (folder / name).exists()]
    if len(present) == 1 and not (folder / "tokenizer.json").exists():
        missing = next(name for name in _PAIR if name not in present)
        raise LatePromptError(
            f"model {str(folder)!r} has an incomplete tokenizer: {missing} is missing, and there is no tokenizer.json; "
            "copy the files from where the model came from"
        )
    for name in ("tokenizer.json", *_PAIR, "vocab.txt"):
        if folder.is_dir() and (folder / name).exists():
            check_file(folder / name, "tokenizer file")


def has_tokenizer_files(folder: Path) -> bool:
    """Return whether a folder has any file that a tokenizer could be read from."""
    known = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json")
    return any((folder / name).exists() for name in known) or any(
        path.suffix in (".model", ".tiktoken", ".vocab") for path in folder.iterdir()
    )


def _names(tokenizer: Any) -> list[str]:
    return [str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values()] or ["tokenizer.json"]
