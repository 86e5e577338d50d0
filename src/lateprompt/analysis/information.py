"""Information about the label in hidden states: a linear probe's accuracy, and usable bits (Xu et al., ICLR 2020)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lateprompt.analysis.prompts import BATCH_SIZE, passes, prompt_of_layer
from lateprompt.backbone.late_pass import mean_state
from lateprompt.data.batches import Batches
from lateprompt.readouts import Readout
from lateprompt.utils.errors import LatePromptError

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the probe's L2 penalty, of which the training rows choose one."""
FOLDS = 3
"""Parts of the training rows that this choice is made on."""
POOLINGS = ("mean", "anchor")
"""One state of a text: the mean of its positions, or the state at the position that is read (mask, first or last)."""


@dataclass(frozen=True)
class UsableInformation:
    """What a family of linear probes can use of some features to tell the label; all in bits a row, on held-out rows.

    Args:
        bits: H_V(Y) - H_V(Y|X), the usable information. It lies between 0 and `label_entropy`; an estimate from few
            rows can be below 0.
        standard_error: of `bits`, from the held-out rows.
        label_entropy: H_V(Y), cross-entropy of the best guess without features: the training rows' label shares.
        conditional_entropy: H_V(Y|X), cross-entropy of the probe.
        accuracy: the probe's.
        majority: the accuracy of always guessing the training rows' most frequent label.
        strength: inverse strength of the probe's penalty, as the training rows chose it.
        train_rows: rows that the probe was fitted on.
        heldout_rows: rows that all else was measured on.
    """

    bits: float
    standard_error: float
    label_entropy: float
    conditional_entropy: float
    accuracy: float
    majority: float
    strength: float
    train_rows: int
    heldout_rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `bits`, by the normal approximation, within the bounds 0 and `label_entropy`."""
        low, high = (self.bits + sign * 1.96 * self.standard_error for sign in (-1, 1))
        return min(max(low, 0.0), self.label_entropy), max(min(high, self.label_entropy), 0.0)


def usable_information(
    features: np.ndarray,
    labels: np.ndarray,
    heldout_features: np.ndarray,
    heldout_labels: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> UsableInformation:
    """Measure how many bits about the label logistic regression can use of features: I_V(X → Y) = H_V(Y) - H_V(Y|X).

    The family V is logistic regression with an L2 penalty on standardised features, its strength chosen by the training
    rows alone (cross-validated); it holds the best guess without features too, as the definition asks for. All
    probabilities are mixed with a share of 1 / (training rows + 1) of a uniform guess, so that a label without training
    rows costs finitely many bits.

    Source: Xu et al., A Theory of Usable Information under Computational Constraints, ICLR 2020, definition 2.

    Args:
        features: (rows, width), to fit on.
        labels: (rows,) class numbers.
        heldout_features: (held-out rows, width), to measure on.
        heldout_labels: (held-out rows,).
        strengths: inverse strengths of the penalty to choose from.
        seed: of the folds.

    Raises:
        LatePromptError: no rows, or features that do not fit their labels.

    Example:
        >>> import numpy as np
        >>> from lateprompt.analysis.information import usable_information
        >>> labels = np.arange(400) % 2
        >>> told = usable_information(labels[:200, None] * 2.0 - 1, labels[:200], labels[200:, None] * 2.0 - 1,
        ...     labels[200:], strengths=(1.0, 1000.0))
        >>> round(told.bits, 2), round(told.label_entropy, 2), told.accuracy  # two labels alike often: 1 bit
        (1.0, 1.0, 1.0)
    """
    for rows, own in ((features, labels), (heldout_features, heldout_labels)):
        if not len(own) or len(rows) != len(own) or rows.ndim != 2:
            raise LatePromptError(
                f"features of shape {rows.shape} for {len(own)} labels; give (rows, width) and a label for each row"
            )
    classes = int(max(labels.max(), heldout_labels.max())) + 1
    # Standardised by the training rows; a feature that does not vary says nothing.
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-8 * max(1e-12, float(np.abs(features).max())), scale, np.inf)
    train, heldout = (features - mean) / scale, (heldout_features - mean) / scale
    strength = _choose(train, labels, classes, strengths, seed)
    n = len(labels)
    shares = _mixed(np.bincount(labels, minlength=classes)[None] / n, n)
    probabilities = _mixed(_probe(train, labels, heldout, classes, strength), n)
    blind = -np.log2(shares[0, heldout_labels])
    seeing = -np.log2(probabilities[np.arange(len(heldout_labels)), heldout_labels])
    gained = blind - seeing
    m = len(gained)
    return UsableInformation(
        bits=float(gained.mean()),
        standard_error=float(gained.std(ddof=1) / math.sqrt(m)) if m > 1 else math.inf,
        label_entropy=float(blind.mean()),
        conditional_entropy=float(seeing.mean()),
        accuracy=float((probabilities.argmax(1) == heldout_labels).mean()),
        majority=float((heldout_labels == shares[0].argmax()).mean()),
        strength=strength,
        train_rows=n,
        heldout_rows=m,
    )


def _mixed(probabilities: np.ndarray, rows: int) -> np.ndarray:
    share = 1 / (rows + 1)
    return (1 - share) * probabilities + share / probabilities.shape[1]  # type: ignore[no-any-return]


def _choose(features: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float], seed: int) -> float:
    """From the strongest penalty on, the last one before the cross-entropy over folds of the training rows rises."""
    n = len(labels)
    if len(strengths) == 1 or n < 2 * FOLDS:
        return strengths[0]
    # Rows of each label are dealt out in turn, so that each fold has some of all that have enough.
    order = np.random.default_rng(seed).permutation(n)
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(n, dtype=np.int64)
    fold[order] = np.arange(n) % FOLDS
    best, least = strengths[0], math.inf
    for strength in sorted(strengths):
        total = 0.0
        for part in range(FOLDS):
            kept, left = fold != part, fold == part
            found = _mixed(_probe(features[kept], labels[kept], features[left], classes, strength), int(kept.sum()))
            total -= float(np.log2(found[np.arange(int(left.sum())), labels[left]]).sum())
        if total > least:  # weaker penalties overfit more still, and take longest to fit
            break
        best, least = strength, total
    return best


def _probe(features: np.ndarray, labels: np.ndarray, others: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """The probe's probabilities (other rows, classes)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found = np.unique(labels)
    probabilities = np.zeros((len(others), classes))
    if len(found) == 1:
        probabilities[:, found] = 1.0
        return probabilities
    probe = LogisticRegression(C=strength, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features, labels)
    probabilities[:, probe.classes_] = probe.predict_proba(others)
    return probabilities


