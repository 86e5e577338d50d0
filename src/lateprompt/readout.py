"""How an answer is read from the tail's output: label words of a masked or causal LM, or a trained head.

All three look at read positions only. The LM head is the model's own code, run on the hidden states at those positions,
and over the label words' rows alone where the loss allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lateprompt.backbone import LateBackbone
from lateprompt.branches import branch_hidden, can_branch
from lateprompt.errors import LatePromptError, option
from lateprompt.generators import read_position, read_state
from lateprompt.halves import wide_products
from lateprompt.names import LOSSES as LOSSES
from lateprompt.split import replace_module, shallow_copy
from lateprompt.suggestions import unknown

IGNORED = -100
"""What stands behind a target's end, as in transformers' labels."""
Loss = Literal["vocabulary", "labels"]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows on their way through the model.

    Args:
        input_ids: (batch, length) token ids.
        attention_mask: (batch, length), 1 for real tokens.
        read: (batch,) position to read: the mask token, or the last source token; unused by a head. With `targets`
            (batch, width): the positions that predict them, the first of which ends the source.
        labels: (batch,) class indices, or None.
        token_type_ids: (batch, length), or None.
        trunk_states: (batch, length, hidden), kept states at the prompt layer, or None.
        branch_states: (batch, labels, width, hidden), those of label words of several tokens (all but each label's
            last word), or None.
        padded: whether the mask hides anything; known here, so that nobody has to ask the device.
        targets: (batch, width) token ids of the texts that answer, -100 behind their ends, or None.
        weights: (batch,) what a row's loss is multiplied with, 1 on the average of all training rows; None: 1 each.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    read: torch.Tensor
    labels: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    trunk_states: torch.Tensor | None = None
    branch_states: torch.Tensor | None = None
    padded: bool = True
    targets: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, without waiting for the copies."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)

    def backbone_inputs(self) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": self.input_ids}
        if self.padded:
            inputs["attention_mask"] = self.attention_mask
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        if self.trunk_states is not None:
            inputs["trunk_states"] = self.trunk_states
        return inputs


class _GivenHidden(nn.Module):
    """Stands for the backbone: hands the hidden states it is given (as `inputs_embeds`) to the head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.__dict__["_backbone"] = backbone

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_backbone"], name)


class _SomeRows(nn.Module):
    """The output embedding restricted to some words: (…, hidden) to (…, words)."""

    def __init__(self, linear: nn.Linear, rows: torch.Tensor) -> None:
        super().__init__()
        self.__dict__["_linear"] = linear
        self.__dict__["_rows"] = rows
        self.__dict__["_own"] = None

    def keep(self) -> None:
        """Hold a copy of the rows: the embedding they come from is about to be freed."""
        self.__dict__["_own"] = tuple(None if part is None else part.detach() for part in self._parts())

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        linear, rows = self.__dict__["_linear"], self.__dict__["_rows"]
        if rows.device != linear.weight.device:
            rows = self.__dict__["_rows"] = rows.to(linear.weight.device)
        return linear.weight[rows], None if linear.bias is None else linear.bias[rows]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, *(self.__dict__["_own"] or self._parts()))


