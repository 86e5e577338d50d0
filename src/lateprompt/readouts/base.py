"""`Readout`: from a batch to label scores and a loss. What all readouts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.data.batch import Batch

Loss = Literal["vocabulary", "labels"]


class Readout:
    """Base: from a batch to label scores (batch, labels) and a loss.

    Args:
        model: the Hugging Face model (with its head) that holds `layer`.
        layer: its late backbone.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.data.batch import Batch
        >>> from lateprompt.readouts import Readout
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8)).eval()
        >>> class Norm(Readout):  # one score: the norm of the first token's output
        ...     kind = "head"
        ...     def scores(self, batch):
        ...         return self.hidden(batch, torch.zeros_like(batch.read)).norm(dim=-1, keepdim=True)
        >>> batch = Batch(torch.tensor([[2, 7, 4, 3]]), torch.ones(1, 4), read=torch.tensor([-1]))
        >>> Norm(model.get_base_model(), model.base_model.layer).scores(batch).shape
        torch.Size([1, 1])
    """

    kind: str

    def __init__(self, model: nn.Module, layer: LateBackbone) -> None:
        self.model = model
        self.layer = layer

    def hidden(self, batch: Batch, read: torch.Tensor | None = None) -> torch.Tensor:
        """The tail's output (batch, length, hidden), or (batch, hidden) at the positions `read` (batch,)."""
        extra: dict[str, Any] = {"use_cache": False} if self.layer.family.causal else {}
        if read is None:
            return self.layer(**batch.backbone_inputs(), **extra).last_hidden_state  # type: ignore[no-any-return]
        if isinstance(self.layer, LateBackbone):
            extra["anchor"] = read
        output = self.layer(**batch.backbone_inputs(), **extra, read=read)
        return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]

    def read_only_adapter(self) -> str | None:
        """The adapter whose read-only prompt answers; None: an ordinary one does, or none."""
        name = self.layer.selected_adapter() if isinstance(self.layer, LateBackbone) else None
        return name if name is not None and self.layer.slots[name].read_only else None

    def pooled_layer(self) -> str | None:
        """How the frozen model's own output is pooled for this readout (`mean`, `cls`, `last`), if it is read."""
        return None

    def reads_tasks(self) -> bool:
        """Whether a read-only prompt's answer can be read from its mean alone: by `anchor` and `read_scores`."""
        return False

    def anchor(self, batch: Batch) -> torch.Tensor:
        """The positions (batch,) that a read-only prompt stands for."""
        raise TypeError(f"{type(self).__name__} must override anchor")

    def read_scores(self, mean: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        """Label scores (batch, labels) of a read-only prompt.

        Args:
            mean: (batch, hidden), of the backbone's output for the prompt.
            pooled: (batch, hidden), the frozen model's own output, pooled as `pooled_layer` says, or None.
        """
        raise TypeError(f"{type(self).__name__} must override read_scores")

    def offload_head(self) -> nn.Module | None:
        """The output embedding, if this readout can do without it from now on."""
        return None

    def continuations(self) -> Sequence[Sequence[int]]:
        """The tokens behind a row whose trunk states are read too, one list a label; none but for several tokens.

        All but a label's last token: that one is predicted, and is no input.
        """
        return ()

    def reads_cached_states(self) -> bool:
        """Whether batches may carry stored states; False: the trunk runs at each step."""
        return True

    def scores(self, batch: Batch) -> torch.Tensor:
        """Label scores (batch, labels); their softmax are the label probabilities."""
        raise TypeError(f"{type(self).__name__} must override scores")

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean over the rows of their losses, times `batch.weights`; `batch.labels` must be there."""
        assert batch.labels is not None
        return mean_cross_entropy(self.scores(batch).float(), batch.labels, batch.weights)


def mean_cross_entropy(scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean over the rows of the cross-entropy of scores (batch, n) with labels (batch,), times weights (batch,)."""
    if weights is None:
        return F.cross_entropy(scores, labels)
    return weighted_mean(F.cross_entropy(scores, labels, reduction="none"), weights)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean of losses (batch,) times weights (batch,)."""
    return losses.mean() if weights is None else (losses * weights).mean()
