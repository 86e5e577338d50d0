"""Load a pretrained model and its tokenizer for a readout, from a folder, a hub id or an installed package's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from lateprompt.backbone.families import FAMILIES
from lateprompt.data import READOUTS
from lateprompt.data.vocabulary import check_tokenizer_files, check_vocabulary, has_tokenizer_files
from lateprompt.peft_method.wrapping import wrap as wrap  # its home in earlier releases was here
from lateprompt.predictors.weights import check_model_folder, check_sizes, check_weight_files, has_lm_head
from lateprompt.utils.aliases import todays_value
from lateprompt.utils.errors import LatePromptError, first_line, option
from lateprompt.utils.randomness import in_turn, seeded
from lateprompt.utils.suggestions import unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO: dict[str, Any] = {
    "masked_lm": AutoModelForMaskedLM,
    "causal_lm": AutoModelForCausalLM,
    "head": AutoModel,
    "generate": AutoModelForCausalLM,
}
_WITH_HEAD = {"masked_lm": ("ForMaskedLM", "ForPreTraining"), "causal_lm": ("ForCausalLM", "LMHeadModel")}


@in_turn
def load_config(model: str) -> Any:
    """The configuration of `model`, whose architecture is in the table of families.

    Raises:
        LatePromptError: no such model, or an unknown architecture.
    """
    folder = Path(model)
    if folder.is_dir():
        check_model_folder(folder)
    elif folder.exists():
        raise LatePromptError(f"model {model!r} is a file; give the folder of a model, or a hub id")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers' own code on the user's file
        reason = (
            "its config.json is not usable"
            if folder.is_dir()
            else "no such folder, and the hub has none (or is out of reach)"
        )
        raise LatePromptError(f"model {model!r} cannot be loaded: {reason}; {first_line(error)}") from None
    if config.model_type not in FAMILIES:
        raise LatePromptError(
            f"model {model!r} has architecture {config.model_type!r}, which is not in lateprompt.FAMILIES "
            f"({', '.join(sorted(FAMILIES))}); add it with lateprompt.register_family"
        )
    check_sizes(config, model)
    return config


def resolve_readout(config: Any, readout: str, model: str) -> str:
    """`auto` becomes what the checkpoint can do: label words if its files have an LM head, else a head.

    Raises:
        LatePromptError: an unknown readout, or one that the architecture cannot serve.
    """
    readout = todays_value("readout", readout)
    if readout == "generate":
        raise LatePromptError(
            "readout 'generate' writes texts, but the task has labels; use auto, masked_lm, causal_lm or head"
        )
    if readout not in (*READOUTS, "auto"):
        raise LatePromptError(unknown("readout", readout, ("auto", *READOUTS)))
    causal = FAMILIES[config.model_type].causal
    if readout == "auto":
        words = "causal_lm" if causal else "masked_lm"
        return words if has_lm_head(model, config, AUTO[words], _WITH_HEAD[words]) else "head"
    if readout == "masked_lm" and causal:
        raise LatePromptError(
            f"model {model!r} ({config.model_type}) is a decoder without a mask; "
            f"use {option('readout', 'causal_lm', 'head')}"
        )
    if readout == "causal_lm" and not causal:
        raise LatePromptError(
            f"model {model!r} ({config.model_type}) is an encoder; use {option('readout', 'masked_lm', 'head')}"
        )
    return readout


def causal_readout(config: Any, readout: str, model: str) -> str:
    """`generate`, the readout of text-to-text tasks.

    Raises:
        LatePromptError: another readout was asked for, or the architecture cannot write.
    """
    if todays_value("readout", readout) not in ("auto", "generate"):
        raise LatePromptError(
            f"readout {readout!r} reads labels, but the task's answers are texts; use {option('readout', 'auto')}"
        )
    if not FAMILIES[config.model_type].causal:
        raise LatePromptError(
            f"model {model!r} ({config.model_type}) is an encoder and writes no text; give a causal model, or, if the "
            "targets are classes, --label-column target (in Python: columns={'label': 'target'})"
        )
    return "generate"


@in_turn
def load_base(model: str, readout: str, *, dtype: str = "float32", attention: str | None = None) -> Any:
    """The pretrained model for a readout (`masked_lm`, `causal_lm`, `head`, `generate`), in eval mode.

    Raises:
        LatePromptError: the checkpoint cannot be loaded, lacks weights, or has no LM head where one is needed.
    """
    if dtype not in DTYPES:
        raise LatePromptError(unknown("dtype", dtype, DTYPES))
    readout = todays_value("readout", readout)
    config = load_config(model)
    if Path(model).is_dir():
        check_weight_files(Path(model))
    previous = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # what is missing becomes one error of ours below
    hf_logging.disable_progress_bar()
    try:
        with seeded(0):  # transformers fills in what a checkpoint lacks
            loaded, info = AUTO[readout].from_pretrained(
                model,
                config=config,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers' own code on the user's files
        raise LatePromptError(f"model {model!r} cannot be loaded: {first_line(error)}") from None
    finally:
        hf_logging.set_verbosity(previous)
    core = loaded.base_model
    missing = sorted(info["missing_keys"])
    prefix = f"{loaded.base_model_prefix}."
    in_head = [name for name in missing if not name.startswith(prefix)]
    if readout != "head" and in_head:
        raise LatePromptError(
            f"model {model!r} has no LM head ({in_head[0]!r} is missing), so no label words; "
            f"use {option('readout', 'head')}"
        )
    missing = [name for name in missing if "pooler" not in name]
    if missing:
        raise LatePromptError(
            f"model {model!r} lacks weights ({len(missing)}, e.g. {missing[0]!r}); give a whole checkpoint"
        )
    _check_finite(loaded, model)
    if readout == "head" and getattr(core, "pooler", None) is not None:
        core.pooler = None  # our head reads the states themselves: a pooler would be computed for nobody
    return loaded.eval()


def _check_finite(loaded: Any, model: str) -> None:
    """Raise LatePromptError for weights that are not finite: all that is computed from them would be NaN."""
    for name, parameter in loaded.named_parameters():
        if parameter.is_floating_point() and parameter.device.type != "meta":
            quick = bool(torch.isfinite(parameter.detach().sum()))  # may overflow where each value is finite
            if not quick and not bool(torch.isfinite(parameter.detach()).all()):
                raise LatePromptError(
                    f"model {model!r} has weights that are not finite ({name!r}); restore the file from where the "
                    "model came from"
                )


@in_turn
def load_tokenizer(model: str) -> Any:
    """The tokenizer of `model`, with a padding token, held against the model's embedding.

    Raises:
        LatePromptError: there is none, or it is not this model's.
    """
    config = load_config(model)
    folder = Path(model)
    check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers' own code on the user's files
        if folder.is_dir() and not has_tokenizer_files(folder):
            raise LatePromptError(
                f"model {model!r} has no tokenizer files (tokenizer.json, or its vocabulary); copy them from where the "
                "model came from, or save the tokenizer there"
            ) from None
        raise LatePromptError(f"the tokenizer of {model!r} cannot be loaded: {first_line(error)}") from None
    check_vocabulary(tokenizer, config, model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def max_positions(config: Any) -> int | None:
    """How many tokens a text may have, where the architecture's position embeddings set a limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    if FAMILIES[config.model_type].positions_after_padding:
        return int(limit) - (config.pad_token_id or 0) - 1
    return int(limit)
