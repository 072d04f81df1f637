"""A test set's scores ordered once, so that every metric is exact and every resample of its groups is cheap.

`ImagePool` holds one score an image, `PixelPool` every pixel of every map. Both answer the same two questions: the
exact `value(metric)`, and `resampled(metrics, weights)`, the metrics when group g is drawn weights[b, g] times.
Metrics are "auroc", "ap" and "max_dice". `CutPool` answers them for "dice" and "iou" of pixels above a threshold,
`RegionPool` (regionpool.py) for AUPRO and AUPIMO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.metrics.overlap import dice, iou, max_dice
from anodiff.metrics.ranking import FloatArray, RankCounts, rank_counts

Counts = NDArray[np.float64]
T = TypeVar("T")


class Pool(Protocol):
    """What the bootstrap needs to know of a test set."""

    groups: tuple[str, ...]
    group_positives: NDArray[np.int64]
    group_negatives: NDArray[np.int64]

    def value(self, metric: str) -> float | None: ...

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Counts]: ...


def metric_value(counts: RankCounts, metric: str) -> float | None:
    """Exact "auroc", "ap" or "max_dice" of these counts; None where undefined."""
    if metric == "auroc":
        return counts.auroc
    if metric == "ap":
        return counts.average_precision
    if metric == "max_dice":
        best = max_dice(counts)
        return None if best is None else best[0]
    raise ValueError(f"metric must be auroc, ap or max_dice, found {metric!r}")


def metric_of_bins(metric: str, positive: Counts, negative: Counts) -> Counts:
    """The metric for counts (..., B), highest scores first, one bin = one tie -> (...,), NaN where undefined."""
    n_positive, n_negative = positive.sum(-1), negative.sum(-1)
    true_positives = positive.cumsum(-1)
    false_positives = negative.cumsum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "auroc":
            beaten = n_negative[..., None] - false_positives + negative / 2
            return (positive * beaten).sum(-1) / (n_positive * n_negative)
        if metric == "ap":
            precision = true_positives / np.maximum(true_positives + false_positives, 1)
            return np.where(n_negative > 0, (positive * precision).sum(-1) / n_positive, np.nan)
        if metric == "max_dice":
            overlap = 2 * true_positives / (true_positives + false_positives + n_positive[..., None])
            return np.where((n_positive > 0) & (n_negative > 0), overlap.max(-1), np.nan)
    raise ValueError(f"metric must be auroc, ap or max_dice, found {metric!r}")


def binning_error(metric: str, positive: Counts, negative: Counts, single: NDArray[np.bool_]) -> Counts:
    """A strict bound on |metric of the bins - exact metric| for counts (..., B), highest scores first -> (...,).

    With p, n the class counts in a bin, P, N their totals, T, F the cumulated counts after and T0, F0 those before it:
        AUROC      sum_b p n / (2 P N): the exact order inside a bin is worth between 0 and p n pairs, a tie gives half;
        AP         sum_b (p / P) max(T / (T + F0) - T / (T + F), T / (T + F) - (T0 + 1) / (T0 + 1 + F)): the precision
        when
                   all anomalous items of the bin come first, and at its first anomalous item when all normal ones do;
        max Dice   max_b 2 T / (T + F0 + P) less the bins' best, which is itself attained, so the error has one sign.
    Bins that hold one distinct value (`single`, (B,)) add nothing: their items are truly tied.
    """
    n_positive = np.maximum(positive.sum(-1), 1)
    true_positives = positive.cumsum(-1)
    false_positives = negative.cumsum(-1)
    false_before = false_positives - negative
    mixed = ~single
    if metric == "auroc":
        return (positive * negative * mixed).sum(-1) / (2 * n_positive * np.maximum(negative.sum(-1), 1))
    if metric == "ap":
        here = true_positives / np.maximum(true_positives + false_positives, 1)
        high = true_positives / np.maximum(true_positives + false_before, 1)
        first = true_positives - positive + 1
        low = first / (first + false_positives)
        return (positive * mixed * np.maximum(high - here, here - low)).sum(-1) / n_positive
    if metric == "max_dice":
        total = n_positive[..., None]
        attained = 2 * true_positives / (true_positives + false_positives + total)
        before = np.where(mixed, false_before, false_positives)
        return (2 * true_positives / (true_positives + before + total)).max(-1) - attained.max(-1)
    raise ValueError(f"metric must be auroc, ap or max_dice, found {metric!r}")


class ImagePool:
    """Image scores with labels and groups; resamples are exact.

    Args:
        labels: (n,) bool or 0/1, 1 = anomalous.
        scores: (n,) finite, higher = more anomalous.
        groups: (n,) names; images of one group are drawn together.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike, groups: Sequence[str]) -> None:
        anomalous = np.asarray(labels, dtype=bool)
        values = np.asarray(scores, dtype=np.float64)
        if not len(anomalous) == len(values) == len(groups):
            raise ValueError(f"{len(anomalous)} labels, {len(values)} scores and {len(groups)} groups must be as many")
        self.groups = tuple(sorted(set(groups)))
        number = {name: i for i, name in enumerate(self.groups)}
        group = np.array([number[name] for name in groups], dtype=np.int64)
        self.counts = rank_counts(values[anomalous], values[~anomalous])
        self.group_positives = np.bincount(group[anomalous], minlength=len(self.groups)).astype(np.int64)
        self.group_negatives = np.bincount(group[~anomalous], minlength=len(self.groups)).astype(np.int64)
        order = np.argsort(-values, kind="stable")
        self._anomalous, self._group = anomalous[order], group[order]
        ranked = values[order]
        self._tie_starts = np.flatnonzero(np.diff(ranked, prepend=np.inf) != 0)

    def value(self, metric: str) -> float | None:
        """Exact "auroc", "ap" or "max_dice"; None where undefined."""
        return metric_value(self.counts, metric)

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Counts]:
        """Each metric, (n_boot,), when group g is drawn weights[b, g] times; NaN where undefined."""
        counts = self.resample(weights)
        return {metric: metric_of_bins(metric, *counts) for metric in metrics}

    def resample(self, weights: NDArray[Any]) -> tuple[Counts, Counts]:
        """Counts (n_boot, distinct scores) of the anomalous and the normal images for weights (n_boot, n_groups)."""
        drawn = np.asarray(weights, dtype=np.float64)[:, self._group]
        positive = np.add.reduceat(drawn * self._anomalous, self._tie_starts, axis=1)
        return positive, np.add.reduceat(drawn, self._tie_starts, axis=1) - positive


