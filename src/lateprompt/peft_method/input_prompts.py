"""Adapters that are no late prompt, in the place of one: prompts at the input, and prefixes of keys and values.

They take another way through the backbone than trunk → prompt → tail, and give what a late prompt gives: hidden
states of the text positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import TaskType
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.call_context import LateCall, first, replace_hidden, states_at
from lateprompt.peft_method.extra.phm import PHMLinear
from lateprompt.peft_method.tail_tuner import make_config
from lateprompt.peft_method.wrapping import wrap
from lateprompt.prompts import read_state
from lateprompt.utils.errors import LatePromptError, first_line

if TYPE_CHECKING:
    from lateprompt.backbone.late_backbone import LateBackbone

_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")


class InputPrompt:
    """Base: a way through the backbone. `module` holds what is trained."""

    module: nn.Module
    late = False
    """Whether it may start from cached trunk states."""

    def __call__(self, layer: LateBackbone, call: LateCall) -> Any:
        """The backbone's output for the text positions, or for those that the call reads.

        What makes a prompt of the text reads no more of it than the call's `source_mask` (batch, length) shows.

        Raises:
            LatePromptError: a KV cache, or trunk states where there is no trunk.
        """
        if call.arguments.get("use_cache") or call.arguments.get("past_key_values") is not None:
            raise LatePromptError(
                "a prompt at the input, or a prefix, keeps no KV cache here; use use_cache=False, or PEFT's own model"
            )
        if call.trunk_states is not None and not self.late:
            raise LatePromptError(
                "trunk_states were given, but the active adapter changes what lies below the prompt layer"
            )
        output = self.run(layer, call)
        # A prefix is a cache; handed out, it would come back at the next step of a generation.
        output = type(output)(**{key: value for key, value in output.items() if key != "past_key_values"})
        hidden = output.last_hidden_state[:, -call.text.shape[1] :]
        return replace_hidden(output, hidden if call.read is None else states_at(hidden, call.read), None)

    def run(self, layer: LateBackbone, call: LateCall) -> Any:
        """The backbone's output for the prompt, if it has positions of its own, and the text."""
        raise TypeError(f"{type(self).__name__} must say which way it takes: override run")


Detour = InputPrompt
"""The name of earlier releases."""


class PromptLearning(InputPrompt):
    """PEFT's prompt tuning, P-tuning or prefix tuning (P-tuning v2), by PEFT's own code.

    Around the whole backbone, or (a prefix, `late`) around the tail alone, which then starts from trunk states.

    Args:
        layer: the late backbone.
        name: the adapter's name.
        tuner: PEFT's options, with `peft_type`.
        prompt_layer: p.
        late: around the tail.

    Raises:
        LatePromptError: options that cannot be.
    """

    def __init__(
        self, layer: LateBackbone, name: str, tuner: Mapping[str, Any], prompt_layer: int, *, late: bool
    ) -> None:
        if late and tuner["peft_type"] != "PREFIX_TUNING":
            raise LatePromptError(f"tuner {tuner['peft_type']!r} has virtual tokens at the input: it cannot be late")
        self.late = late
        self.prompt_layer = prompt_layer
        config = make_config({**tuner, "task_type": TaskType.FEATURE_EXTRACTION})
        trained = [p for p in layer.parameters() if p.requires_grad]
        around: Any = layer.split_at(prompt_layer).tail if late else layer.base_layer
        try:
            self.peft_model: Any = wrap(around, config, name)
        except Exception as error:  # PEFT's own code on the user's options
            raise LatePromptError(f"PEFT cannot put tuner {dict(tuner)!r} here: {first_line(error)}") from None
        for parameter in trained:  # PEFT freezes everything
            parameter.requires_grad_(True)
        self.tokens = int(config.num_virtual_tokens)
        self.prefix = config.peft_type == "PREFIX_TUNING"
        self.module = self.peft_model.prompt_encoder[name]

    def run(self, layer: LateBackbone, call: LateCall) -> Any:
        if self.late:
            return self._run_tail(layer, call)
        self.peft_model.base_model = layer.views.enter_whole(layer.training)
        return self.peft_model(**self._inputs(call), **self._without_cache(layer), return_dict=True)

    def _run_tail(self, layer: LateBackbone, call: LateCall) -> Any:
        """From the trunk's states, kept or computed, through the tail with a prefix in each layer."""
        states = call.trunk_states
        if states is None:
            states = layer.run_trunk(self.prompt_layer, call.arguments)
        self.peft_model.base_model = layer.late_mode(self.prompt_layer).tail
        mask = call.arguments.get("attention_mask")
        return self.peft_model(inputs_embeds=states, attention_mask=mask, return_dict=True)

    def _inputs(self, call: LateCall) -> dict[str, Any]:
        """What PEFT takes of the call: no token types (it would warn), and its prompt tuning no positions."""
        left_out = ("token_type_ids",) if self.prefix else ("token_type_ids", "position_ids")
        return {key: value for key, value in _inputs(call).items() if key not in left_out}

    def _without_cache(self, layer: LateBackbone) -> dict[str, Any]:
        return {"use_cache": False} if layer.family.causal and not self.prefix else {}  # a prefix is itself a cache


