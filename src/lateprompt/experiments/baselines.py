"""PEFT's prompt tuning and LoRA in the place of a late prompt: the same readout, trained by the same loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from lateprompt.backbone.call_context import states_at
from lateprompt.backbone.families import Family, hidden_dropout_of
from lateprompt.peft_method.wrapping import wrap
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.loading import load_base
from lateprompt.predictors.saved_run import ADAPTER
from lateprompt.readouts import HeadReadout, Loss, Readout, WordReadout
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import seeded

PROMPT_TOKENS = 20
LORA_RANK = 8
PROMPT_TUNING = "prompt-tuning"


def prompt_tuning(tokens: int) -> peft.PeftConfig:
    """PEFT's prompt tuning (Lester et al. 2021) of a bare backbone."""
    return peft.PromptTuningConfig(task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=tokens)


RIVALS: dict[str, tuple[str, Callable[[], peft.PeftConfig]]] = {
    PROMPT_TUNING: (
        f"prompt tuning {PROMPT_TOKENS} (PEFT)",
        lambda: prompt_tuning(PROMPT_TOKENS),
    ),
    "lora": (
        f"LoRA r={LORA_RANK} (PEFT)",
        lambda: peft.LoraConfig(task_type=peft.TaskType.FEATURE_EXTRACTION, r=LORA_RANK, lora_dropout=0.0),
    ),
}
"""Flag to the name in the table and PEFT's configuration; which layers LoRA changes is PEFT's own choice."""


class RivalBackbone(nn.Module):
    """A PEFT method around a backbone, with the face that a readout knows from a late backbone.

    Args:
        model: the PEFT model of a bare backbone.
        family: the backbone's family.
        prompted: whether the method puts virtual tokens before the text; they are cut off again.
    """

    def __init__(self, model: nn.Module, family: Family, *, prompted: bool) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.prompted = prompted
        self.late_prompt_heads = nn.ModuleDict()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        read: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """The hidden states of the text (batch, length, hidden), or (batch, 1, hidden) at the positions `read`."""
        if token_type_ids is not None and not self.prompted:  # PEFT's prompt tuning takes none
            kwargs["token_type_ids"] = token_type_ids
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = output.last_hidden_state[:, -input_ids.shape[1] :]
        return BaseModelOutput(last_hidden_state=hidden if read is None else states_at(hidden, read[:, None]))


def rival_words(base: Any, rival: RivalBackbone, words: Sequence[int], kind: str, loss: Loss) -> WordReadout:
    """The readout of label words over a rival; `base` is the model with the LM head."""
    readout = WordReadout(base, base.base_model, words, kind, loss)  # the head is found by the backbone it follows
    readout.layer = rival  # type: ignore[assignment]
    return readout


def make_rival(name: str, like: TextClassifier, *, seed: int) -> tuple[RivalBackbone, Readout]:
    """A rival on a model of its own, and its readout: that of `like`, a classifier with a late prompt.

    Args:
        name: a key of RIVALS.
        like: whose model, dtype, attention kernel and readout it shares.
        seed: seed of its initialisation.

    Raises:
        LatePromptError: PEFT does not know the architecture.
    """
    settings, device = like.settings, like.device
    base = load_base(settings.model, settings.readout, dtype=settings.dtype)
    backbone: Any = base.base_model
    family = like.layer.family
    base.requires_grad_(False)  # before PEFT adds what is trained
    with seeded(seed), warnings.catch_warnings():
        # PEFT says that it adapts itself to GPT-2's Conv1D
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        try:
            model: nn.Module = wrap(backbone, RIVALS[name][1]())
        except ValueError as error:  # PEFT's own too
            reason = " ".join(str(error).split())
            raise LatePromptError(f"rival {name!r} cannot be made on {settings.model!r}: {reason}") from None
    rival = RivalBackbone(model, family, prompted=name == PROMPT_TUNING)
    ours = like.readout
    readout: Readout
    if isinstance(ours, HeadReadout):
        with seeded(seed + 1):
            head = nn.Linear(ours.head.in_features, ours.head.out_features)  # type: ignore[arg-type]
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        rival.late_prompt_heads[ADAPTER] = head.to(next(ours.head.parameters()).dtype)
        dropout = hidden_dropout_of(backbone.config, family)
        readout = HeadReadout(base, rival, ADAPTER, ours.pooling, dropout)  # type: ignore[arg-type]
    elif isinstance(ours, WordReadout):
        readout = rival_words(base, rival, ours.words.tolist(), ours.kind, ours.loss_over)
    else:
        raise LatePromptError(
            f"a {type(ours).__name__} has no rival; use a readout of a head or of one-token label words"
        )
    base.to(device)
    rival.to(device)
    return rival, readout