class PixelPool:
    """Every pixel of a set of maps: exact values, and resamples of groups through rank-binned histograms.

    Bin edges are `bins` quantiles of the anomalous and `bins` of the normal pixel values; a value that spans several
    quantiles (a background of zeros) gets a bin of its own. So a bin either holds one distinct value or at most two
    quantile steps of each class, and the binned AUROC of the whole set is within 1 / (bins - 1) of the exact one;
    `error_bound` gives the strict bound of any metric and resample from its counts. Memory: the pixels once, in their
    dtype, plus 8 bytes a group and bin; while the pool is built, the pixels twice.

    Args:
        positives: for each image the values of its anomalous pixels, any shape, no NaN.
        negatives: for each image the values of its normal pixels.
        groups: for each image the name of its group.
        bins: quantiles a class.

    Attributes:
        positives, negatives: for each image its values, ascending.
        group_of_image: for each image the number of its group.
        edges: (B,) left edges of the bins, ascending.
        negative_bins: (n_groups, B) normal pixels, highest bin first.
        single_valued: (B,) whether all pixels of a bin have one value, highest bin first.
    """

    def __init__(
        self, positives: Sequence[FloatArray], negatives: Sequence[FloatArray], groups: Sequence[str], bins: int = 2048
    ) -> None:
        if not len(positives) == len(negatives) == len(groups):
            raise ValueError(f"{len(positives)}, {len(negatives)} and {len(groups)} images must be as many")
        self.groups = tuple(sorted(set(groups)))
        number = {name: i for i, name in enumerate(self.groups)}
        self.group_of_image = np.array([number[name] for name in groups], dtype=np.int64)
        self.positives = [np.sort(values, axis=None) for values in positives]
        self.negatives = [np.sort(values, axis=None) for values in negatives]
        pooled = [_pooled(self.positives), _pooled(self.negatives)]
        self.counts = rank_counts(*pooled)
        self.edges = _edges(pooled, bins)
        self.single_valued = _single_valued(pooled, self.edges)
        del pooled
        self._positive_bins = self._histograms(self.positives)
        self.negative_bins = self._histograms(self.negatives)
        self.group_positives = self._positive_bins.sum(1, dtype=np.int64)
        self.group_negatives = self.negative_bins.sum(1, dtype=np.int64)

    def value(self, metric: str) -> float | None:
        """Exact "auroc", "ap" or "max_dice" over all pixels; None where undefined."""
        return metric_value(self.counts, metric)

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Counts]:
        """Each metric, (n_boot,), when group g is drawn weights[b, g] times; NaN where undefined."""
        counts = self.resample(weights)
        return {metric: metric_of_bins(metric, *counts) for metric in metrics}

    def resample(self, weights: NDArray[Any]) -> tuple[Counts, Counts]:
        """Counts (n_boot, bins) of the anomalous and the normal pixels for weights (n_boot, n_groups)."""
        drawn = np.asarray(weights, dtype=np.float64)
        return weighted(drawn, self._positive_bins), weighted(drawn, self.negative_bins)

    def error_bound(self, metric: str, positive: Counts, negative: Counts) -> Counts:
        """`binning_error` of counts that `resample` gave."""
        return binning_error(metric, positive, negative, self.single_valued)

    def above(self, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each group (anomalous pixels above the threshold, all pixels above it), (n_groups,) each."""
        hits = np.zeros(len(self.groups), dtype=np.int64)
        predicted = np.zeros(len(self.groups), dtype=np.int64)
        for group, positive, negative in zip(self.group_of_image, self.positives, self.negatives, strict=True):
            found = positive.size - np.searchsorted(positive, threshold, side="right")
            hits[group] += found
            predicted[group] += found + negative.size - np.searchsorted(negative, threshold, side="right")
        return hits, predicted

    def _histograms(self, images: Sequence[FloatArray]) -> NDArray[np.uint32]:
        bins = np.zeros((len(self.groups), len(self.edges)), dtype=np.uint32)
        for group, values in zip(self.group_of_image, images, strict=True):
            starts = np.searchsorted(values, self.edges)
            bins[group] += np.diff(starts, append=values.size)[::-1].astype(np.uint32)
        return bins


class CutPool:
    """Pooled "dice" and "iou" of value > threshold, which was set on normals; resamples are exact.

    Attributes:
        hits, predicted: (n_groups,) anomalous pixels above the threshold, all pixels above it.
    """

    def __init__(self, pixels: PixelPool, threshold: float) -> None:
        self.groups = pixels.groups
        self.group_positives, self.group_negatives = pixels.group_positives, pixels.group_negatives
        self.hits, self.predicted = pixels.above(threshold)

    def value(self, metric: str) -> float | None:
        """Over all pixels; None without an anomalous one."""
        counts = int(self.hits.sum()), int(self.predicted.sum()), int(self.group_positives.sum())
        return _cut_metric(metric, dice(*counts), iou(*counts))

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Counts]:
        """Each metric, (n_boot,), when group g is drawn weights[b, g] times; NaN where no anomalous pixel is drawn."""
        positives = (weights @ self.group_positives).astype(np.float64)
        positives[positives == 0] = np.nan
        dices = 2 * (weights @ self.hits) / (weights @ self.predicted + positives)
        return {metric: _cut_metric(metric, dices, dices / (2 - dices)) for metric in metrics}


def _cut_metric(metric: str, dices: T, ious: T) -> T:
    if metric not in ("dice", "iou"):
        raise ValueError(f"metric must be dice or iou, found {metric!r}")
    return dices if metric == "dice" else ious


def _pooled(images: Sequence[FloatArray]) -> FloatArray:
    values = np.concatenate(images) if images else np.array([], dtype=np.float32)
    values.sort()
    return values


def _edges(pooled: Sequence[FloatArray], bins: int) -> FloatArray:
    """Left edges of the bins, ascending; the first is the smallest value."""
    edges: list[FloatArray] = []
    for values in pooled:
        if values.size:
            picked = values[np.linspace(0, values.size - 1, min(bins, values.size)).round().astype(np.int64)]
            repeated = picked[1:][picked[1:] == picked[:-1]]
            edges += [picked, np.nextafter(repeated, np.inf, dtype=values.dtype), values[:1]]
    return np.unique(np.concatenate(edges)) if edges else np.array([], dtype=np.float32)


def _single_valued(pooled: Sequence[FloatArray], edges: FloatArray) -> NDArray[np.bool_]:
    """For each bin, highest first, whether all its pixels have one value."""
    low = np.full(len(edges), np.inf)
    high = np.full(len(edges), -np.inf)
    for values in pooled:
        starts = np.searchsorted(values, edges)
        ends = np.append(starts[1:], values.size)
        filled = ends > starts
        low[filled] = np.minimum(low[filled], values[starts[filled]])
        high[filled] = np.maximum(high[filled], values[ends[filled] - 1])
    return (low >= high)[::-1]


def weighted(weights: Counts, bins: NDArray[Any], columns: int = 512) -> Counts:
    """weights (n_boot, n_groups) @ bins (n_groups, B) in float64, without a float64 copy of all bins."""
    out = np.empty((len(weights), bins.shape[1]))
    for start in range(0, bins.shape[1], columns):
        out[:, start : start + columns] = weights @ bins[:, start : start + columns].astype(np.float64)
    return out
