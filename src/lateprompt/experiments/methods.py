"""The methods that `lateprompt bench` compares: one table over the methods of `lateprompt.methods`.

A late prompt runs as `lateprompt train` runs it; any other method is PEFT's own, around the bare backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
from peft.tuners.lora import LoraModel

from lateprompt.methods import METHODS as KNOWN
from lateprompt.peft_method.tail_tuner import FULL, PROMPT_LEARNING, default_targets, make_config
from lateprompt.training.settings import ModelSettings

LATE_PROMPT_TOKENS = 5


@dataclass(frozen=True)
class Cost:
    """What a step computes, in layers: forward, backward through frozen weights, weight gradients, with so many extra
    positions; and queries times layers of a read-only prompt, forward and backward."""

    forward: float
    backward: float
    weights: float = 0.0
    extra_positions: int = 0
    queries: float = 0.0


@dataclass(frozen=True)
class ComparedMethod:
    """One row of the benchmarks: a method of `lateprompt.methods`, and how its steps are run.

    Args:
        title: what the tables call it.
        method: its name in `lateprompt.methods`.
        options: its options that are not the defaults there.
        stock: run as PEFT's documentation has it, with the whole vocabulary at every position.
        fast_dropout: PEFT's method with our dropout, which is cheaper on a CPU.
        states: train from stored states, with the trunk's weights freed.
        layers: of a read-only prompt with stored states: those of all layers that it reads, not of the prompt layer
            alone.
        keys: the text's keys and values are in memory, as they are from the second epoch on.
        compiled: compile the tail.
        dtype: its own float type, or None for that of the settings.
        by_default: measured unless methods are named.
    """

    title: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stock: bool = False
    fast_dropout: bool = False
    states: bool = False
    layers: bool = False
    keys: bool = False
    compiled: bool = False
    dtype: str | None = None
    by_default: bool = True

    @property
    def is_late_prompt(self) -> bool:
        return KNOWN[self.method].kind == "prompt"

    @property
    def peft_options(self) -> Mapping[str, Any]:
        """The method's name (`peft_type`) and options in PEFT."""
        known = KNOWN[self.method]
        tuner = known.fragment({**known.options, **self.options}, ModelSettings(model=""))
        return {"peft_type": tuner["peft_type"], **tuner}

    @property
    def leaves_the_model(self) -> bool:
        """Whether nothing is put into the model and none of its weights is trained, so that others can share it."""
        return not self.is_late_prompt and self.peft_options["peft_type"] in PROMPT_LEARNING

    @property
    def input_tokens(self) -> int:
        """How many virtual tokens it puts before the text, which take positions of the model."""
        return int(self.peft_options["num_virtual_tokens"]) if self.method == "prompt-tuning" else 0

    def peft_config(self, backbone: Any) -> peft.PeftConfig | None:
        """PEFT's configuration on a bare backbone; None for full tuning, which needs none."""
        options = dict(self.peft_options)
        if options["peft_type"] == FULL:
            return None
        if options["peft_type"] == "LORA":
            options.setdefault("target_modules", default_targets(LoraModel, backbone) or None)
        config: peft.PeftConfig = make_config({**options, "task_type": peft.TaskType.FEATURE_EXTRACTION})
        return config

    def cost(self, layers: int, prompt_layer: int) -> Cost:
        """The layers that a step computes, of so many, with the prompt layer's number below the prompt.

        A late prompt runs the tail, less what is read by nobody: its last layer both ways (but for one position, which
        is not counted), and of its first layer's backward pass the projections' 3 of 12 parts.
        """
        if not self.is_late_prompt:
            return Cost(layers, layers, layers if self.method == "full" else 0, self.input_tokens)
        tail = layers - prompt_layer - 1
        if KNOWN[self.method].read_only:
            text = 0 if self.layers else layers - prompt_layer if self.states else layers
            return Cost(text, 0, queries=LATE_PROMPT_TOKENS * (layers - prompt_layer))
        return Cost(tail if self.states else layers - 1, tail - 3 / 12, 0, LATE_PROMPT_TOKENS)


_TWENTY: Mapping[str, Any] = {"tokens": 20}
METHODS: dict[str, ComparedMethod] = {
    "prompt-tuning-20": ComparedMethod("prompt tuning 20 (PEFT)", "prompt-tuning", _TWENTY),
    "prompt-tuning-20-quick": ComparedMethod("the same, with our dropout", "prompt-tuning", _TWENTY, fast_dropout=True),
    "prompt-tuning-20-stock": ComparedMethod("the same, out of the box", "prompt-tuning", _TWENTY, stock=True),
    "prompt-tuning-100": ComparedMethod("prompt tuning 100 (PEFT)", "prompt-tuning", {"tokens": 100}),
    "prefix-tuning-20": ComparedMethod("prefix tuning 20 (PEFT)", "p-tuning-v2", _TWENTY),
    "lora": ComparedMethod("LoRA r=8 (PEFT)", "lora", {"r": 8, "lora_alpha": 8}),  # PEFT's own alpha
    "full-tuning": ComparedMethod("full tuning", "full"),
    "npg": ComparedMethod("LPT npg", "npg"),
    "npg-states": ComparedMethod("LPT npg", "npg", states=True),
    "mppg-states": ComparedMethod("LPT mppg", "mppg", states=True),
    "appg-states": ComparedMethod("LPT appg", "appg", states=True),
    "npg-states-bf16": ComparedMethod("LPT npg", "npg", states=True, dtype="bfloat16"),
    "read-npg": ComparedMethod("read-only npg", "read-npg"),
    "read-npg-prompt-layer": ComparedMethod(
        "read-only npg, prompt layer kept", "read-npg", states=True, by_default=False
    ),
    "read-npg-all-layers": ComparedMethod("read-only npg, all layers kept", "read-npg", states=True, layers=True),
    "read-npg-states": ComparedMethod("read-only npg", "read-npg", states=True, layers=True, keys=True),
    "read-npg-states-bf16": ComparedMethod(
        "read-only npg", "read-npg", states=True, layers=True, keys=True, dtype="bfloat16", by_default=False
    ),
    "npg-states-compiled": ComparedMethod(
        "LPT npg, compiled tail", "npg", states=True, compiled=True, by_default=False
    ),
}
"""The rows of `lateprompt bench steps`, by name."""
BASELINE = "prompt-tuning-20"
"""What speed and memory are compared with."""
BASELINES: dict[str, ComparedMethod] = {"prompt-tuning": METHODS[BASELINE], "lora": METHODS["lora"]}
"""What `lateprompt bench end-to-end` compares late prompts with, by its flag's names."""
