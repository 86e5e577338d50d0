"""Texts as answers: the tokens of a target after the source of a causal LM."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.data.batch import IGNORED, Batch
from lateprompt.readouts.base import Readout, weighted_mean
from lateprompt.readouts.lm_head import LMHead
from lateprompt.utils.errors import LatePromptError


class TextReadout(Readout):
    """A text that answers, behind its source: the mean loss of a target's tokens. The generator sees the source only.

    Rows weigh the same whatever their length, so a batch in parts has the same gradient as the whole.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.data.batch import Batch
        >>> from lateprompt.readouts import TextReadout
        >>> sizes = dict(vocab_size=100, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
        >>> base = GPT2LMHeadModel(GPT2Config(**sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8)).eval()
        >>> readout = TextReadout(model.get_base_model(), model.base_model.layer)
        >>> ids = torch.tensor([[2, 7, 4, 30]])  # a source of three tokens, and the target but for its last token
        >>> batch = Batch(ids, torch.ones(1, 4), read=torch.tensor([[2, 3]]), targets=torch.tensor([[30, 31]]))
        >>> readout.loss(batch).shape
        torch.Size([])
    """

    kind = "generate"

    def __init__(self, model: nn.Module, layer: LateBackbone) -> None:
        super().__init__(model, layer)
        self.head = LMHead(model, layer)

    def scores(self, batch: Batch) -> torch.Tensor:
        """Log-likelihood of each target and its number of tokens, (batch, 2)."""
        targets = batch.targets
        if targets is None:
            raise LatePromptError("these rows have no targets to score; give them some, or have targets written")
        places = torch.arange(batch.input_ids.shape[1], device=targets.device)
        source = (places <= batch.read[:, :1]).to(batch.attention_mask.dtype)
        logits = self.head(self._hidden(batch, source)).float()
        counted = targets != IGNORED
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return torch.stack([-losses.view_as(counted).sum(1), counted.sum(1).to(losses.dtype)], 1)

    def _hidden(self, batch: Batch, source: torch.Tensor) -> torch.Tensor:
        """The output (batch, width, hidden) at the positions that predict targets."""
        inputs = {**batch.backbone_inputs(), "source_mask": source, "anchor": batch.read[:, :1]}
        name = self.read_only_adapter()
        if name is None:
            return self.layer(**inputs, use_cache=False, read=batch.read).last_hidden_state  # type: ignore[no-any-return]
        read = self.layer.read_call(name, **inputs)
        hidden = read.mean[:, None]
        return hidden if read.written is None else torch.cat([hidden, read.written], 1)

    def loss(self, batch: Batch) -> torch.Tensor:
        scores = self.scores(batch)
        return -weighted_mean(scores[:, 0] / scores[:, 1], batch.weights)
