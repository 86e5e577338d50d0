"""The trunk and the tail of a backbone at each prompt layer in use, and the train or eval mode that they are in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from lateprompt.backbone.families import family_of, num_layers_of
from lateprompt.backbone.kernels.read_positions import ReadTail
from lateprompt.backbone.split import Split


@dataclass(frozen=True)
class PromptSlot:
    """Where an adapter's prompt goes.

    Args:
        prompt_layer: the layer after which it is inserted.
        trunk_dropout: whether the trunk keeps dropout while training.
        read_only: whether the prompt reads the text and is not seen by it.
        start: what the generator's vectors are added to: `none`, the `anchor`'s state, or the text's `mean` state.
    """

    prompt_layer: int
    trunk_dropout: bool = False
    read_only: bool = False
    start: str = "none"


class FurtherView(Protocol):
    """A view made from a tail.

    Attributes:
        view: the module.
        originals: what it has copied.
    """

    view: nn.Module
    originals: list[nn.Module]


class LateSplit(Split):
    """A split for a prompt between trunk and tail, with the tails that compute read positions alone.

    Args:
        backbone: the module that owns embeddings and layers.
        prompt_layer: p.
    """

    def __init__(self, backbone: nn.Module, prompt_layer: int) -> None:
        super().__init__(backbone, prompt_layer)
        # A pooler reads position 0, which is the prompt here: it is applied to the text by hand.
        if self.tail._modules.get("pooler") is not None:
            self.tail._modules["pooler"] = None
        self._family = family_of(backbone)
        self._further: dict[Hashable, FurtherView] = {}

    def read_tail(self, front: int, *, compiled: bool = False) -> ReadTail:
        """The tail for calls that do not need all of it, made once.

        Args:
            front: how many positions at the front want a gradient; 0: all may.
            compiled: whether its layers go through `torch.compile`.
        """
        tail = self.further((front, compiled), lambda: ReadTail(self.tail, self._family, front, compiled=compiled))
        return cast(ReadTail, tail)

    def further(self, key: Hashable, make: Callable[[], FurtherView]) -> FurtherView:
        """Another view of the tail, made once; it goes stale and changes its mode with the split."""
        if key not in self._further:
            made = make()
            self.watch(made.originals)
            made.view.train(self.tail.training)
            self._further[key] = made
        return self._further[key]

    @property
    def trains_trunk(self) -> bool:
        """Whether something in the trunk wants a gradient (LoRA below the prompt)."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.trunk.parameters())

    def trains_prompt_alone(self, states: torch.Tensor) -> bool:
        """Whether of the tail's weights and its inputs, the trunk's `states` and the prompt, the prompt alone does."""
        wanted = torch.is_grad_enabled() and not states.requires_grad
        return wanted and not any(parameter.requires_grad for parameter in self.tail.parameters())

    def train(self, *, trunk: bool, tail: bool) -> None:
        """Put trunk and tail in train or eval mode."""
        self.trunk.train(trunk)
        for view in (self.tail, *(made.view for made in self._further.values())):
            view.train(tail)


class Views:
    """The splits of one backbone: made when first used, and again when the backbone has changed.

    The layers are the backbone's own, so what mode a call left them in is kept here for the next one.

    Args:
        backbone: the module that owns embeddings and layers.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone
        self.family = family_of(backbone)
        self.num_layers = num_layers_of(backbone)
        self._splits: dict[int, LateSplit] = {}
        self._mode: tuple[int, bool, bool] | None = None
        """Prompt layer (0: no split), trunk's mode, tail's mode; None: whatever the user has put the backbone in."""

    @property
    def last_layer(self) -> nn.Module:
        """The backbone's last layer."""
        *_, last = self.backbone.get_submodule(self.family.layers).children()
        return last  # type: ignore[no-any-return]

    @property
    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the tail's last layer (where accelerate offloads it: the device it runs on)."""
        layer = self.last_layer
        parameters = list(layer.parameters())
        # Quantised weights are whole numbers, beside norms and biases in the type that the layer computes in.
        parameter = next((p for p in parameters if p.is_floating_point()), parameters[0])
        if parameter.device.type != "meta":
            return parameter.device, parameter.dtype
        hooks = (getattr(module, "_hf_hook", None) for module in layer.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        device = next((device for device in devices if device is not None), "cpu")
        return torch.device(device), parameter.dtype

    @property
    def checkpoints_gradients(self) -> bool:
        """Whether a backward pass runs the layers again."""
        return any(getattr(module, "gradient_checkpointing", False) for module in (self.backbone, self.last_layer))

    def split_at(self, prompt_layer: int) -> LateSplit:
        """Trunk and tail for a prompt layer."""
        split = self._splits.get(prompt_layer)
        if split is None or split.is_stale:
            split = self._splits[prompt_layer] = LateSplit(self.backbone, prompt_layer)
            self._mode = None
        return split

    def enter(self, slot: PromptSlot, training: bool) -> LateSplit:
        """The split of a slot with its tail in the given mode and its trunk in eval mode.

        A frozen trunk without dropout is a pure function of its input: its states can be kept. It keeps dropout where
        the slot says so, or where something inside it is trained (LoRA below the prompt).
        """
        split = self.split_at(slot.prompt_layer)
        trunk = training and (slot.trunk_dropout or split.trains_trunk)
        if self._mode != (slot.prompt_layer, trunk, training):
            split.train(trunk=trunk, tail=training)
            self._mode = slot.prompt_layer, trunk, training
        return split

    def enter_whole(self, training: bool) -> nn.Module:
        """The whole backbone in the given mode."""
        if self._mode != (0, training, training):
            self.backbone.train(training)
            self._mode = 0, training, training
        return self.backbone  # type: ignore[no-any-return]

    def leave(self, training: bool) -> nn.Module:
        """The whole backbone as a call without a prompt finds it: in this mode again if a call has left another."""
        return self.backbone if self._mode is None else self.enter_whole(training)

    def forget_mode(self) -> None:
        """The modes have been set from outside, or there are new modules."""
        self._mode = None
