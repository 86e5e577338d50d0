"""`LatePromptConfig`: the settings of a late prompt, as a PEFT configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from lateprompt.peft_method.adapter_files import CheckedConfig
from lateprompt.peft_method.extra.base import PeftName
from lateprompt.peft_method.sizes import depth_of
from lateprompt.peft_method.tail_tuner import FULL, LAYERS, PROMPT_LEARNING, make_config
from lateprompt.prompts import check_generator
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.names import POOLINGS as POOLINGS
from lateprompt.utils.validation import Count, OneOf, Rate, check_types, is_of

PEFT_TYPE = PeftName("LATE_PROMPT")
NO_PROMPT = "none"
"""`generator="none"`: no prompt; what is trained is a head on the frozen backbone, or another method (`tuner`)."""
SENTENCE = "sentence"
"""`generator="sentence"`: S-IDPG, a prompt at the input from a frozen encoding of the sentence."""


_DEEPEST = 8
FIXED_INITS = ("normal", "vocabulary")
STARTS = ("none", "anchor", "mean")


@dataclass
class LatePromptConfig(CheckedConfig):
    """Late Prompt Tuning (Liu et al., Findings of EMNLP 2022, https://aclanthology.org/2022.findings-emnlp.95).

    Args:
        prompt_layer: p, the number of layers below the prompt: 1..L-1, or a fraction of the depth ("0.5"). The resolved
            number is what gets saved.
        num_prompt_tokens: k, the number of prompt vectors.
        generator: fixed, npg, mppg, appg, atpg or rpg; none (a head or a tuner without a prompt), or sentence
            (S-IDPG: a prompt at the input from a frozen encoding of the sentence).
        bottleneck_dim: m, the generator's inner width.
        prompt_dropout: dropout rate on the prompt while training; None: the backbone's hidden dropout rate.
        fixed_init: how the free vectors of `fixed` and `rpg` start: `normal`, or `vocabulary` (embeddings of random
            words; falls back to normal where embeddings are narrower than the hidden states).
        pool_last_source: whether mppg and appg pool a decoder's last source token (the authors' GPT-2 code does not).
        trunk_dropout: keep dropout in the frozen trunk while training, as the authors' code does. Off, the trunk's
            hidden states are a pure function of the text.
        head_labels: number of outputs of a trained linear head, saved with the adapter; None: no head.
        head_pooling: what that head reads: `cls` (first token), `mean`, or `last` token.
        modules_to_save: modules of the model that are trained and saved besides (PEFT's own option).
        tuner: another PEFT method beneath the prompt, or in its place: its options and `peft_type` (LORA, BITFIT,
            HOULSBY_ADAPTER, PREFIX_TUNING, …; FULL trains the backbone's own weights). It belongs to this adapter, and
            is saved with it.
        tuner_layers: where the tuner lies: `tail` (above the prompt layer: trunk states can be kept) or `all`.
        phm_n: n of the sentence generator's hypercomplex layers.
        read_only: the prompt reads the text and is not seen by it: the text's states stay the frozen model's own at all
            layers, and the output at one position, the anchor, is the prompt's (docs/read-only.md).
        prompt_start: what the generator's vectors are added to: `none`, the `anchor`'s state at the prompt layer, or
            the `mean` of the text's states there; None: none, or for a read-only prompt the mean under a head that
            reads the mean, else the anchor's.
        zero_init: whether a new generator makes (nearly) zero, so that the prompt begins as what it starts from; None:
            where it starts from a state.

    Raises:
        LatePromptError: an unknown generator, initialisation or pooling, or a size below 1.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import LatePromptConfig
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> config = LatePromptConfig(prompt_layer="0.5", generator="npg", num_prompt_tokens=3, bottleneck_dim=8)
        >>> model = get_peft_model(base, config)
        >>> config.prompt_layer, model.get_nb_trainable_parameters()[0]
        (2, 568)
        >>> model(input_ids=torch.tensor([[2, 7, 9, 3]])).logits.shape  # as many positions as the base model
        torch.Size([1, 4, 100])
    """

    prompt_layer: int | float | str = field(default="0.5", metadata={"help": "number of layers below the prompt"})
    num_prompt_tokens: Count = field(default=5, metadata={"help": "number of prompt vectors"})
    generator: str = field(default="npg", metadata={"help": "fixed, npg, mppg, appg, atpg, rpg or none"})
    bottleneck_dim: Count = field(default=128, metadata={"help": "inner width of the generator"})
    prompt_dropout: Rate | None = field(default=None, metadata={"help": "dropout on the prompt; None: the backbone's"})
    fixed_init: Annotated[str, OneOf(FIXED_INITS)] = field(default="normal", metadata={"help": "normal or vocabulary"})
    pool_last_source: bool = field(default=True, metadata={"help": "pool the last source token too"})
    trunk_dropout: bool = field(default=False, metadata={"help": "keep dropout in the frozen trunk"})
    head_labels: Count | None = field(default=None, metadata={"help": "outputs of a trained head; None: no head"})
    head_pooling: Annotated[str, OneOf(POOLINGS)] = field(default="cls", metadata={"help": "cls, mean or last"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved besides"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "not used: the backbone is found"})
    tuner: dict[str, Any] | None = field(default=None, metadata={"help": "another PEFT method beneath, with peft_type"})
    tuner_layers: Annotated[str, OneOf(LAYERS)] = field(default="tail", metadata={"help": "tail or all"})
    phm_n: Count = field(default=4, metadata={"help": "products of the sentence generator's hypercomplex layers"})

    read_only: bool = field(default=False, metadata={"help": "the prompt reads the text and is not seen by it"})
    prompt_start: Annotated[str, OneOf(STARTS)] | None = field(default=None, metadata={"help": "none, anchor or mean"})
    zero_init: bool | None = field(default=None, metadata={"help": "a new generator makes zero"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE
        check_types(self, OWN_FIELDS)
        if self.generator not in (NO_PROMPT, SENTENCE):
            check_generator(self.generator)
        _check_names("modules_to_save", self.modules_to_save)
        if depth_of(self.tuner, _DEEPEST) > _DEEPEST:
            raise LatePromptError(
                f"tuner is nested more than {_DEEPEST} levels deep; give PEFT's options and peft_type"
            )
        kind = None if self.tuner is None else self.tuner.get("peft_type")
        if self.tuner is not None and kind != FULL:
            make_config(self.tuner)
        if kind in PROMPT_LEARNING and self.generator != NO_PROMPT:
            raise LatePromptError(
                f"tuner {kind!r} cannot be put together with generator {self.generator!r}; use 'none'"
            )
        if kind in PROMPT_LEARNING:
            _check_tokens(self.tuner)
        if self.generator == SENTENCE and self.tuner is not None:
            raise LatePromptError(f"generator {SENTENCE!r} cannot be put together with a tuner; leave one of them out")
        if self.read_only:
            self._check_read_only(kind)
        trains = self.tuner is not None or self.head_labels is not None or bool(self.modules_to_save)
        if self.generator == NO_PROMPT and not trains:
            raise LatePromptError(
                "generator 'none' trains nothing without head_labels, modules_to_save or a tuner; give one of them"
            )

    def _check_read_only(self, tuner: str | None) -> None:
        """Raise LatePromptError for what would change the states of a text that a read-only prompt reads."""
        if self.generator in (NO_PROMPT, SENTENCE):
            raise LatePromptError(f"read_only needs a late prompt, but generator is {self.generator!r}; choose another")
        if self.trunk_dropout:
            raise LatePromptError("read_only keeps the text's states as they are; leave out trunk_dropout")
        if tuner == FULL or (tuner is not None and self.tuner_layers != "tail"):
            what = f"tuner {tuner!r}" if tuner == FULL else f"tuner_layers {self.tuner_layers!r}"
            raise LatePromptError(
                f"read_only and {what} cannot be: the text's states would change; use a tuner such as LORA in the "
                "tail, which then lies on the prompt's own path"
            )

    @property
    def start(self) -> str:
        """Return what the prompt starts from: `none`, `anchor` or `mean`."""
        if self.prompt_start is not None:
            return self.prompt_start
        if not self.read_only:
            return "none"
        return "mean" if self.head_labels is not None and self.head_pooling == "mean" else "anchor"

    @property
    def starts_at_zero(self) -> bool:
        """Return whether a new generator makes zero."""
        return self.start != "none" if self.zero_init is None else self.zero_init

    @property
    def input_tokens(self) -> int:
        """Return how many input positions the adapter uses, which are no longer free for the text."""
        if self.generator == SENTENCE:
            return self.num_prompt_tokens
        if self.tuner is None or self.is_late or self.tuner.get("peft_type") not in PROMPT_LEARNING:
            return 0
        return int(self.tuner["num_virtual_tokens"])

    @property
    def is_late(self) -> bool:
        """Return whether all that is trained lies above the prompt layer, so that trunk states can be cached."""
        return self.generator != SENTENCE and (self.tuner is None or self.tuner_layers == "tail")


def _check_tokens(tuner: Any) -> None:
    tokens = tuner.get("num_virtual_tokens")
    if not is_of(tokens, int) or tokens < 1:
        raise LatePromptError(f"num_virtual_tokens {tokens!r} of the tuner is no size; give a whole number from 1")


def _check_names(name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, (list, tuple, set)) and all(isinstance(v, str) for v in value)):
        raise LatePromptError(f"{name} {str(value)[:80]!r} is no list of names; give one, or null")


OWN_FIELDS = tuple(
    name for name in LatePromptConfig.__annotations__ if name not in ("modules_to_save", "target_modules")
)
"""The fields whose types are checked; PEFT fills in the others itself."""
