"""What the command line reads as YAML: `--config FILE` and label words."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.inputs import read_text
from lateprompt.utils.yaml_files import LONGEST, checked_yaml, parse_yaml

MOST_BRACKETS = 200
CLASS_WEIGHTS = "give balanced or a mapping, label to weight, as in '{bad: 2.5, good: 1}'"
LABEL_WORDS = "label words are a mapping, label to word, as in '{bad: terrible, good: great}'"


def config_text(path: str | os.PathLike[str], known: Collection[str]) -> str:
    """The text of a `--config` file: settings by today's names, label words quoted, so that no label becomes a boolean.

    Args:
        path: the file.
        known: the settings that the command takes.

    Raises:
        LatePromptError: no regular file, not UTF-8, no YAML, or one beyond all measure.
    """
    text = read_text(Path(path), "config file", limit=LONGEST)
    return checked_yaml(text, f"config file {str(path)!r}", as_text=("label_words", "class_weight"), known=known)


def label_words(value: Any) -> dict[str, str]:
    """The label words of the command line or of a config file: text as it is written.

    Raises:
        LatePromptError: no mapping, or words that are no texts.
    """
    words = parse_yaml(value, "label_words", all_text=True) if isinstance(value, str) else value
    if isinstance(words, Mapping) and all(isinstance(word, str) for word in words.values()):
        return {str(label): word for label, word in words.items()}
    raise LatePromptError(f"label_words {str(value)[:60]!r}: {LABEL_WORDS}")


def class_weight(value: Any) -> str | dict[str, float]:
    """The class weights of the command line or of a config file: `balanced`, or label to weight.

    Raises:
        LatePromptError: anything else.
    """
    given = parse_yaml(value, "class_weight", all_text=True) if isinstance(value, str) else value
    if isinstance(given, str):
        return given  # the recipe's own check knows which texts there are
    wrong = given
    if isinstance(given, Mapping):
        found: dict[str, float] = {}
        for label, weight in given.items():
            try:
                found[str(label)] = float(weight)
            except (TypeError, ValueError):
                wrong = {label: weight}
                break
        else:
            return found
    raise LatePromptError(f"class_weight {str(wrong)[:60]!r} is no value for it; {CLASS_WEIGHTS}")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise LatePromptError for an argument that is nested without measure, on which YAML parsers crash."""
    for argument in arguments:
        if argument.count("[") > MOST_BRACKETS or argument.count("{") > MOST_BRACKETS:
            raise LatePromptError(
                f"argument {argument[:60]!r} has more than {MOST_BRACKETS} brackets; give a plain value"
            )
