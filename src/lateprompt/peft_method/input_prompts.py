"""Adapters that are no late prompt, in the place of one: prompts at the input, and prefixes of keys and values.

They take another way through the backbone than trunk → generator → tail, and give what a late prompt gives: hidden
states of the text positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import TaskType
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.call_context import first, replace_hidden, states_at
from lateprompt.peft_method.extra.phm import PHMLinear
from lateprompt.peft_method.tail_tuner import make_config
from lateprompt.peft_method.wrapping import wrap
from lateprompt.prompts import read_state
from lateprompt.utils.errors import LatePromptError, first_line

if TYPE_CHECKING:
    from lateprompt.backbone.late_backbone import LateBackbone

_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")


class Detour:
    """Base: a way through the backbone. `module` holds what is trained."""

    module: nn.Module
    late = False
    """Whether it may start from kept trunk states."""

    def __call__(
        self,
        layer: LateBackbone,
        call: dict[str, Any],
        trunk_states: torch.Tensor | None,
        read: torch.Tensor | None,
        source_mask: torch.Tensor | None,
    ) -> Any:
        """The backbone's output for the text positions, or for the positions `read` (batch, reads) of them.

        What makes a prompt of the text reads no more of it than `source_mask` (batch, length) shows.

        Raises:
            LatePromptError: a KV cache, or trunk states where there is no trunk.
        """
        if call.get("use_cache") or call.get("past_key_values") is not None:
            raise LatePromptError(
                "a prompt at the input, or a prefix, keeps no KV cache here; use use_cache=False, or PEFT's own model"
            )
        if trunk_states is not None and not self.late:
            raise LatePromptError(
                "trunk_states were given, but the active adapter changes what lies below the prompt layer"
            )
        if layer.family.causal:
            call["use_cache"] = False
        text = first(call.get("input_ids"), call.get("inputs_embeds"), trunk_states)
        with layer.quick_dropout():
            output = self.run(layer, call, trunk_states, source_mask)
        # A prefix is a cache; handed out, it would come back at the next step of a generation.
        output = type(output)(**{key: value for key, value in output.items() if key != "past_key_values"})
        hidden = output.last_hidden_state[:, -text.shape[1] :]
        return replace_hidden(output, hidden if read is None else states_at(hidden, read), None)

    def run(
        self,
        layer: LateBackbone,
        call: dict[str, Any],
        trunk_states: torch.Tensor | None,
        source_mask: torch.Tensor | None,
    ) -> Any:
        raise TypeError(f"{type(self).__name__} must say which way it takes: override run")


class PromptLearning(Detour):
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
            self.view: Any = wrap(around, config, name)
        except Exception as error:  # PEFT's own code on the user's options
            raise LatePromptError(f"PEFT cannot put tuner {dict(tuner)!r} here: {first_line(error)}") from None
        for parameter in trained:  # PEFT freezes everything
            parameter.requires_grad_(True)
        self.tokens = int(config.num_virtual_tokens)
        self.prefix = config.peft_type == "PREFIX_TUNING"
        self.module = self.view.prompt_encoder[name]

    def run(
        self,
        layer: LateBackbone,
        call: dict[str, Any],
        trunk_states: torch.Tensor | None,
        source_mask: torch.Tensor | None,
    ) -> Any:
        if self.late:
            split = layer.late_mode(self.prompt_layer)
            if trunk_states is None:
                trunk_states = layer.run_trunk(self.prompt_layer, call)
            self.view.base_model = split.tail
            given = {"inputs_embeds": trunk_states, "attention_mask": call.get("attention_mask")}
        else:
            layer.whole_mode()
            self.view.base_model = layer.base_layer
            # PEFT takes no token types here (it would warn), and its prompt tuning no positions.
            left_out = ("token_type_ids",) if self.prefix else ("token_type_ids", "position_ids")
            given = {key: call[key] for key in _INPUTS if call.get(key) is not None and key not in left_out}
            if "use_cache" in call and not self.prefix:  # a prefix is handed over as a cache
                given["use_cache"] = False
        return self.view(**given, return_dict=True)


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


class SentencePrompt(Detour):
    """S-IDPG (Wu et al., NAACL 2022): a prompt at the input, made from a frozen encoding of the sentence.

    The encoding is the frozen backbone's own last hidden state, at the first token of an encoder or the last one of a
    decoder. It costs a forward pass at each step.

    Args:
        generator: from encodings (batch, hidden) to prompts (batch, k, embedding width).
    """

    def __init__(self, generator: SentenceGenerator) -> None:
        self.module = generator

    def run(
        self,
        layer: LateBackbone,
        call: dict[str, Any],
        trunk_states: torch.Tensor | None,
        source_mask: torch.Tensor | None,
    ) -> Any:
        base: Any = layer.base_layer
        mask = call.get("attention_mask")
        given = {key: call[key] for key in (*_INPUTS, "use_cache") if call.get(key) is not None}
        with torch.no_grad():
            layer.whole_mode(training=False)
            hidden = base(**given, return_dict=True).last_hidden_state
        layer.whole_mode()
        dtype = next(self.module.parameters()).dtype
        source = first(source_mask, mask)
        prompt = self.module(read_state(hidden, source, last=layer.family.causal).to(dtype))
        embeds = given.pop("inputs_embeds", None)
        ids = given.pop("input_ids", None)
        embeds = base.get_input_embeddings()(ids) if embeds is None else embeds
        k = prompt.shape[1]
        given["inputs_embeds"] = torch.cat([prompt.to(embeds.dtype), embeds], 1)
        given.pop("position_ids", None)
        if mask is not None:
            given["attention_mask"] = F.pad(mask, (k, 0), value=1)
        if "token_type_ids" in given:
            given["token_type_ids"] = F.pad(given["token_type_ids"], (k, 0))
        return base(**given, return_dict=True)