class LMHead:
    """The LM head of a Hugging Face model as a function of hidden states, over all words or some.

    It is a view of the whole model in which the backbone passes hidden states through: whatever transform, norm or
    soft-capping the architecture's head has is its own code.

    Args:
        model: the Hugging Face model with the head.
        layer: the (late) backbone inside it.
        words: vocabulary ids to score, or None for the whole vocabulary.

    Raises:
        LatePromptError: the model has no LM head.
    """

    def __init__(self, model: Any, layer: nn.Module, words: torch.Tensor | None = None) -> None:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if output is None:
            raise LatePromptError(
                f"{type(model).__name__} has no LM head to score label words with; use {option('readout', 'head')}"
            )
        self.words = words
        self.view = shallow_copy(model)
        owned: dict[str, nn.Module] = {}
        names = {id(module): name for name, module in model.named_modules()}
        replace_module(self.view, names[id(layer)], _GivenHidden(layer), owned)
        self.output = output
        self.rows = _SomeRows(output, words) if words is not None and type(output) is nn.Linear else None
        if self.rows is not None:
            replace_module(self.view, names[id(output)], self.rows, owned)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores (batch, words) of hidden states (batch, hidden), or (batch, n, words) of (batch, n, hidden)."""
        flat = hidden if hidden.ndim == 3 else hidden[:, None]
        with wide_products(flat.device, flat.dtype):
            logits: torch.Tensor = self.view(inputs_embeds=flat).logits
        if self.words is not None and logits.shape[-1] != len(self.words):
            logits = logits[..., self.words.to(logits.device)]  # a head we could not restrict
        return logits if hidden.ndim == 3 else logits[:, 0]


class Readout:
    """Base: from a batch to label scores (batch, labels) and a loss.

    Args:
        model: the Hugging Face model (with its head) that holds `layer`.
        layer: its late backbone.
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
        output = self.layer(**batch.backbone_inputs(), **extra, read=read)
        return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]

    def release_head(self) -> nn.Module | None:
        """The output embedding, if this readout can do without it from now on."""
        return None

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


class WordReadout(Readout):
    """Single-token label words at the read position: a masked LM's mask, or a causal LM's next token.

    Over the whole vocabulary (`loss="vocabulary"`, the paper's) the label word is a cross-entropy target among all
    words; over the label words (`loss="labels"`) among them alone, and no other row of the LM head is computed.

    Args:
        words: one vocabulary id per label.
        kind: `mask` or `label`.
    """

    def __init__(self, model: nn.Module, layer: LateBackbone, words: Sequence[int], kind: str, loss: Loss) -> None:
        super().__init__(model, layer)
        self.kind = kind
        self.words = torch.tensor(list(words))
        self.loss_over = loss
        self.word_head = LMHead(model, layer, self.words)
        self.full_head = LMHead(model, layer) if loss == "vocabulary" else None

    def release_head(self) -> nn.Module | None:
        rows = self.word_head.rows
        if self.full_head is not None or rows is None or self.word_head.output.weight.requires_grad:
            return None
        rows.keep()
        return self.word_head.output  # type: ignore[no-any-return]

    def scores(self, batch: Batch) -> torch.Tensor:
        return self.word_head(self.hidden(batch, batch.read)).float()

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        if self.full_head is None:
            return super().loss(batch)
        if self.words.device != batch.labels.device:
            self.words = self.words.to(batch.labels.device)
        targets = self.words[batch.labels]
        return mean_cross_entropy(self.full_head(self.hidden(batch, batch.read)).float(), targets, batch.weights)