class SentenceGenerator(nn.Module):
    """S-IDPG's generator: a sentence's encoding to k vectors, W_up ReLU(W_down e), both parameterised hypercomplex.

    Parameters: 2 n³ + d m / n + m + m k e / n + k e, for an encoding of width d and embeddings of width e.

    Args:
        width: d.
        embedding_width: e.
        num_prompt_tokens: k.
        bottleneck_dim: m.
        phm_n: n; it divides d, m and k e.
        dropout: dropout rate on the prompt while training.
    """

    def __init__(
        self, width: int, embedding_width: int, num_prompt_tokens: int, bottleneck_dim: int, phm_n: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_prompt_tokens = num_prompt_tokens
        self.down = PHMLinear(width, bottleneck_dim, phm_n)
        self.up = PHMLinear(bottleneck_dim, num_prompt_tokens * embedding_width, phm_n)
        self.dropout = nn.Dropout(dropout)

    def forward(self, encodings: torch.Tensor) -> torch.Tensor:
        """(batch, d) to (batch, k, e)."""
        prompt = self.up(torch.relu(self.down(encodings)))
        return self.dropout(prompt.view(len(encodings), self.num_prompt_tokens, -1))  # type: ignore[no-any-return]


class SentencePrompt(InputPrompt):
    """S-IDPG (Wu et al., NAACL 2022): a prompt at the input, made from a frozen encoding of the sentence.

    The encoding is the frozen backbone's own last hidden state, at the first token of an encoder or the last one of a
    decoder. It costs a forward pass at each step.

    Args:
        generator: from encodings (batch, hidden) to prompts (batch, k, embedding width).
    """

    def __init__(self, generator: SentenceGenerator) -> None:
        self.module = generator

    def run(self, layer: LateBackbone, call: LateCall) -> Any:
        cache = {"use_cache": False} if layer.family.causal else {}
        inputs = _inputs(call)
        encodings = self._encode(layer, call, {**inputs, **cache})
        prompt = self.module(encodings.to(next(self.module.parameters()).dtype))
        backbone = layer.views.enter_whole(layer.training)
        return backbone(**_with_prompt(prompt, inputs, layer.base_layer), **cache, return_dict=True)

    def _encode(self, layer: LateBackbone, call: LateCall, inputs: dict[str, Any]) -> torch.Tensor:
        """The frozen backbone's encodings (batch, hidden)."""
        with torch.no_grad():
            hidden = layer.views.enter_whole(False)(**inputs, return_dict=True).last_hidden_state
        source = first(call.source_mask, call.arguments.get("attention_mask"))
        return read_state(hidden, source, last=layer.family.causal)


def _inputs(call: LateCall) -> dict[str, Any]:
    return {key: value for key in _INPUTS if (value := call.arguments.get(key)) is not None}


def _with_prompt(prompt: torch.Tensor, inputs: dict[str, Any], backbone: Any) -> dict[str, Any]:
    """A backbone's inputs with a prompt (batch, k, embedding width) in front; positions are counted anew."""
    embeddings = inputs.get("inputs_embeds")
    if embeddings is None:
        embeddings = backbone.get_input_embeddings()(inputs["input_ids"])
    longer = {"inputs_embeds": torch.cat([prompt.to(embeddings.dtype), embeddings], 1)}
    for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
        if name in inputs:
            longer[name] = F.pad(inputs[name], (prompt.shape[1], 0), value=value)
    return longer
