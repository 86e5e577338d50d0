"""Scores and metrics of a readout over a feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lateprompt.data.batches import Batches, sorted_batches
from lateprompt.readouts import MultiLabelReadout, Readout, TextReadout
from lateprompt.training.distributed import processes
from lateprompt.training.metrics import UNKNOWN, compute_metrics
from lateprompt.training.multi_label import measure_labels
from lateprompt.utils.randomness import TURN


def predict_scores(
    readout: Readout,
    feed: Batches,
    *,
    batch_size: int,
    device: torch.device,
    autocast: bool = False,
    progress: Callable[[int], None] | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Label scores (rows, labels) in the feed's order; the model is in eval mode meanwhile.

    Processes that train together share the batches, and each has all scores in the end.

    Args:
        readout, feed: what scores, and what is scored.
        batch_size: rows in a batch.
        device: where the model is.
        autocast: whether to compute in bfloat16.
        progress: told the number of rows done since it was last told.
        rows: (some rows,) the numbers of those that are wanted, in their order; None: all.
    """
    together = processes()
    chosen = np.arange(len(feed)) if rows is None else rows
    places = sorted_batches(feed.lengths[chosen], batch_size)[together.rank :: together.count]
    order = [chosen[part] for part in places]
    was_training = readout.layer.training
    readout.layer.eval()
    parts = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            for part, batch in zip(order, feed.batches(order), strict=True):
                with TURN:
                    parts.append(readout.scores(batch.to(device)).float())
                if progress is not None:
                    progress(len(part))
    finally:
        readout.layer.train(was_training)
    own = [(np.concatenate(places), torch.cat(parts).cpu().numpy())] if parts else []
    found = [part for process in together.gather(own) for part in process]
    result = np.empty((len(chosen), found[0][1].shape[1]), dtype=found[0][1].dtype)
    for place, scores in found:
        result[place] = scores
    return result


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (rows, labels) of scores."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)  # type: ignore[no-any-return]


def evaluate(
    readout: Readout,
    feed: Batches,
    metrics: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
    autocast: bool = False,
) -> dict[str, float]:
    """Metrics of the predictions, and the mean loss (cross-entropy over the labels' scores).

    A label that the task does not have counts as wrong, and has no loss.

    Of texts it is the perplexity of the targets, exp of the mean loss over all their tokens; the loss is the mean over
    rows. Metrics of what a model writes are not among them: writing takes longer.

    Of multi-label tasks they are those with the thresholds that are best on these rows, which are to choose weights.
    """
    scores = predict_scores(readout, feed, batch_size=batch_size, device=device, autocast=autocast)
    if isinstance(readout, TextReadout):
        scores = scores.astype(np.float64)
        per_token = -scores[:, 0].sum() / scores[:, 1].sum()
        return {"perplexity": float(np.exp(per_token)), "loss": float(-(scores[:, 0] / scores[:, 1]).mean())}
    if isinstance(readout, MultiLabelReadout):
        return measure_labels(scores, feed.labels, feed.missed, None)
    return measure(scores, feed.labels, metrics)


def measure(scores: np.ndarray, labels: np.ndarray, metrics: Sequence[str]) -> dict[str, float]:
    """`evaluate` of scores that are there.

    Args:
        scores: (rows, labels).
        labels: (rows,) class ids.
        metrics: the metrics' names.
    """
    known = np.flatnonzero(labels != UNKNOWN)
    chosen = softmax(scores)[known, labels[known]] if len(known) else np.zeros(1)
    values = compute_metrics(metrics, labels, scores.argmax(1), scores.shape[1])
    return {**values, "loss": float(-np.log(np.maximum(chosen, 1e-30)).mean())}
