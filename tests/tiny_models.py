"""Tiny random models, one per family of the table: real Hugging Face code, no hub."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

LAYERS = 4
VOCABULARY = 120
WIDTH = 32

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_WINDOW = {"sliding_window": 4, "layer_types": _ALTERNATING}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": _BERT,
    "electra": {**_BERT, "embedding_size": 16},
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": WIDTH,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    },
    "deberta-v2": {
        **_BERT,
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": 64,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {
        **_BERT,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "albert": {**_BERT, "embedding_size": 16, "num_hidden_groups": 2},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_heads": 4,
        "intermediate_size": 64,
        "attention_types": [[["global", "local"], LAYERS // 2]],
        "window_size": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "gpt_neox": {k: v for k, v in _LLAMA.items() if k not in ("head_dim", "num_key_value_heads")},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "qwen2": {**_LLAMA, "use_sliding_window": True, **_WINDOW},
    "qwen3": {**_LLAMA, "use_sliding_window": True, **_WINDOW},
    "gemma": _LLAMA,
    "gemma2": {**_LLAMA, **_WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_LLAMA, **_WINDOW, "query_pre_attn_scalar": 8},
    "phi3": {**_LLAMA, "sliding_window": 4},
}
DECODERS = (
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "opt",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
)
ENCODERS = tuple(name for name in CONFIGS if name not in DECODERS)
EAGER_ONLY = ("mpnet", "deberta-v2", "gpt_neo", "gemma2")


def tiny_model(
    name: str, auto: str = "AutoModel", *, seed: int = 0, attention: str | None = None, **overrides: Any
) -> nn.Module:
    """A random model of family `name` in eval mode; `auto` names the transformers Auto class."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **{**CONFIGS[name], **overrides})
    kwargs = {"attn_implementation": attention} if attention else {}
    model = getattr(transformers, auto).from_config(config, **kwargs).eval()
    with torch.no_grad():  # larger weights than the 0.02 of a fresh model: every layer matters
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model


def tiny_batch(name: str, padding: str = "none", *, batch: int = 3, length: int = 11) -> dict[str, torch.Tensor]:
    """Token ids and mask with `padding` none, left or right (the first row is full)."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, 3, 6)[:batch]):
        if padding != "none" and missing:
            where = slice(0, missing) if padding == "left" else slice(length - missing, length)
            mask[row, where] = 0
            ids[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask}
