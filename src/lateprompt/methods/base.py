"""What a method is: name, source, options with defaults, a piece of an adapter's configuration, a parameter count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from lateprompt.backbone.families import core_of, family_of, num_layers_of
from lateprompt.peft_method.extra.base import Stack, under
from lateprompt.training.settings import ModelSettings

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """A bare backbone's shape, for a parameter count in closed form.

    Args:
        width: d, of hidden states.
        embedding_width: e, of word embeddings.
        output_width: of what the backbone gives back.
        layers: L.
        prompt_layer: p.
        backbone: the bare backbone, whose linear maps, biases and norms a count may ask for.
    """

    width: int
    embedding_width: int
    output_width: int
    layers: int
    prompt_layer: int
    backbone: Any

    @classmethod
    def of(cls, model: nn.Module, prompt_layer: int) -> Shape:
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
        """The backbone's modules by path; late: those of the layers above p."""
        found = dict(self.backbone.named_modules())
        if late:
            paths = Stack.of(self.backbone).choose(range(self.prompt_layer, self.layers))
            found = {key: module for key, module in found.items() if under(key, paths)}
        return found


@dataclass(frozen=True)
class Method:
    """One compared method.

    Args:
        name: its name on the command line.
        title: its name in tables.
        source: where it is from.
        kind: `prompt` (a generator), `tuner` (something beneath a late prompt, or in its place) or `head`.
        options: what `--set` may change, with the defaults.
        fragment: from options and settings to fields of `LatePromptConfig`.
        count: trained parameters without a head, from the shape, the options, the settings, and whether it is late.
        late: whether there is a late variant (of a tuner), or it is late itself (a prompt).
    """

    name: str
    title: str
    source: str
    kind: Literal["prompt", "tuner", "head"]
    fragment: Callable[[Options, ModelSettings], dict[str, Any]]
    count: Callable[[Shape, Options, ModelSettings, bool], int]
    options: Options = field(default_factory=dict)
    late: bool = True
