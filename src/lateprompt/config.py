"""`LatePromptConfig`: the settings of a late prompt, as a PEFT configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from lateprompt.generators import check_generator

PEFT_TYPE = "LATE_PROMPT"
NO_PROMPT = "none"
"""`generator="none"`: no prompt at all, only a trained head on the frozen backbone."""
POOLINGS = ("cls", "mean", "last")


@dataclass
class LatePromptConfig(PeftConfig):
    """Late Prompt Tuning (Liu et al., Findings of EMNLP 2022, https://aclanthology.org/2022.findings-emnlp.95).

    Args:
        prompt_layer: p, the number of layers below the prompt: 1..L-1, or a fraction of the depth ("0.5"). The resolved
            number is what gets saved.
        num_prompt_tokens: k, the number of prompt vectors.
        generator: fixed, npg, mppg or appg; none (a head without a prompt).
        bottleneck_dim: m, the generator's inner width.
        prompt_dropout: dropout rate on the prompt while training; None: the backbone's hidden dropout rate.
        fixed_init: how a `fixed` prompt starts: `normal`, or `vocabulary` (embeddings of random words; falls back to
            normal where embeddings are narrower than the hidden states).
        pool_last_source: whether mppg and appg pool a decoder's last source token (the authors' GPT-2 code does not).
        trunk_dropout: keep dropout in the frozen trunk while training, as the authors' code does. Off, the trunk's
            hidden states are a pure function of the text.
        head_labels: number of outputs of a trained linear head, saved with the adapter; None: no head.
        head_pooling: what that head reads: `cls` (first token), `mean`, or `last` token.
        modules_to_save: modules of the model that are trained and saved besides (PEFT's own option).

    Raises:
        ValueError: an unknown generator, initialisation or pooling, or a size below 1.
    """

    prompt_layer: int | float | str = field(default="0.5", metadata={"help": "number of layers below the prompt"})
    num_prompt_tokens: int = field(default=5, metadata={"help": "number of prompt vectors"})
    generator: str = field(default="npg", metadata={"help": "fixed, npg, mppg, appg or none"})
    bottleneck_dim: int = field(default=128, metadata={"help": "inner width of the generator"})
    prompt_dropout: float | None = field(default=None, metadata={"help": "dropout on the prompt; None: the backbone's"})
    fixed_init: str = field(default="normal", metadata={"help": "normal or vocabulary"})
    pool_last_source: bool = field(default=True, metadata={"help": "pool the last source token too"})
    trunk_dropout: bool = field(default=False, metadata={"help": "keep dropout in the frozen trunk"})
    head_labels: int | None = field(default=None, metadata={"help": "outputs of a trained head; None: no head"})
    head_pooling: str = field(default="cls", metadata={"help": "cls, mean or last"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved besides"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "not used: the backbone is found"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE
        if self.generator != NO_PROMPT:
            check_generator(self.generator)
        for name in ("num_prompt_tokens", "bottleneck_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} {value!r} is no size; give a whole number from 1")
        if self.prompt_dropout is not None and not 0.0 <= self.prompt_dropout < 1.0:
            raise ValueError(f"prompt_dropout {self.prompt_dropout!r} is no rate; give 0.0 to below 1.0")
        if self.fixed_init not in ("normal", "vocabulary"):
            raise ValueError(f"fixed_init {self.fixed_init!r} is unknown; choose normal or vocabulary")
        if self.head_pooling not in POOLINGS:
            raise ValueError(f"head_pooling {self.head_pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        if self.head_labels is not None and self.head_labels < 1:
            raise ValueError(f"head_labels {self.head_labels!r} is no number of labels; give a whole number from 1")
        if self.generator == NO_PROMPT and self.head_labels is None and not self.modules_to_save:
            raise ValueError("generator 'none' trains nothing without head_labels or modules_to_save; give one of them")
