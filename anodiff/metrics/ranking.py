"""Ranking metrics without thresholds: AUROC and average precision, exact, with equal scores merged.

Everything here follows from counts at the distinct scores of the *anomalous* items. AUROC is the Mann-Whitney
statistic of those items against the normal ones, average precision changes only where an anomalous item enters, and so
does the best Dice. Two plain sorts (anomalous and normal scores apart) therefore replace one indirect sort of
everything: 1e8 pixels fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.metrics.arrays import FloatArray, IntArray, as_array

#: metrics of an order: without normal items every order is right, and a perfect value would measure nothing
RANKED = ("auroc", "ap", "max_dice")


@dataclass(frozen=True)
class RankCounts:
    """Counts at the K distinct scores of the anomalous items, highest score first.

    Attributes:
        thresholds: (K,) the scores, descending, in the dtype they came in.
        true_positives: (K,) anomalous items with score >= threshold.
        false_positives: (K,) normal items with score >= threshold.
        false_above: (K,) normal items with score > threshold; differs from `false_positives` where scores are tied.
        positives: number of anomalous items.
        negatives: number of normal items.
    """

    thresholds: FloatArray
    true_positives: IntArray
    false_positives: IntArray
    false_above: IntArray
    positives: int
    negatives: int

    @property
    def auroc(self) -> float | None:
        """P(anomalous > normal) + P(equal) / 2, in [0, 1]; None without anomalous or without normal items."""
        if not self.positives or not self.negatives:
            return None
        entering = np.diff(self.true_positives, prepend=0)
        twice_beaten = 2 * self.negatives - self.false_positives - self.false_above
        return int(np.sum(entering * twice_beaten)) / (2 * self.positives * self.negatives)

    @property
    def average_precision(self) -> float | None:
        """Sum over thresholds of (recall gained) x (precision there), in (0, 1]; None without a class.

        No interpolation (scikit-learn's definition). A constant score gets the share of anomalous items. Without normal
        items every order is right: scikit-learn says 1 then, which measures nothing, so it is undefined here.
        """
        if not self.positives or not self.negatives:
            return None
        entering = np.diff(self.true_positives, prepend=0)
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return float(np.sum(entering * precision) / self.positives)


def rank_counts(positive_scores: ArrayLike, negative_scores: ArrayLike) -> RankCounts:
    """Count both classes at the distinct anomalous scores.

    Args:
        positive_scores: scores of the anomalous items, any shape, higher = more anomalous.
        negative_scores: scores of the normal items, any shape.

    Raises:
        ValueError: a score is NaN.
    """
    positive = np.sort(as_array(positive_scores), axis=None)
    negative = np.sort(as_array(negative_scores), axis=None)
    if any(values.size and np.isnan(values[-1]) for values in (positive, negative)):
        raise ValueError("scores must not be NaN")
    first = np.flatnonzero(np.append(True, positive[1:] != positive[:-1])[: positive.size])
    thresholds = positive[first]
    return RankCounts(
        thresholds=thresholds[::-1],
        true_positives=(positive.size - first)[::-1].astype(np.int64),
        false_positives=(negative.size - np.searchsorted(negative, thresholds, side="left"))[::-1].astype(np.int64),
        false_above=(negative.size - np.searchsorted(negative, thresholds, side="right"))[::-1].astype(np.int64),
        positives=positive.size,
        negatives=negative.size,
    )


def split_by_label(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """(scores of the anomalous items, scores of the normal items); labels are 0/1 or bool, same shape as scores."""
    flags = as_array(labels)
    values = as_array(scores)
    if flags.shape != values.shape:
        raise ValueError(f"labels and scores must have one shape, found {flags.shape} and {values.shape}")
    if flags.dtype != np.bool_:
        if not np.isin(flags, (0, 1)).all():
            raise ValueError("labels must be 0 (normal) or 1 (anomalous)")
        flags = flags.astype(bool)
    return values[flags], values[~flags]


def auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve in [0, 1], ties counted half; None when a class is missing (`why_undefined` says which).

    Args:
        labels: 0 (normal) / 1 (anomalous) or bool, any shape.
        scores: same shape, higher = more anomalous, no NaN.
    """
    return rank_counts(*split_by_label(labels, scores)).auroc


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision (sum of precision x recall steps) in (0, 1], arguments as `auroc`; None when a class is
    missing."""
    return rank_counts(*split_by_label(labels, scores)).average_precision


def why_undefined(metric: str, positives: int, negatives: int, item: str = "image") -> str | None:
    """Why "auroc", "ap", "max_dice" or "dice" has no value for these counts, in a few words; None if it has one."""
    if not positives and not negatives:
        return f"no {item} with a known label"
    if not positives:
        return f"no anomalous {item}"
    if not negatives and metric in RANKED:
        return f"no normal {item}"
    return None


def roc_curve(counts: RankCounts, max_points: int = 400) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """ROC polyline (false-positive rate, true-positive rate), from (0, 0) to (1, 1), thinned for plotting.

    All corners are kept when there are at most `max_points`; beyond that, points evenly spaced along the curve.
    None when a class is missing.
    """
    if not counts.positives or not counts.negatives:
        return None
    before = np.concatenate(([0], counts.true_positives[:-1]))
    fpr = np.stack([counts.false_above, counts.false_positives], 1).ravel() / counts.negatives
    tpr = np.stack([before, counts.true_positives], 1).ravel() / counts.positives
    fpr = np.concatenate(([0.0], fpr, [1.0]))
    tpr = np.concatenate(([0.0], tpr, [1.0]))
    moved = np.concatenate(([True], (np.diff(fpr) > 0) | (np.diff(tpr) > 0)))
    return _thin(fpr[moved], tpr[moved], max_points)


def precision_recall_curve(
    counts: RankCounts, max_points: int = 400
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Points (recall, precision), recall ascending, thinned for plotting; None without an anomalous item."""
    if not counts.positives:
        return None
    recall = counts.true_positives / counts.positives
    precision = counts.true_positives / (counts.true_positives + counts.false_positives)
    return _thin(recall, precision, max_points)


def _thin(
    x: NDArray[np.float64], y: NDArray[np.float64], max_points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(x) <= max_points:
        return x, y
    walked = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
    kept = np.unique(np.searchsorted(walked, np.linspace(0.0, walked[-1], max_points)).clip(0, len(x) - 1))
    kept[-1] = len(x) - 1
    return x[kept], y[kept]
