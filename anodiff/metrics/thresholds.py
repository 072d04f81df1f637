"""Pixel thresholds set on normal images at a stated share of false positives, never on the test labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from anodiff.errors import DataError
from anodiff.metrics.arrays import as_array

RATES = (0.01, 0.05, 0.10)


def threshold_at_fpr(normal_scores: Any, rate: float) -> float:
    """The smallest of the normal scores with at most the share `rate` of them strictly above it.

    Args:
        normal_scores: scores or pixels of normal images, any shape, none of them NaN.
        rate: in [0, 1); predict anomalous where the score is above the threshold.

    Raises:
        DataError: there is no normal score.
        ValueError: the rate is not in [0, 1), or a score is NaN.
    """
    scores = np.sort(as_array(normal_scores), axis=None)
    if not scores.size:
        raise DataError("A threshold at a false-positive rate needs normal scores, found none.")
    if np.isnan(scores[-1]):
        raise ValueError("scores must not be NaN")
    return float(scores[scores.size - 1 - allowed_above(rate, scores.size)])


def allowed_above(rate: float, count: int) -> int:
    """How many of `count` normal scores a share `rate` is, rounded down; the rate must lie in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"a false-positive rate must lie in [0, 1), found {rate}")
    # 0.05 is not a binary fraction: without the slack, 5 % of 100 could come out as 4.
    return min(math.floor(rate * count + 1e-6), count - 1)


def thresholds_on_normals(normal_maps: Iterable[Any], rates: Sequence[float] = RATES) -> dict[str, float]:
    """{"fpr1": threshold, "fpr5": ..., "fpr10": ...} over all pixels of normal maps, for `evaluate_pools`.

    Raises:
        DataError: there is no normal pixel.
    """
    pixels = [as_array(values).ravel() for values in normal_maps]
    pooled = np.concatenate(pixels) if pixels else np.array([])
    return {name_of_rate(rate): threshold_at_fpr(pooled, rate) for rate in rates}


def name_of_rate(rate: float) -> str:
    """fpr5 for 0.05, fpr0.5 for 0.005."""
    return f"fpr{100 * rate:g}"
