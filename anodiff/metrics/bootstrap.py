"""Bootstrap over groups: patients, clips or parts are drawn with replacement, with all their images and pixels.

Images of one patient resemble each other, so drawing images alone would give intervals that are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import DataError
from anodiff.metrics.pools import Pool

CHUNK = 128
LEAST_DEFINED = 0.5


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval [low, high], or None with the sentence `reason` saying why there is none."""

    low: float | None
    high: float | None
    reason: str | None = None

    def as_list(self) -> list[float] | None:
        """[low, high], or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def group_weights(n_groups: int, n_boot: int, seed: int) -> NDArray[np.int64]:
    """How often each group is drawn in each resample: (n_boot, n_groups), rows sum to n_groups; no hidden state."""
    return np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), size=n_boot)


def resampled_metrics(
    pool: Pool, metrics: tuple[str, ...], n_boot: int = 1000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Each metric of the pool's on n_boot resamples of the groups: (n_boot,), NaN where undefined.

    Image metrics are exact; pixel and region metrics are binned by rank, within the pool's `error_bound`.
    """
    out = {metric: np.full(n_boot, np.nan) for metric in metrics}
    if pool.group_positives.any():
        weights = group_weights(len(pool.groups), n_boot, seed)
        for start in range(0, n_boot, CHUNK):
            for metric, values in pool.resampled(metrics, weights[start : start + CHUNK]).items():
                out[metric][start : start + CHUNK] = values
    return out


def interval_of(values: NDArray[Any], n_groups: int) -> Interval:
    """The 2.5 and 97.5 percentiles of resampled values (n_boot,); NaN resamples (a class was not drawn) are left out.

    No interval with fewer than two groups, or when more than half of the resamples are undefined.
    """
    if n_groups < 2:
        return Interval(None, None, f"{n_groups} group: an interval over groups needs at least 2")
    defined = values[np.isfinite(values)]
    if len(defined) < LEAST_DEFINED * len(values) or not len(defined):
        return Interval(None, None, f"only {len(defined)} of {len(values)} resamples hold both classes")
    low, high = np.percentile(defined, (2.5, 97.5))
    return Interval(float(low), float(high))


def bootstrap_intervals(
    pool: Pool, metrics: tuple[str, ...] = ("auroc", "ap"), n_boot: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % intervals of the pool's metrics over n_boot resamples of its groups (Efron's percentile method)."""
    values = resampled_metrics(pool, metrics, n_boot, seed)
    return {metric: interval_of(values[metric], len(pool.groups)) for metric in metrics}


def paired_bootstrap(a: Pool, b: Pool, metric: str, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Difference `metric`(a) - `metric`(b) of two methods on the *same* images, groups drawn alike for both.

    Args:
        a, b: two ImagePools, PixelPools, CutPools or RegionPools of the same images, masks and groups.
        metric: "auroc", "ap" or "max_dice"; "dice" or "iou" of CutPools; "aupro", "aupro_005" or "aupimo" of
            RegionPools.

    Returns:
        {metric, a, b, difference, ci95: [low, high], p, n_groups, reason}: exact values of both methods and their
        difference; the percentile interval of the difference; the two-sided bootstrap p-value 2 min(P(d <= 0), P(d >=
        0)), counting the data themselves as one resample, so never 0. All None, with a reason, where the metric is
        undefined.

    Raises:
        DataError: the pools do not hold the same groups with the same numbers of anomalous and normal items.
    """
    same = a.groups == b.groups and np.array_equal(a.group_positives, b.group_positives)
    if not same or not np.array_equal(a.group_negatives, b.group_negatives):
        raise DataError(
            "A paired comparison needs both methods on the same images, masks and groups; found "
            f"{len(a.groups)} groups with {a.group_positives.sum()} anomalous and {a.group_negatives.sum()} normal "
            f"items, and {len(b.groups)} groups with {b.group_positives.sum()} and {b.group_negatives.sum()}."
        )
    value_a, value_b = a.value(metric), b.value(metric)
    result: dict[str, Any] = {"metric": metric, "a": value_a, "b": value_b, "difference": None, "ci95": None, "p": None}
    result |= {"n_groups": len(a.groups), "reason": None}
    if value_a is None or value_b is None:
        return result | {"reason": f"{metric} is undefined on these images"}
    result["difference"] = value_a - value_b
    resamples = [resampled_metrics(pool, (metric,), n_boot, seed)[metric] for pool in (a, b)]
    differences = resamples[0] - resamples[1]
    interval = interval_of(differences, len(a.groups))
    if interval.reason is not None:
        return result | {"reason": interval.reason}
    defined = differences[np.isfinite(differences)]
    tail = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return result | {"ci95": interval.as_list(), "p": min(1.0, 2.0 * (tail + 1) / (len(defined) + 1))}
