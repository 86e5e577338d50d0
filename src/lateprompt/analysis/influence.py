"""How far a model's output moves when its prompts change: removed, or permuted between instances."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lateprompt.analysis.prompts import (
    BATCH_SIZE,
    own_scores,
    prompt_gradients,
    prompts_of,
    scores_with,
    scores_without,
)
from lateprompt.data.batches import Batches
from lateprompt.readouts import Readout
from lateprompt.training.evaluate import softmax
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class Change:
    """How far label scores have moved, as means over the rows.

    Args:
        kl_bits: Kullback-Leibler divergence of the changed label probabilities from the first ones, in bits.
        log_odds: mean absolute change of the scores, of which a shift of all labels together is taken out (nats).
        flipped: share of the rows with another prediction.
    """

    kl_bits: float
    log_odds: float
    flipped: float


def output_change(scores: np.ndarray, changed: np.ndarray) -> Change:
    """Compare label scores (rows, labels) with those after a change.

    Args:
        scores: (rows, labels), before.
        changed: (rows, labels), after.

    Raises:
        LatePromptError: scores of different shapes.

    Example:
        >>> import numpy as np
        >>> from lateprompt.analysis.influence import output_change
        >>> before = np.log(np.array([[0.5, 0.5], [0.5, 0.5]]))
        >>> output_change(before, before + 3)  # a shift of all scores is no change
        Change(kl_bits=0.0, log_odds=0.0, flipped=0.0)
        >>> after = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
        >>> round(output_change(before, after).kl_bits, 3), output_change(before, after).flipped
        (0.104, 0.5)
    """
    if scores.shape != changed.shape:
        raise LatePromptError(f"scores have the shapes {scores.shape} and {changed.shape}; give those of the same rows")
    first, second = scores.astype(np.float64), changed.astype(np.float64)
    log_p, log_q = _log_softmax(first), _log_softmax(second)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1) / np.log(2)
    moved = second - first
    moved -= moved.mean(1, keepdims=True)
    return Change(
        kl_bits=max(0.0, float(kl.mean())),
        log_odds=float(np.abs(moved).mean()),
        flipped=float((first.argmax(1) != second.argmax(1)).mean()),
    )


def other_rows(number: int, seed: int) -> np.ndarray:
    """Return another row for each row, each once: a random cycle through all of them.

    Raises:
        LatePromptError: fewer than two rows.

    Example:
        >>> from lateprompt.analysis.influence import other_rows
        >>> other_rows(2, seed=0).tolist()
        [1, 0]
    """
    if number < 2:
        raise LatePromptError(f"{number} rows cannot swap their prompts; give two or more")
    order = np.random.default_rng(seed).permutation(number)
    others = np.empty(number, dtype=np.int64)
    others[order] = np.roll(order, 1)
    return others


def permutation_influence(
    readout: Readout, batches: Batches, *, seed: int = 0, batch_size: int = BATCH_SIZE
) -> tuple[Change, np.ndarray]:
    """Give each row another row's prompt; how far the output moves, and the scores (rows, labels) after it.

    What does not move here is the prompt's effect that all instances share. Prompts that are the same for all rows
    move nothing.

    Args:
        readout: of a model with an active late prompt.
        batches: the rows.
        seed: of the permutation.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: no late prompt is active, or fewer than two rows.
    """
    prompts = prompts_of(readout, batches, batch_size=batch_size)
    changed = scores_with(readout, batches, prompts[other_rows(len(prompts), seed)], batch_size=batch_size)
    return output_change(own_scores(readout, batches, batch_size=batch_size), changed), changed


def removal_influence(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> tuple[Change, np.ndarray]:
    """Take the prompt away, as `scores_without` says; how far the output moves, and the scores (rows, labels) after it.

    Args:
        readout: of a model with an active late prompt.
        batches: the rows.
        batch_size: rows in a batch.

    Raises:
        LatePromptError: no late prompt is active.
    """
    changed = scores_without(readout, batches, batch_size=batch_size)
    return output_change(own_scores(readout, batches, batch_size=batch_size), changed), changed


def gradient_facts(readout: Readout, batches: Batches, *, batch_size: int = BATCH_SIZE) -> dict[str, float]:
    """Summarise the gradients that reach the prompts: means over the rows of norm, relative norm and state norm."""
    found = prompt_gradients(readout, batches, batch_size=batch_size)
    return {
        "norm": float(found.norms.mean()),
        "relative": float(found.relative.mean()),
        "state_norm": float(found.state_norms.mean()),
    }


def influence_facts(readout: Readout, batches: Batches, *, seed: int, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Measure a trained prompt's influence on labelled rows: removed and permuted, with the accuracies after it.

    Args:
        readout: of a model with an active late prompt.
        batches: labelled rows.
        seed: of the permutation.
        batch_size: rows in a batch.
    """
    labels = batches.labels
    own = own_scores(readout, batches, batch_size=batch_size)
    removed, without = removal_influence(readout, batches, batch_size=batch_size)
    permuted, swapped = permutation_influence(readout, batches, seed=seed, batch_size=batch_size)
    known = labels >= 0
    loss = -np.log(np.maximum(softmax(own.astype(np.float64))[known, labels[known]], 1e-30)).mean()
    return {
        "accuracy": _accuracy(own, labels),
        "loss": float(loss),
        "removed": {**asdict(removed), "accuracy": _accuracy(without, labels)},
        "permuted": {**asdict(permuted), "accuracy": _accuracy(swapped, labels)},
    }


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((scores.argmax(1) == labels).mean())


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # type: ignore[no-any-return]
