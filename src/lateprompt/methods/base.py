"""`Method`: name, source, options with defaults, the fields of the adapter's configuration, a parameter count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from lateprompt.backbone.families import core_of, family_of, num_layers_of
from lateprompt.peft_method.extra.base import Stack, under
from lateprompt.training.recipes import Recipe, recipe_of
from lateprompt.training.settings import ModelSettings

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """The sizes of a backbone that parameter counts are computed from.

    Args:
        width: d, the width of hidden states.
        embedding_width: e, the width of word embeddings.
        output_width: the width of the backbone's output.
        layers: L, the number of layers.
        prompt_layer: p, the number of layers below the prompt.
        backbone: the backbone itself, for counts that depend on its single modules.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt.methods import Shape
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> shape = Shape.of(BertModel(BertConfig(vocab_size=100, **sizes)), prompt_layer=2)
        >>> shape.width, shape.layers
        (16, 4)
    """

    width: int
    embedding_width: int
    output_width: int
    layers: int
    prompt_layer: int
    backbone: Any

    @classmethod
    def of(cls, model: nn.Module, prompt_layer: int) -> Shape:
        """Read the sizes of a Hugging Face model or its backbone."""
        core: Any = core_of(model)
        return cls(
            width=int(core.config.hidden_size),
            embedding_width=int(core.get_input_embeddings().weight.shape[-1]),
            output_width=int(getattr(core.config, family_of(core).output_width)),
            layers=num_layers_of(core),
            prompt_layer=prompt_layer,
            backbone=core,
        )

    def modules(self, *, late: bool) -> dict[str, nn.Module]:
        """Return the backbone's modules by path; with `late` only those in the layers above the prompt layer."""
        found = dict(self.backbone.named_modules())
        if late:
            paths = Stack.of(self.backbone).choose(range(self.prompt_layer, self.layers))
            found = {key: module for key, module in found.items() if under(key, paths)}
        return found


@dataclass(frozen=True)
class Method:
    """One tuning method, as an entry of `METHODS`.

    Args:
        name: its name on the command line.
        title: its name in tables.
        source: the paper it is from.
        kind: `prompt` (a prompt generator), `tuner` (a method that changes the backbone's layers or its input, alone or
            together with a late prompt), `head` (a linear head alone) or `linear` (a linear model of scikit-learn's,
            which is no adapter).
        options: what `--set` may change, with the defaults.
        fragment: makes the fields of `LatePromptConfig` (of a tuner: its `tuner`) from options and settings.
        count: counts the trained parameters, head aside, from the shape, the options, the settings, and whether only
            the layers above the prompt are tuned.
        read_only: of a prompt, whether the text never sees it; a tuner beside it lies on the prompt's own path.
        late: of a tuner, whether it can be kept to the layers above the prompt; of a prompt, whether it enters there.
        reads_model: whether it needs a pretrained model at all.

    Example:
        >>> from lateprompt.methods import METHODS
        >>> METHODS["lora"].title, METHODS["lora"].kind, METHODS["lora"].source
        ('LoRA', 'tuner', 'Hu et al., ICLR 2022')
    """

    name: str
    title: str
    source: str
    kind: Literal["prompt", "tuner", "head", "linear"]
    fragment: Callable[[Options, ModelSettings], dict[str, Any]]
    count: Callable[[Shape, Options, ModelSettings, bool], int]
    options: Options = field(default_factory=dict)
    late: bool = True
    read_only: bool = False
    reads_model: bool = True

    @property
    def recipe(self) -> Recipe:
        """What it trains with where its user has left it open."""
        return recipe_of(self.name)
