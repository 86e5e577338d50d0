"""Whether a tokenizer and a model belong together: a tokenizer of another model gives ids that mean something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import check_file

_FEWEST = 50
"""A tokenizer with fewer tokens than the embedding's rows over this is refused: vocabularies are padded by a few
percent, character vocabularies sit in small embeddings."""
_PAIR = ("vocab.json", "merges.txt")
_USED = ("pad", "mask", "unk", "bos", "eos", "cls", "sep")


def check_vocabulary(tokenizer: Any, config: Any, model: str) -> None:
    """Hold a tokenizer against its model's embedding, and note the embedding's rows as `tokenizer.embedding_rows`.

    A padded embedding has more rows than there are tokens. Special tokens behind the last row (Gemma 3's image token)
    are let through unless texts are framed or padded with them: typed in a text they are text, and the encoder refuses
    a template that has one.

    Raises:
        LatePromptError: no tokenizer files, a tokenizer without words, with ids beyond the embedding, or with far fewer
            tokens than it has rows.
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
    """Raise LatePromptError for a template's piece with a token that has no row in the model's embedding."""
    rows = getattr(tokenizer, "embedding_rows", None)
    wrong = next((index for index in ids if rows is not None and index >= rows), None)
    if wrong is not None:
        raise LatePromptError(
            f"template {text!r} has the token {tokenizer.convert_ids_to_tokens(wrong)!r} ({wrong}), which the model's "
            f"embedding of {rows} rows does not have; take it out"
        )


def check_tokenizer_files(folder: Path) -> None:
    """Raise LatePromptError for a local byte-pair vocabulary without its merges, or merges without their vocabulary."""
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
    """Whether a folder has any file that a tokenizer could be read from."""
    known = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json")
    return any((folder / name).exists() for name in known) or any(
        path.suffix in (".model", ".tiktoken", ".vocab") for path in folder.iterdir()
    )


def _names(tokenizer: Any) -> list[str]:
    return [str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values()] or ["tokenizer.json"]
