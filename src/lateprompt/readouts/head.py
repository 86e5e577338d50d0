"""A trained linear head over a pooled state."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.late_pass import mean_state
from lateprompt.data.batch import Batch
from lateprompt.prompts.base import read_position, read_state
from lateprompt.readouts.base import Readout
from lateprompt.utils.errors import LatePromptError


class HeadReadout(Readout):
    """A trained linear head over a pooled state, for models without an LM head; it is saved with the adapter.

    Args:
        adapter: whose head.
        pooling: `cls` (first token), `mean`, or `last` token.
        dropout: dropout rate on the pooled state while training.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.data.batch import Batch
        >>> from lateprompt.readouts import HeadReadout
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8, head_labels=3)).eval()
        >>> readout = HeadReadout(model.get_base_model(), model.base_model.layer, "default", pooling="mean")
        >>> ids, label = torch.tensor([[2, 7, 4, 3]]), torch.tensor([1])
        >>> batch = Batch(ids, torch.ones(1, 4), read=torch.tensor([-1]), labels=label)
        >>> readout.scores(batch).shape, readout.loss(batch).shape  # (batch, labels), ()
        (torch.Size([1, 3]), torch.Size([]))
    """

    kind = "head"

    def __init__(self, model: nn.Module, layer: LateBackbone, adapter: str, pooling: str, dropout: float = 0.0) -> None:
        super().__init__(model, layer)
        if adapter not in layer.late_prompt_heads:
            raise LatePromptError(f"adapter {adapter!r} has no trained head; make it with head_labels=")
        self.head = layer.late_prompt_heads[adapter]
        self.pooling = pooling
        self.dropout = dropout

    def scores(self, batch: Batch) -> torch.Tensor:
        name = self.read_only_adapter()
        if name is not None:
            return self._read(name, batch)
        pooled = self._pooled(batch)
        pooled = F.dropout(pooled, self.dropout, self.layer.training)
        return self.head(pooled.to(next(self.head.parameters()).dtype)).float()  # type: ignore[no-any-return]

    def _pooled(self, batch: Batch) -> torch.Tensor:
        if self.pooling == "mean":
            return pool_states(self.hidden(batch), batch.attention_mask, self.pooling)
        return self.hidden(batch, read_position(batch.attention_mask, last=self.pooling == "last"))

    def pooled_layer(self) -> str | None:
        return None if self.read_only_adapter() is None else self.pooling

    def reads_tasks(self) -> bool:
        return True

    def anchor(self, batch: Batch) -> torch.Tensor:
        last = self.layer.family.causal or self.pooling == "last"
        return read_position(batch.attention_mask, last=last)

    def read_scores(self, mean: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        assert pooled is not None
        both = F.dropout(torch.cat([mean, pooled.to(mean.dtype)], 1), self.dropout, self.layer.training)
        return self.head(both.to(next(self.head.parameters()).dtype)).float()  # type: ignore[no-any-return]

    def _read(self, name: str, batch: Batch) -> torch.Tensor:
        """Scores from the prompt's mean and the frozen model's own pooled state."""
        whole, anchor = batch.pooled_states is None, self.anchor(batch)
        read = self.layer.read_call(name, whole=whole, **batch.backbone_inputs(), anchor=anchor)
        frozen = batch.pooled_states
        if frozen is None:
            assert read.text.last is not None
            frozen = pool_states(read.text.last, batch.attention_mask, self.pooling)
        return self.read_scores(read.mean, frozen)


def pool_states(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One state (batch, hidden) of hidden states (batch, length, hidden) over the attended positions of `mask`."""
    if pooling == "mean":
        return mean_state(hidden, mask)
    return read_state(hidden, mask, last=pooling == "last")