class PhraseReadout(Readout):
    """Label words of several tokens after the source of a causal LM: mean token score over the words that differ.

    A label's score is the mean log-probability of those of its tokens that not every label has at that place (Liu et
    al. 2022, decoder setting). The source is computed once, all labels' words branch off it (`lateprompt.branches`),
    and the generator sees the source only.

    Args:
        phrases: token ids of each label.
    """

    kind = "label"

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

    def scores(self, batch: Batch) -> torch.Tensor:
        tokens = self.tokens.to(batch.input_ids.device).expand(len(batch.input_ids), -1, -1)
        if can_branch(self.layer):
            return self._branched(batch, tokens, batch.branch_states, self.counted)
        return self._one_by_one(batch, tokens, self.filled, self.counted)

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        if self.loss_over == "labels":
            return super().loss(batch)
        labels = batch.labels
        tokens, counted, filled = (
            table.to(labels.device)[labels][:, None] for table in (self.tokens, self.counted, self.filled)
        )
        if can_branch(self.layer):
            states = batch.branch_states
            own = None if states is None else states[torch.arange(len(labels), device=labels.device), labels][:, None]
            scores = self._branched(batch, tokens, own, counted)
        else:
            scores = self._one_by_one(batch, tokens, filled, counted)
        return -weighted_mean(scores[:, 0], batch.weights)

    def _branched(
        self, batch: Batch, tokens: torch.Tensor, states: torch.Tensor | None, counted: torch.Tensor
    ) -> torch.Tensor:
        """Scores (batch, labels) of words `tokens` (batch, labels, width), all in one pass.

        A word is predicted by the one before it, the first by the source's end: the last word is no input.
        """
        rows, labels, width = tokens.shape
        together = None
        if batch.trunk_states is not None:
            if states is None:
                raise LatePromptError(
                    f"trunk_states were given without those of the label words; use {option('states', 'off')}"
                )
            together = torch.cat([batch.trunk_states, states.flatten(1, 2).to(batch.trunk_states.dtype)], 1)
        hidden = branch_hidden(
            self.layer, batch.input_ids, batch.attention_mask, batch.read, tokens[..., :-1], together
        )
        scores = self.head(hidden).float().log_softmax(-1)
        first = scores[:, 0].gather(1, tokens[..., 0])[..., None]
        rest = scores[:, 1:].view(rows, labels, width - 1, scores.shape[-1]).gather(-1, tokens[..., 1:, None])[..., 0]
        return _mean_counted(torch.cat([first, rest], -1), counted)

    def _one_by_one(
        self, batch: Batch, tokens: torch.Tensor, filled: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        """The same by a whole pass for each label, for architectures that take no branches."""
        if batch.trunk_states is not None:
            raise LatePromptError(
                "label words of several tokens cannot be scored from kept trunk states on this architecture; "
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


def _mean_counted(scores: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean (batch, labels) of token scores (batch, labels, width) over those that count."""
    counted = counted.to(device=scores.device, dtype=scores.dtype)
    return (scores * counted).sum(-1) / counted.sum(-1).clamp(min=1)


class TextReadout(Readout):
    """A text that answers, behind its source: the mean loss of a target's tokens. The generator sees the source only.

    Rows weigh the same whatever their length, so a batch in parts has the same gradient as the whole.
    """

    kind = "text"

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
        output = self.layer(**batch.backbone_inputs(), source_mask=source, use_cache=False, read=batch.read)
        logits = self.head(output.last_hidden_state).float()
        counted = targets != IGNORED
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return torch.stack([-losses.view_as(counted).sum(1), counted.sum(1).to(losses.dtype)], 1)

    def loss(self, batch: Batch) -> torch.Tensor:
        scores = self.scores(batch)
        return -weighted_mean(scores[:, 0] / scores[:, 1], batch.weights)


class HeadReadout(Readout):
    """A trained linear head over a pooled state, for models without an LM head; it is saved with the adapter.

    Args:
        adapter: whose head.
        pooling: `cls` (first token), `mean`, or `last` token.
        dropout: dropout rate on the pooled state while training.
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
        if self.pooling == "mean":
            pooled = pool_states(self.hidden(batch), batch.attention_mask, self.pooling)
        else:
            pooled = self.hidden(batch, read_position(batch.attention_mask, last=self.pooling == "last"))
        pooled = F.dropout(pooled, self.dropout, self.layer.training)
        return self.head(pooled.to(next(self.head.parameters()).dtype)).float()  # type: ignore[no-any-return]


def pool_states(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One state (batch, hidden) of hidden states (batch, length, hidden) over the attended positions of `mask`."""
    if pooling == "mean":
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return read_state(hidden, mask, last=pooling == "last")


def word_readout(
    model: nn.Module, layer: LateBackbone, label_tokens: Sequence[Sequence[int]], kind: str, loss: Loss
) -> Readout:
    """The readout of label words: one token each if they all are (one pass for all labels), else phrases."""
    if loss not in LOSSES:
        raise LatePromptError(unknown("loss", loss, LOSSES))
    if all(len(tokens) == 1 for tokens in label_tokens):
        return WordReadout(model, layer, [tokens[0] for tokens in label_tokens], kind, loss)
    return PhraseReadout(model, layer, label_tokens, loss)
