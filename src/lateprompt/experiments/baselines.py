"""A method of PEFT's in the place of a late prompt: the same readout, trained by the same loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from lateprompt.backbone.call_context import states_at
from lateprompt.backbone.families import Family, family_of, hidden_dropout_of
from lateprompt.experiments.methods import BASELINES, ComparedMethod
from lateprompt.peft_method.wrapping import wrap
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.loading import load_base
from lateprompt.predictors.saved_run import ADAPTER
from lateprompt.readouts import HeadReadout, Loss, Readout, WordReadout
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import seeded


class BaselineBackbone(nn.Module):
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

    @classmethod
    def around(cls, backbone: Any, method: ComparedMethod) -> BaselineBackbone:
        """A compared method on a bare backbone, in whose place it stands from now on."""
        config = method.peft_config(backbone)
        backbone.requires_grad_(config is None)  # before PEFT adds what is trained
        model = backbone if config is None else wrap(backbone, config)
        return cls(model, family_of(backbone), prompted=method.input_tokens > 0)

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


def baseline_words(base: Any, baseline: BaselineBackbone, words: Sequence[int], kind: str, loss: Loss) -> WordReadout:
    """The readout of label words over a baseline; `base` is the model with the LM head."""
    readout = WordReadout(base, base.base_model, words, kind, loss)  # the head is found by the backbone it follows
    readout.layer = baseline  # type: ignore[assignment]
    return readout


def make_baseline(name: str, like: TextClassifier, *, seed: int) -> tuple[BaselineBackbone, Readout]:
    """A baseline on a model of its own, and its readout: that of `like`, a classifier with a late prompt.

    Args:
        name: a key of BASELINES.
        like: whose model, dtype, attention kernel and readout it shares.
        seed: seed of its initialisation.

    Raises:
        LatePromptError: PEFT does not know the architecture.
    """
    settings, device = like.settings, like.device
    base = load_base(settings.model, settings.readout, dtype=settings.dtype)
    base.requires_grad_(False)
    with seeded(seed), warnings.catch_warnings():
        # PEFT says that it adapts itself to GPT-2's Conv1D
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        try:
            baseline = BaselineBackbone.around(base.base_model, BASELINES[name])
        except ValueError as error:  # PEFT's own too
            reason = " ".join(str(error).split())
            raise LatePromptError(f"baseline {name!r} cannot be made on {settings.model!r}: {reason}") from None
    readout = _readout_like(like.readout, base, baseline, seed)
    base.to(device)
    baseline.to(device)
    return baseline, readout


def _readout_like(ours: Readout, base: Any, baseline: BaselineBackbone, seed: int) -> Readout:
    """A late prompt's readout over a baseline, with a new head where it has one."""
    if isinstance(ours, WordReadout):
        return baseline_words(base, baseline, ours.words.tolist(), ours.kind, ours.loss_over)
    if not isinstance(ours, HeadReadout):
        raise LatePromptError(
            f"a {type(ours).__name__} has no baseline; use a readout of a head or of one-token label words"
        )
    config = base.base_model.config
    with seeded(seed + 1):
        # A read-only prompt's head reads the frozen model's state besides: the width is the backbone's.
        width = int(getattr(config, baseline.family.output_width))
        head = nn.Linear(width, ours.head.out_features)  # type: ignore[arg-type]
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    baseline.late_prompt_heads[ADAPTER] = head.to(next(ours.head.parameters()).dtype)
    dropout = hidden_dropout_of(config, baseline.family)
    return HeadReadout(base, baseline, ADAPTER, ours.pooling, dropout)  # type: ignore[arg-type]


# -- names of earlier releases ----------------------------------------------------------------------------------------

PROMPT_TUNING, PROMPT_TOKENS, LORA_RANK = "prompt-tuning", 20, 8
RIVALS, RivalBackbone, rival_words, make_rival = BASELINES, BaselineBackbone, baseline_words, make_baseline


def prompt_tuning(tokens: int) -> peft.PeftConfig:
    """PEFT's prompt tuning (Lester et al. 2021) of a bare backbone."""
    return peft.PromptTuningConfig(task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=tokens)
