"""Tiny models with late prompts as PEFT methods, for the tests of the life cycle and of generation."""

from __future__ import annotations

import torch
from peft import TaskType, get_peft_model
from tiny_models import DECODERS, tiny_batch, tiny_model

from lateprompt import LatePromptConfig

MASKED = "AutoModelForMaskedLM"
SEQUENCE = "AutoModelForSequenceClassification"
TOKENS = "AutoModelForTokenClassification"
ANSWERS = "AutoModelForQuestionAnswering"
CAUSAL = "AutoModelForCausalLM"
HEADLESS = "AutoModel"
TASK = {
    MASKED: None,
    SEQUENCE: TaskType.SEQ_CLS,
    TOKENS: TaskType.TOKEN_CLS,
    ANSWERS: TaskType.QUESTION_ANS,
    CAUSAL: TaskType.CAUSAL_LM,
    HEADLESS: TaskType.FEATURE_EXTRACTION,
}
ENCODERS = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "albert", "electra", "mpnet")
MODELS = [
    *((name, auto) for name in ENCODERS for auto in (MASKED, SEQUENCE, TOKENS, ANSWERS, HEADLESS)),
    *((name, auto) for name in ("xlm-roberta", "camembert") for auto in (MASKED, HEADLESS)),
    *((name, auto) for name in DECODERS for auto in (CAUSAL, SEQUENCE, HEADLESS)),
]
FEW = [
    ("bert", MASKED),
    ("roberta", SEQUENCE),
    ("deberta-v2", TOKENS),
    ("albert", ANSWERS),
    ("gpt2", CAUSAL),
    ("opt", CAUSAL),
    ("llama", SEQUENCE),
    ("gemma2", CAUSAL),
    ("modernbert", HEADLESS),
    ("llama", HEADLESS),
]
SIZES = {  # d = 32, m = 8, k = 3
    "fixed": 3 * 32,
    "npg": 32 * 8 + 8 + 8 * 96 + 96,
    "mppg": 32 * 8 + 8 + 8 * 32 + 32,
    "appg": 32 * 8 + 8 + 8 * 32 + 32,
    "atpg": 32 * 8 + 8 + 3 * 8 + 8 * 32 + 32,
    "rpg": 3 * 32 + 32 * 8 + 8 + 3 * 8 + 8 * 32,
}


def late_config(auto=MASKED, **changes):
    settings = {
        "prompt_layer": 2,
        "num_prompt_tokens": 3,
        "bottleneck_dim": 8,
        "generator": "npg",
        "prompt_dropout": 0.0,
    }
    return LatePromptConfig(task_type=TASK[auto], **{**settings, **changes})


def shake(model, seed=7, part="late_prompt_"):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.5)
    return model


def late_model(name, auto=MASKED, *, overrides=None, **changes):
    model = get_peft_model(tiny_model(name, auto, **(overrides or {})), late_config(auto, **changes))
    return shake(model).eval()


@torch.no_grad()
def first_output(model, batch, **arguments):
    """Logits, or hidden states, on real positions' rows."""
    output = model(**batch, **arguments)
    return output[0]


def plain_batch(name, padding="right"):
    return tiny_batch(name, "none" if padding is None else padding)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


ADAPTERS = {
    "default": {},
    "deep": {"prompt_layer": 3, "num_prompt_tokens": 7, "generator": "appg"},
    "fixed one": {"prompt_layer": 1, "num_prompt_tokens": 2, "generator": "fixed"},
    "short": {"num_prompt_tokens": 1, "generator": "mppg", "bottleneck_dim": 4},
}


def many(name, auto, **overrides):
    model = late_model(name, auto, overrides=overrides)
    for adapter, changes in ADAPTERS.items():
        if adapter != "default":
            model.add_adapter(adapter, late_config(auto, **changes))
            shake(model, len(adapter), f"generators.{adapter}.")
    return model.eval()
