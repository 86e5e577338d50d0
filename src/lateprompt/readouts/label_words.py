"""Label words of a masked or causal LM: one token each, or several after the source of a causal LM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.packed import can_pack, packed_hidden
from lateprompt.data.batch import Batch
from lateprompt.readouts.base import Loss, Readout, mean_cross_entropy, weighted_mean
from lateprompt.readouts.lm_head import LMHead
from lateprompt.utils.errors import LatePromptError, option
from lateprompt.utils.names import LOSSES
from lateprompt.utils.suggestions import unknown


class WordReadout(Readout):
    """Single-token label words at the read position: a masked LM's mask, or a causal LM's next token.

    Over the whole vocabulary (`loss="vocabulary"`, the paper's) the label word is a cross-entropy target among all
    words; over the label words (`loss="labels"`) among them alone, and no other row of the LM head is computed.

    Args:
        words: one vocabulary id per label.
        kind: `mask` or `label`.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.data.batch import Batch
        >>> from lateprompt.readouts import WordReadout
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8)).eval()
        >>> words = [7, 9]  # the vocabulary id of each label's word
        >>> layer = model.base_model.layer
        >>> readout = WordReadout(model.get_base_model(), layer, words, kind="masked_lm", loss="labels")
        >>> ids, label = torch.tensor([[2, 7, 4, 3]]), torch.tensor([1])
        >>> batch = Batch(ids, torch.ones(1, 4), read=torch.tensor([2]), labels=label)
        >>> readout.scores(batch).shape, readout.loss(batch).shape  # (batch, labels), ()
        (torch.Size([1, 2]), torch.Size([]))
    """

    def __init__(self, model: nn.Module, layer: LateBackbone, words: Sequence[int], kind: str, loss: Loss) -> None:
        super().__init__(model, layer)
        self.kind = kind
        self.words = torch.tensor(list(words))
        self.loss_over = loss
        self.word_head = LMHead(model, layer, self.words)
        self.full_head = LMHead(model, layer) if loss == "vocabulary" else None

    def offload_head(self) -> nn.Module | None:
        rows = self.word_head.rows
        if self.full_head is not None or rows is None or self.word_head.output.weight.requires_grad:
            return None
        rows.keep()
        return self.word_head.output  # type: ignore[no-any-return]

    def scores(self, batch: Batch) -> torch.Tensor:
        return self.word_head(self.hidden(batch, batch.read)).float()

    def reads_tasks(self) -> bool:
        return True

    def anchor(self, batch: Batch) -> torch.Tensor:
        return batch.read

    def read_scores(self, mean: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        return self.word_head(mean).float()

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        if self.full_head is None:
            return super().loss(batch)
        if self.words.device != batch.labels.device:
            self.words = self.words.to(batch.labels.device)
        targets = self.words[batch.labels]
        return mean_cross_entropy(self.full_head(self.hidden(batch, batch.read)).float(), targets, batch.weights)


class MultiTokenReadout(Readout):
    """Label words of several tokens after the source of a causal LM: mean token score over the words that differ.

    A label's score is the mean log-probability of those of its tokens that not every label has at that place (Liu et
    al. 2022, decoder setting). The source is computed once, all labels' words are packed behind it
    (`lateprompt.backbone.packed`), and the generator sees the source only.

    Args:
        phrases: token ids of each label.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from lateprompt import LatePromptConfig
        >>> from lateprompt.data.batch import Batch
        >>> from lateprompt.readouts import MultiTokenReadout
        >>> sizes = dict(vocab_size=100, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
        >>> base = GPT2LMHeadModel(GPT2Config(**sizes))
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8)).eval()
        >>> phrases = [[7, 8], [9]]  # the token ids of each label's words
        >>> readout = MultiTokenReadout(model.get_base_model(), model.base_model.layer, phrases, loss="labels")
        >>> ids, label = torch.tensor([[2, 7, 4, 3]]), torch.tensor([1])
        >>> batch = Batch(ids, torch.ones(1, 4), read=torch.tensor([3]), labels=label)
        >>> readout.scores(batch).shape, readout.loss(batch).shape  # (batch, labels), ()
        (torch.Size([1, 2]), torch.Size([]))
    """

    kind = "causal_lm"

    def __init__(self, model: nn.Module, layer: LateBackbone, phrases: Sequence[Sequence[int]], loss: Loss) -> None:
        super().__init__(model, layer)
        self.loss_over = loss
        self.head = LMHead(model, layer)
        longest = max(len(phrase) for phrase in phrases)
        self.tokens = torch.zeros(len(phrases), longest, dtype=torch.long)
        self.filled = torch.zeros(len(phrases), longest, dtype=torch.long)
        for i, phrase in enumerate(phrases):
            self.tokens[i, : len(phrase)] = torch.tensor(list(phrase))
            self.filled[i, : len(phrase)] = 1
        same = ((self.tokens == self.tokens[:1]) & (self.filled == 1)).all(0)
        self.counted = self.filled * (~same).long()
        empty = (self.counted.sum(1) == 0).nonzero()
        if len(empty):
            raise LatePromptError(
                f"label words {list(phrases[int(empty[0])])} are the beginning of every label's, so none of them tells "
                "this label from another; choose words that differ"
            )

    def continuations(self) -> list[list[int]]:
        return [row[: size - 1].tolist() for row, size in zip(self.tokens, self.filled.sum(1).tolist(), strict=True)]

    def reads_cached_states(self) -> bool:
        return can_pack(self.layer)

    def scores(self, batch: Batch) -> torch.Tensor:
        tokens = self.tokens.to(batch.input_ids.device).expand(len(batch.input_ids), -1, -1)
        if can_pack(self.layer):
            return self._packed(batch, tokens, batch.packed_states, self.counted)
        return self._one_by_one(batch, tokens, self.filled, self.counted)

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        if self.loss_over == "labels":
            return super().loss(batch)
        labels = batch.labels
        tokens, counted, filled = (
            table.to(labels.device)[labels][:, None] for table in (self.tokens, self.counted, self.filled)
        )
        if can_pack(self.layer):
            states = batch.packed_states
            own = None if states is None else states[torch.arange(len(labels), device=labels.device), labels][:, None]
            scores = self._packed(batch, tokens, own, counted)
        else:
            scores = self._one_by_one(batch, tokens, filled, counted)
        return -weighted_mean(scores[:, 0], batch.weights)

    def _packed(
        self, batch: Batch, tokens: torch.Tensor, states: torch.Tensor | None, counted: torch.Tensor
    ) -> torch.Tensor:
        """Scores (batch, labels) of words `tokens` (batch, labels, width), all in one pass.

        A word is predicted by the one before it, the first by the source's end: the last word is no input.
        """
        rows, labels, width = tokens.shape
        hidden = packed_hidden(
            self.layer,
            batch.input_ids,
            batch.attention_mask,
            batch.read,
            tokens[..., :-1],
            batch.trunk_states if batch.layer_states is None else batch.layer_states,
            None if states is None else states.flatten(1, 2),
            batch.text_keys,
        )
        scores = self.head(hidden).float().log_softmax(-1)
        first = scores[:, 0].gather(1, tokens[..., 0])[..., None]
        rest = scores[:, 1:].view(rows, labels, width - 1, scores.shape[-1]).gather(-1, tokens[..., 1:, None])[..., 0]
        return _mean_counted(torch.cat([first, rest], -1), counted)

    def _one_by_one(
        self, batch: Batch, tokens: torch.Tensor, filled: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        """The same by a whole pass for each label, for architectures that cannot pack them."""
        if batch.trunk_states is not None or batch.layer_states is not None:
            raise LatePromptError(
                "label words of several tokens cannot be scored from cached trunk states on this architecture; "
                f"use {option('states', 'off')}"
            )
        rows, labels, width = tokens.shape
        ids, source, read = (
            part.repeat_interleave(labels, 0) for part in (batch.input_ids, batch.attention_mask, batch.read)
        )
        places = read[:, None] + 1 + torch.arange(width, device=ids.device)
        flat = tokens.reshape(rows * labels, width)
        seen = filled.to(ids.device).expand(rows, labels, width).reshape(rows * labels, width)
        ids = F.pad(ids, (0, width)).scatter(1, places, flat)
        source = F.pad(source, (0, width))
        mask = source.scatter(1, places, seen)
        output = self.layer(input_ids=ids, attention_mask=mask, source_mask=source, use_cache=False, read=places - 1)
        scores = self.head(output.last_hidden_state).float().log_softmax(-1)
        found = scores.gather(-1, flat[..., None])[..., 0].view(rows, labels, width)
        return _mean_counted(found, counted)


PhraseReadout = MultiTokenReadout
"""Its name in earlier releases."""


def _mean_counted(scores: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean (batch, labels) of token scores (batch, labels, width) over those that count."""
    counted = counted.to(device=scores.device, dtype=scores.dtype)
    return (scores * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def word_readout(
    model: nn.Module, layer: LateBackbone, label_tokens: Sequence[Sequence[int]], kind: str, loss: Loss
) -> Readout:
    """The readout of label words: one token each if they all are (one pass for all labels), else several."""
    if loss not in LOSSES:
        raise LatePromptError(unknown("loss", loss, LOSSES))
    if all(len(tokens) == 1 for tokens in label_tokens):
        return WordReadout(model, layer, [tokens[0] for tokens in label_tokens], kind, loss)
    return MultiTokenReadout(model, layer, label_tokens, loss)