# -- the states ------------------------------------------------------------------------------------------------------

States = Mapping[str, Mapping[int, np.ndarray]]
"""By pooling and number of layers below, one state a row (rows, hidden)."""


def frozen_states(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> States:
    """Return what the frozen model makes of each row, after 0 to L layers, pooled; one pass of the model.

    Args:
        readout: of a classifier; what was trained in it does not count.
        batches: the rows, without cached states.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: a family whose hidden states cannot be told apart by layer.
    """
    layer = readout.layer
    kept = _Kept(len(batches))
    with torch.no_grad():
        for rows, batch in passes(readout, batches, batch_size):
            anchor = readout.anchor(batch)
            text = layer.frozen_text(0, whole=True, **batch.backbone_inputs(), anchor=anchor)
            assert text.last is not None
            for number, states in {**text.states, layer.num_layers: text.last}.items():
                kept.pool(rows, number, states, text.mask, anchor)
    return kept.states


def prompted_states(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> States:
    """Return the text's states above the prompt layer, p+1 to L, as the prompt has left them, pooled.

    Of a read-only prompt, which leaves the text as it is, it is what the answer is read from, under the pooling
    `prompt`: the mean of its own output, after all layers.

    Args:
        readout: of a classifier with an active late prompt.
        batches: the rows, with trunk states or without.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: no late prompt is active.
    """
    layer = readout.layer
    name, _, slot = prompt_of_layer(layer)
    kept = _Kept(len(batches))
    top = layer.num_layers
    extra: dict[str, Any] = {"use_cache": False} if layer.family.causal else {}
    with torch.no_grad():
        for rows, batch in passes(readout, batches, batch_size):
            anchor = readout.anchor(batch)
            if slot.read_only:
                read = layer.read_call(name, **batch.backbone_inputs(), anchor=anchor)
                kept.put("prompt", rows, top, read.by_row(read.mean))
                continue
            output = layer(**batch.backbone_inputs(), **extra, output_hidden_states=True, return_dict=True)
            mask = batch.attention_mask.bool()
            for number in range(slot.prompt_layer + 1, top + 1):
                # The last hidden state is behind the final norm, where there is one.
                states = output.last_hidden_state if number == top else output.hidden_states[number - top - 1]
                kept.pool(rows, number, states, mask, anchor)
    return kept.states


class _Kept:
    """One state a row, by pooling and layer."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.states: dict[str, dict[int, np.ndarray]] = {}

    def put(self, pooling: str, rows: np.ndarray, layer: int, states: torch.Tensor) -> None:
        own = self.states.setdefault(pooling, {})
        if layer not in own:
            own[layer] = np.empty((self.rows, states.shape[-1]), dtype=np.float32)
        own[layer][rows] = states.float().cpu().numpy()

    def pool(
        self, rows: np.ndarray, layer: int, states: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor
    ) -> None:
        self.put("mean", rows, layer, mean_state(states.float(), mask))
        self.put("anchor", rows, layer, states[torch.arange(len(states), device=states.device), anchor])
