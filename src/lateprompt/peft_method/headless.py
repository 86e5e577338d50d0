"""A backbone without a head (`AutoModel`) as a model whose backbone can be replaced."""

from __future__ import annotations

from typing import Any

from torch import nn

from lateprompt.utils.errors import LatePromptError


class HeadlessModel(nn.Module):
    """Holds a bare backbone under its usual attribute name, so that a late prompt can be put in its place there.

    Adapters then have the same keys as on a model with a head, and load into either. Made by `headless`.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self._name: str = backbone.base_model_prefix
        setattr(self, self._name, backbone)

    @property
    def backbone(self) -> nn.Module:
        """What is in the backbone's place."""
        return getattr(self, self._name)  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.backbone(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT looks for it when an adapter of a causal LM is loaded."""
        raise LatePromptError("a bare backbone has no LM head and cannot generate; load it with AutoModelForCausalLM")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(super().__getattr__(self._name), name)


def headless(backbone: nn.Module) -> HeadlessModel:
    """The backbone in a `HeadlessModel`.

    Its class has the name and the module of the backbone's: PEFT writes both into `adapter_config.json`, from where
    `AutoPeftModel` takes the class that loads the base model.
    """
    kind = type(backbone)
    return type(kind.__name__, (HeadlessModel,), {"__module__": kind.__module__})(backbone)  # type: ignore[no-any-return]
