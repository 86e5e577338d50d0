"""Suggest the name that a user probably meant by an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OPTIONS = {
    "accumulate": "grad_accumulation",
    "base_model": "model",
    "bs": "batch_size",
    "classifier": "method",
    "clip_grad": "max_grad_norm",
    "dataset": "train",
    "dimension": "bottleneck_dim",
    "early_stopping": "patience",
    "early_stopping_patience": "patience",
    "eval_batch": "eval_batch_size",
    "eval_data": "dev",
    "eval_steps": "eval_every",
    "evaluation": "dev",
    "force": "overwrite",
    "generator": "method",
    "grad_clip": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "gradient_accumulation": "grad_accumulation",
    "gradient_accumulation_steps": "grad_accumulation",
    "input": "data",
    "label_word": "label_words",
    "layer": "prompt_layer",
    "learning_rate": "lr",
    "mask_words": "label_words",
    "max_epochs": "epochs",
    "max_len": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "n_epochs": "epochs",
    "n_tokens": "num_prompt_tokens",
    "num_beams": "beams",
    "num_epochs": "epochs",
    "num_processes": "workers",
    "num_steps": "max_steps",
    "num_train_epochs": "epochs",
    "num_virtual_tokens": "num_prompt_tokens",
    "num_workers": "workers",
    "option": "set",
    "options": "set",
    "out": "output",
    "out_dir": "output",
    "output_dir": "output",
    "output_file": "output",
    "per_device_eval_batch_size": "eval_batch_size",
    "per_device_train_batch_size": "batch_size",
    "pooling": "head_pooling",
    "prompt_length": "num_prompt_tokens",
    "random_seed": "seed",
    "random_state": "seed",
    "save": "output",
    "save_dir": "output",
    "silent": "quiet",
    "test_file": "test",
    "torch_dtype": "dtype",
    "train_file": "train",
    "training": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "validation_file": "dev",
    "warmup_proportion": "warmup_ratio",
    "wd": "weight_decay",
}
"""Names that other tools have for an option, and the name here."""


def closest(word: object, known: Iterable[object]) -> str | None:
    """Return the known name that is most like a word, or None; case, dashes and underscores do not matter."""
    plain = {_plain(name): str(name) for name in reversed([str(name) for name in known])}
    asked = _plain(word)
    if asked in plain:
        return plain[asked]
    begun = [name for name in plain if len(asked) > 2 and name.startswith(asked)]
    found = [min(begun, key=len)] if begun else difflib.get_close_matches(asked, plain, 1, 0.6)
    return plain[found[0]] if found else None


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """Return a suggestion to put after an unknown name in a message; empty if no known name is like it.

    Example:
        >>> did_you_mean("lorra", ["lora", "npg"])
        " (did you mean 'lora'?)"
    """
    found = closest(word, known)
    return "" if found is None else f" (did you mean {found!r}?)"


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """Return an error message for an unknown name, with a suggestion and all choices.

    Example:
        >>> unknown("loss", "lables", ["vocabulary", "labels"])
        "loss 'lables' is unknown (did you mean 'labels'?); choose one of vocabulary, labels"
    """
    names = list(known)
    return f"{what} {value!r} is unknown{did_you_mean(value, names)}; choose one of {', '.join(names)}"


def some_of(names: Iterable[str], most: int = 20) -> str:
    """Return names for a message, those beyond `most` as a count.

    Example:
        >>> some_of(["a", "b", "c"], most=2)
        'a, b, … (3 in all)'
    """
    listed = list(names)
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown}, … ({len(listed):,} in all)"


def closest_option(name: str, known: Iterable[str]) -> str | None:
    """Return the option that was probably meant by an unknown one, or None.

    Args:
        name: the option as given, without leading dashes.
        known: the options that there are, with underscores.
    """
    given, options = name.replace("-", "_").lower(), list(known)
    if OPTIONS.get(given) in options:
        return OPTIONS[given]
    return closest(given, options)


def _plain(name: object) -> str:
    return str(name).strip().lower().replace("_", "-")
