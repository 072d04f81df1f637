"""Dice and IoU of thresholded maps with masks, pooled over all pixels of a set; best F1 over all thresholds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from anodiff.metrics.ranking import RankCounts, rank_counts, split_by_label


def dice(true_positives: int, predicted: int, positives: int) -> float | None:
    """2 TP / (predicted + positives) in [0, 1]; None without positives (an empty truth has no overlap to measure)."""
    return 2.0 * true_positives / (predicted + positives) if positives else None


def iou(true_positives: int, predicted: int, positives: int) -> float | None:
    """TP / (predicted + positives - TP) in [0, 1], = Dice / (2 - Dice); None without positives."""
    return true_positives / (predicted + positives - true_positives) if positives else None


def dice_at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """Pooled Dice of (score > threshold) in [0, 1]; None without an anomalous item.

    Args:
        labels: 0/1 or bool, any shape; 1 = anomalous.
        scores: same shape.
        threshold: fixed beforehand, on normals; a threshold chosen on these very labels belongs in `oracle_max_dice`.
    """
    return dice(*_confusion(labels, scores, threshold))


def iou_at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """Pooled intersection over union of (score > threshold) in [0, 1]; arguments as `dice_at_threshold`."""
    return iou(*_confusion(labels, scores, threshold))


def max_dice(counts: RankCounts) -> tuple[float, float] | None:
    """(best pooled Dice, its threshold: predict score >= it) over all thresholds; None when a class is missing.

    The best threshold is always the score of an anomalous item: lowering it past normal items only adds false
    positives. Without normal items "all is anomalous" would be perfect, whatever the scores.
    """
    if not counts.positives or not counts.negatives:
        return None
    overlap = 2.0 * counts.true_positives / (counts.true_positives + counts.false_positives + counts.positives)
    best = int(np.argmax(overlap))
    return float(overlap[best]), float(counts.thresholds[best])


def oracle_max_dice(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Best pooled Dice over all thresholds in (0, 1]: an *oracle*, its threshold is chosen on the test labels."""
    best = max_dice(rank_counts(*split_by_label(labels, scores)))
    return None if best is None else best[0]


def oracle_f1(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Best F1 over all thresholds in (0, 1], an *oracle*: at pixels the same number as `oracle_max_dice`."""
    return oracle_max_dice(labels, scores)


def _confusion(labels: ArrayLike, scores: ArrayLike, threshold: float) -> tuple[int, int, int]:
    """(true positives, predicted, positives) of (score > threshold)."""
    positive, negative = split_by_label(labels, scores)
    exact = np.float64(threshold)
    hits = int(np.count_nonzero(positive > exact))
    return hits, hits + int(np.count_nonzero(negative > exact)), positive.size
