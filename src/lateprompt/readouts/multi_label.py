"""A trained head that answers yes or no for each label: texts have any number of them."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.data.batch import Batch
from lateprompt.readouts.base import weighted_mean
from lateprompt.readouts.head import HeadReadout


class MultiLabelReadout(HeadReadout):
    """A trained linear head whose sigmoid gives each label's own probability; the arguments are `HeadReadout`'s.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.data.batch import Batch
        >>> from lateprompt.readouts import MultiLabelReadout
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8, head_labels=3)).eval()
        >>> readout = MultiLabelReadout(model.get_base_model(), model.base_model.layer, "default", pooling="mean")
        >>> labels = torch.tensor([[1, 0, 1]])  # the first and the last one
        >>> batch = Batch(torch.tensor([[2, 7, 4, 3]]), torch.ones(1, 4), read=torch.tensor([-1]), labels=labels)
        >>> readout.scores(batch).shape, readout.loss(batch).shape  # (batch, labels), ()
        (torch.Size([1, 3]), torch.Size([]))
    """

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean over rows and labels of the binary cross-entropy, rows times `batch.weights`."""
        assert batch.labels is not None
        scores = self.scores(batch).float()
        losses = F.binary_cross_entropy_with_logits(scores, batch.labels.to(scores.dtype), reduction="none")
        return weighted_mean(losses.mean(1), batch.weights)

    def start_at(self, shares: torch.Tensor) -> None:
        """Let the head's biases begin at how often each label occurs (Lin et al., ICCV 2017, section 4.1).

        From zero, the first steps of a task with many rare labels would go into saying no to all of them.

        Args:
            shares: (labels,) of rows that have each label, between 0 and 1.
        """
        with torch.no_grad():
            cast(nn.Linear, self.head).bias.copy_(torch.logit(shares))
