"""Dice overlap of thresholded maps with masks, pooled over all pixels of a set."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from anodiff.metrics.ranking import RankCounts, rank_counts, split_by_label


def dice(true_positives: int, predicted: int, positives: int) -> float | None:
    """2 TP / (predicted + positives) in [0, 1]; None without positives (an empty truth has no overlap to measure)."""
    return 2.0 * true_positives / (predicted + positives) if positives else None


def dice_at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """Pooled Dice of (score > threshold) in [0, 1]; None without an anomalous item.

    Args:
        labels: 0/1 or bool, any shape; 1 = anomalous.
        scores: same shape.
        threshold: fixed beforehand, on normals; a threshold chosen on these very labels belongs in `oracle_max_dice`.
    """
    positive, negative = split_by_label(labels, scores)
    exact = np.float64(threshold)
    hits = int(np.count_nonzero(positive > exact))
    return dice(hits, hits + int(np.count_nonzero(negative > exact)), positive.size)


def max_dice(counts: RankCounts) -> tuple[float, float] | None:
    """(best pooled Dice, its threshold: predict score >= it) over all thresholds; None without an anomalous item.

    The best threshold is always the score of an anomalous item: lowering it past normal items only adds false
        positives.
    """
    if not counts.positives:
        return None
    overlap = 2.0 * counts.true_positives / (counts.true_positives + counts.false_positives + counts.positives)
    best = int(np.argmax(overlap))
    return float(overlap[best]), float(counts.thresholds[best])


def oracle_max_dice(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Best pooled Dice over all thresholds in (0, 1]: an *oracle*, its threshold is chosen on the test labels."""
    best = max_dice(rank_counts(*split_by_label(labels, scores)))
    return None if best is None else best[0]
