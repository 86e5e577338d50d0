"""What a checkpoint's files say before a weight is loaded: whether they are whole, and whether an LM head is there."""

from __future__ import annotations

import copy
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, tensor_names
from lateprompt.utils.inputs import kind_of

_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 100_000,
    "hidden_size": 10_000_000,
    "intermediate_size": 100_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 100_000_000,
    "type_vocab_size": 1_000_000,
}
"""Far above any model: a configuration with more is broken, and building it would take all memory."""


def check_model_folder(folder: Path) -> None:
    """Raise LatePromptError for a local model whose configuration cannot be read, or with pipes among its files."""
    if not (folder / "config.json").exists():
        raise LatePromptError(f"model {str(folder)!r} cannot be loaded: it is a folder without a usable config.json")
    for path in sorted(folder.iterdir()):
        kind = kind_of(path)
        if kind not in (None, "a folder"):
            raise LatePromptError(f"model {str(folder)!r} cannot be loaded: {path.name!r} is {kind}; remove it")
    read_json(folder / "config.json", "model configuration")


def check_sizes(config: Any, model: str) -> None:
    """Raise LatePromptError for sizes in a model's configuration that no model has."""
    for name, largest in _LARGEST.items():
        value = getattr(config, name, None)
        if value is None:
            continue
        least = 0 if name == "type_vocab_size" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
            raise LatePromptError(
                f"model {model!r} has {name} {str(value)[:40]!r} in its config.json, which is no size; restore the "
                "file from where the model came from"
            )


def check_weight_files(folder: Path) -> None:
    """Raise LatePromptError for a local model's weights that are missing, pickled, pointers, truncated or elsewhere."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.exists():
        tensor_names(single, "weight file")
    elif index.exists():
        for name in sorted(set(_weight_map(index).values())):
            tensor_names(folder / name, "weight file")
    elif any((folder / name).exists() for name in _PICKLED):
        raise LatePromptError(
            f"model {str(folder)!r} has pickled weights only ({_PICKLED[0]}), which are never loaded, as reading them "
            "can run any code; if you trust them, convert them with transformers where they came from: "
            "model.save_pretrained(folder) writes model.safetensors"
        )
    else:
        raise LatePromptError(
            f"model {str(folder)!r} cannot be loaded: it has no weights; expected {SAFE_WEIGHTS_NAME}"
        )


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, by the index of a checkpoint; its shards lie in its own folder."""
    entries = read_json(index, "weight index").get("weight_map")
    if not isinstance(entries, dict) or not entries or not all(isinstance(name, str) for name in entries.values()):
        raise LatePromptError(f"weight index {str(index)!r} is broken: it has no weight_map from tensors to files")
    for name in entries.values():
        if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise LatePromptError(f"weight index {str(index)!r} is broken: {name[:80]!r} is no file beside it")
    return entries


def weight_names(model: str) -> set[str] | None:
    """Names of a checkpoint's tensors, or None where they cannot be told without loading them.

    Raises:
        LatePromptError: files that are there and broken.
    """
    folder = Path(model)
    if folder.is_dir():
        single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    else:
        try:
            found = [
                cached_file(model, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
                for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
            ]
        except (OSError, ValueError):
            found = [None, None]
        if found == [None, None]:
            return _names_on_hub(model)
        single, index = (Path(name or "/nonexistent") for name in found)
    if single.exists():
        names = tensor_names(single, "weight file")
    elif index.exists():
        names = set(_weight_map(index))
    else:
        return None
    return names


def _names_on_hub(model: str) -> set[str] | None:
    """Names by the headers of a hub's files, without the files."""
    try:
        return set(huggingface_hub.get_safetensors_metadata(model).weight_map)
    except Exception:  # no network, no such model, no safetensors: loading it will say which
        return None


def has_lm_head(model: str, config: Any, auto: Any, endings: tuple[str, ...]) -> bool:
    """Whether a checkpoint has the LM head of its architecture.

    A head with weights of its own is there if they all are. One that is wholly tied to the word embeddings leaves no
    trace in the files: then, and where the files cannot be told, the name of the saved architecture decides.

    Args:
        model: folder or hub id.
        config: its configuration.
        auto: transformers' auto class of the model with the head.
        endings: ends of names of architectures that have the head.
    """
    named = str((getattr(config, "architectures", None) or [""])[0]).endswith(endings)
    names = weight_names(model)
    if names is None:
        return named
    try:
        with torch.device("meta"):
            whole = auto.from_config(copy.deepcopy(config))
        names = _as_read(names, whole)
    except Exception:  # transformers' own code on the user's configuration: loading the model says what is wrong
        return named
    tied = set(getattr(whole, "all_tied_weights_keys", None) or {})
    own = {key for key in whole.state_dict() if not key.startswith(f"{whole.base_model_prefix}.")} - tied
    return own <= names if own else named


def _as_read(names: set[str], whole: Any) -> set[str]:
    """Names of a file as transformers reads them: GPT-NeoX's `embed_out` is an `lm_head`, TensorFlow's gamma a weight.

    Raises:
        ImportError: another version of transformers, which keeps its table elsewhere.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    renamings = [part for part in get_model_conversion_mapping(whole) if isinstance(part, WeightRenaming)]
    return {apply_renamings(name, renamings) for name in names}
