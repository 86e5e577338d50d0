"""Scores and metrics of a readout over a feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lateprompt.readout import Readout
from lateprompt.training.feed import Feed, sorted_batches
from lateprompt.training.metrics import compute_metrics


def predict_scores(
    readout: Readout,
    feed: Feed,
    *,
    batch_size: int,
    device: torch.device,
    autocast: bool = False,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Label scores (rows, labels) in the feed's order; the model is in eval mode meanwhile."""
    order = sorted_batches(feed.lengths, batch_size)
    was_training = readout.layer.training
    readout.layer.eval()
    parts = []
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            for rows, batch in zip(order, feed.batches(order), strict=True):
                parts.append(readout.scores(batch.to(device)).float())
                if progress is not None:
                    progress(len(rows))
    finally:
        readout.layer.train(was_training)
    scores = torch.cat(parts).cpu().numpy()
    result = np.empty_like(scores)
    result[np.concatenate(order)] = scores
    return result


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (rows, labels) of scores."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)  # type: ignore[no-any-return]


def evaluate(
    readout: Readout,
    feed: Feed,
    metrics: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
    autocast: bool = False,
) -> dict[str, float]:
    """Metrics of the predictions, and the mean loss (cross-entropy over the labels' scores)."""
    scores = predict_scores(readout, feed, batch_size=batch_size, device=device, autocast=autocast)
    chosen = softmax(scores)[np.arange(len(scores)), feed.labels]
    values = compute_metrics(metrics, feed.labels, scores.argmax(1), scores.shape[1])
    return {**values, "loss": float(-np.log(np.maximum(chosen, 1e-30)).mean())}
