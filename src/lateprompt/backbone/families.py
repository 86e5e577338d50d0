"""What lateprompt has to know about an architecture: one line per family.

A Hugging Face backbone is cut after layer *p* by two shallow views (see `lateprompt.backbone.split`). The trunk must
not apply what comes after the last layer, the tail must not apply what comes before the first one. The table says where
the layer stack is and which modules each view bypasses, and how; nothing else in the library asks for a `model_type`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from lateprompt.utils.errors import LatePromptError

Bypass = Literal["none", "identity", "embeds", "zero"]
"""How a view replaces a module it must not apply.

`none`: the attribute becomes None (optional modules); `identity`: returns its first argument; `embeds`: returns the
`inputs_embeds` it is given (an embedding block); `zero`: returns a scalar zero (position embeddings that are added).
"""


def _pool(backbone: nn.Module, hidden: torch.Tensor) -> torch.Tensor | None:
    """The backbone's own pooler over `hidden` (batch, length, hidden), or None where it has none."""
    pooler = getattr(backbone, "pooler", None)
    return None if pooler is None else pooler(hidden)


def _pool_albert(backbone: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    return None if backbone.pooler is None else backbone.pooler_activation(backbone.pooler(hidden[:, 0]))


@dataclass(frozen=True)
class Family:
    """How one architecture is cut.

    Args:
        layers: dotted path of the layer stack inside the backbone (or inside `core`).
        trunk: modules the trunk bypasses (what follows the last layer), path to `Bypass`.
        tail: modules the tail bypasses (what precedes the first layer), path to `Bypass`. Paths a model does not have
            are skipped.
        core: the backbone's submodule that owns embeddings and layers, where heads call it directly (OPT's `decoder`).
        causal: True for decoders: the generator reads the last source token instead of the first one.
        window: how a sliding window reaches the layers, so that prompts can be kept visible: `single` (one mask for all
            layers), `by_type` (a dict of masks by layer type), `buffer` (a mask buffer in the attention module).
        dropout: the config's name for the hidden dropout rate (None: the architecture has none).
        layer_lists: per-layer lists of the config, cut with the layers.
        unroll: the stack holds shared groups (ALBERT): repeat them, one entry a layer.
        output_width: the config's name for the width of what the backbone gives back.
        positions_after_padding: position ids start after the padding id (RoBERTa): so many fewer tokens fit.
        pool: the backbone's pooler, applied by hand to the text positions.
        projections: a layer's modules that read its attention's input, by path in the layer: query, key and value, or
            one that makes all three. Paths a model does not have are skipped.
        adapters: a layer's output projections, of attention and of feed-forward, by path in the layer: what
            `lateprompt.peft_method.extra.AdapterConfig` puts its bottlenecks behind.
        reads: the layer takes a KV cache whose keys and values it attends to with whatever mask it is given: the last
            one can then be computed at read positions alone (`lateprompt.backbone.kernels.read_positions`).
        absorbs: keys and values are linear maps of the layer's own input, without rotation or norm: a few queries can
            do without them (`lateprompt.backbone.kernels.absorbed_attention`,
            `lateprompt.backbone.read_only.attention`).
        counts_in_mask: the backbone counts positions in the 2-D mask, so it cannot be handed a ready one.
        fixed_length: the backbone gives its output the shape of its input, so the last layer must keep the length.
        attention: how a read-only prompt's attention gets at the text: by transformers' attention interface
            (`interface`), by a module of ours in the attention's place, which its layers give back in a tuple (`own`),
            or not at all: its layers run on text and prompt together (`whole`).
        attention_scaling: what `own` attention multiplies its scores with; None: width^-1/2.
        relative: the scores' relative positions of a text, from the backbone and its hidden states (batch, length,
            hidden): biases (batch, heads, length, length) for `own`, distances for `whole` (…, length, length).

    Example:
        >>> from lateprompt import FAMILIES
        >>> FAMILIES["bert"].layers, FAMILIES["gpt2"].causal
        ('encoder.layer', True)
    """

    layers: str
    trunk: Mapping[str, Bypass] = field(default_factory=dict)
    tail: Mapping[str, Bypass] = field(default_factory=dict)
    core: str = ""
    causal: bool = False
    window: Literal["", "single", "by_type", "buffer"] = ""
    dropout: str | None = "hidden_dropout_prob"
    layer_lists: tuple[str, ...] = ("layer_types",)
    unroll: bool = False
    output_width: str = "hidden_size"
    positions_after_padding: bool = False
    pool: Callable[[nn.Module, torch.Tensor], torch.Tensor | None] = _pool
    projections: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    reads: bool = False
    absorbs: bool = False
    counts_in_mask: bool = False
    fixed_length: bool = False
    attention: Literal["interface", "own", "whole"] = "interface"
    attention_scaling: float | None = None
    relative: Callable[[Any, torch.Tensor], torch.Tensor | None] | None = None

    @property
    def attention_path(self) -> str:
        """The path in a layer of the module that holds its projections."""
        return self.projections[0].rpartition(".")[0]


def _under(path: str, names: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in names.split())


_BERT_QKV = _under("attention.self", "query key value")
_LLAMA_QKV = _under("self_attn", "q_proj k_proj v_proj")
_BERT_OUTPUTS = ("attention.output.dense", "output.dense")
_LLAMA_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def _bert(positions_after_padding: bool = False) -> Family:
    return Family(
        "encoder.layer",
        {"pooler": "none"},
        {"embeddings": "embeds"},
        positions_after_padding=positions_after_padding,
        projections=_BERT_QKV,
        adapters=_BERT_OUTPUTS,
        reads=True,
        absorbs=True,
    )


def _llama(
    window: Literal["", "single", "by_type"] = "",
    dropout: str | None = None,
    projections: tuple[str, ...] = _LLAMA_QKV,
) -> Family:
    return Family(
        "layers",
        {"norm": "identity"},
        {},
        causal=True,
        window=window,
        dropout=dropout,
        projections=projections,
        adapters=_LLAMA_OUTPUTS,
        reads=True,
    )


# fmt: off
FAMILIES: dict[str, Family] = {
    "bert": _bert(),
    "roberta": _bert(positions_after_padding=True),
    "xlm-roberta": _bert(positions_after_padding=True),
    "camembert": _bert(positions_after_padding=True),
    "mpnet": replace(_bert(positions_after_padding=True), projections=_under("attention.attn", "q k v"), adapters=("attention.attn.o", "output.dense"), reads=False, attention="own", relative=lambda backbone, hidden: backbone.encoder.compute_position_bias(hidden)),  # noqa: E501
    "electra": Family("encoder.layer", {}, {"embeddings": "embeds", "embeddings_project": "identity"}, projections=_BERT_QKV, adapters=_BERT_OUTPUTS, reads=True, absorbs=True),  # noqa: E501
    "distilbert": Family("transformer.layer", {}, {"embeddings": "embeds"}, dropout="dropout", projections=_under("attention", "q_lin k_lin v_lin"), adapters=("attention.out_lin", "ffn.lin2"), absorbs=True),  # noqa: E501
    "deberta-v2": Family("encoder.layer", {}, {"embeddings": "embeds", "encoder.conv": "none"}, projections=_under("attention.self", "query_proj key_proj value_proj"), adapters=_BERT_OUTPUTS, attention="whole", relative=lambda backbone, hidden: backbone.encoder.get_rel_pos(hidden)),  # noqa: E501
    "modernbert": Family("layers", {"final_norm": "identity"}, {"embeddings": "embeds"}, window="by_type", dropout="mlp_dropout", projections=("attn.Wqkv",), adapters=("attn.Wo", "mlp.Wo")),  # noqa: E501
    "albert": Family("encoder.albert_layer_groups", {"pooler": "none"}, {"embeddings": "embeds", "encoder.embedding_hidden_mapping_in": "identity"}, unroll=True, pool=_pool_albert, projections=_under("albert_layers.0.attention", "query key value"), adapters=_under("albert_layers.0", "attention.dense ffn_output"), absorbs=True),  # noqa: E501
    "gpt2": Family("h", {"ln_f": "identity"}, {"wpe": "zero", "drop": "identity"}, causal=True, dropout="resid_pdrop", projections=("attn.c_attn",), adapters=("attn.c_proj", "mlp.c_proj"), reads=True, fixed_length=True),  # noqa: E501
    "gpt_neo": Family("h", {"ln_f": "identity"}, {"wpe": "zero", "drop": "identity"}, causal=True, window="buffer", dropout="resid_dropout", layer_lists=("attention_layers",), projections=_under("attn.attention", "q_proj k_proj v_proj"), adapters=("attn.attention.out_proj", "mlp.c_proj"), attention="own", attention_scaling=1.0),  # noqa: E501
    "gpt_neox": Family("layers", {"final_layer_norm": "identity"}, {"emb_dropout": "identity"}, causal=True, dropout="hidden_dropout", projections=("attention.query_key_value",), adapters=("attention.dense", "mlp.dense_4h_to_h"), reads=True),  # noqa: E501
    "opt": Family("layers", {"final_layer_norm": "none", "project_out": "none"}, {"embed_positions": "zero", "project_in": "none"}, core="decoder", causal=True, dropout="dropout", output_width="word_embed_proj_dim", projections=_LLAMA_QKV, adapters=("self_attn.out_proj", "fc2"), reads=True, counts_in_mask=True),  # noqa: E501
    "llama": _llama(),
    "mistral": _llama("single"),
    "qwen2": _llama("by_type"),
    "qwen3": _llama("by_type"),
    "gemma": _llama(),
    "gemma2": _llama("by_type"),
    "gemma3_text": _llama("by_type"),
    "phi3": _llama("single", dropout="resid_pdrop", projections=("self_attn.qkv_proj",)),
}
# fmt: on


def register_family(model_type: str, family: Family) -> None:
    """Teach lateprompt another architecture, by its config's `model_type`.

    Example:
        >>> from lateprompt import Family, register_family
        >>> register_family("my_bert", Family("encoder.layer", {"pooler": "none"}, {"embeddings": "embeds"}))
    """
    if not model_type or not isinstance(model_type, str):
        raise LatePromptError(f"model_type {model_type!r} is no name; give the config's model_type, e.g. 'my_bert'")
    FAMILIES[model_type] = family


def family_of(backbone: nn.Module) -> Family:
    """The family of a Hugging Face backbone, by its config.

    Raises:
        LatePromptError: the architecture is not in the table; the message names the table and what to do.
    """
    config = getattr(backbone, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise LatePromptError(
            f"architecture {model_type!r} ({type(backbone).__name__}) is not in lateprompt.FAMILIES "
            f"({', '.join(sorted(FAMILIES))}); add it with lateprompt.register_family(model_type, Family(...))"
        )
    return FAMILIES[model_type]


def core_of(backbone: nn.Module) -> nn.Module:
    """The module that owns embeddings and layers: the backbone of a model with a head, or its `core` submodule."""
    prefix = getattr(backbone, "base_model_prefix", "")
    inner = getattr(backbone, prefix, backbone) if prefix else backbone
    backbone = inner if isinstance(inner, nn.Module) else backbone
    family = family_of(backbone)
    core = getattr(backbone, family.core, backbone) if family.core else backbone
    assert isinstance(core, nn.Module)
    return core


def num_layers_of(core: nn.Module) -> int:
    """How many layers a backbone has (shared ones counted as often as they run)."""
    family = family_of(core)
    if family.unroll:
        return int(core.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    return len(core.get_submodule(family.layers))  # type: ignore[arg-type]


def hidden_dropout_of(config: Any, family: Family) -> float:
    """The backbone's hidden dropout rate, 0.0 where the architecture has none."""
    return float(getattr(config, family.dropout, 0.0) or 0.0) if family.dropout else 0.0
