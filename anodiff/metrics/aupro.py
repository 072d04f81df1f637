"""AUPRO: mean overlap of the anomalous regions, integrated over the false-positive rate up to a limit.

Regions are the 8-connected (3-D: 26-connected) parts of all masks. At a threshold, PRO is the mean over regions of the
share of the region with map >= threshold, and FPR the share of all normal pixels, those of anomalous images included.
AUPRO = (1 / L) integral of PRO over FPR in [0, L], between thresholds and at L by straight lines (Bergmann et al.
2020). Everything is float64 from exact counts, equal scores enter together, so it is never above 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.areas import LinearGain, area
from anodiff.metrics.arrays import FloatArray, IntArray, map_and_mask
from anodiff.metrics.ranking import RankCounts, rank_counts
from anodiff.metrics.regions import regions_of_pixels

LIMIT = 0.3
STRICT_LIMIT = 0.05


def aupro(maps: Iterable[Any], masks: Iterable[Any], limit: float = LIMIT) -> float | None:
    """Exact AUPRO in [0, 1]; a constant map scores `limit` / 2. None as `why_no_aupro` says.

    Args:
        maps: one map an image (an array of images is read along its first axis), any shape, higher = more anomalous.
        masks: as many masks of the maps' shapes, bool or 0/1, or None for a normal image.
        limit: largest false-positive rate, in (0, 1].

    Raises:
        DataError: a mask has another shape than its map, or a map holds NaN.
    """
    positives, negatives, regions, sizes = [], [], [], []
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels, truth = map_and_mask(values, mask, f"image {i}")
        if truth is None or not truth.any():
            negatives.append(pixels.ravel())
            continue
        region, size = regions_of_pixels(truth)
        positives.append(pixels[truth])
        negatives.append(pixels[~truth])
        regions.append(region)
        sizes.append(size)
    if not positives:
        return None
    scores = np.concatenate(positives)
    weights = np.concatenate([region_weights(*pair) for pair in zip(regions, sizes, strict=True)])
    counts = rank_counts(scores, np.concatenate(negatives))
    return aupro_of_counts(counts, mass_at_thresholds(counts, scores, weights), limit)


def mass_at_thresholds(counts: RankCounts, scores: FloatArray, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight (K,) that enters at each of the counts' thresholds; scores and weights (n,) of all anomalous items."""
    ascending = counts.thresholds[::-1]
    entering = np.bincount(np.searchsorted(ascending, scores), weights, len(ascending))
    return entering[::-1].astype(np.float64, copy=False)


def aupro_of_counts(counts: RankCounts, mass: NDArray[np.float64], limit: float) -> float | None:
    """AUPRO from the pixels' counts and the region mass (K,), 1 / region size a pixel, at the counts' thresholds."""
    gain = LinearGain(limit)
    if not counts.positives or not counts.negatives:
        return None
    return float(area(gain, counts.false_above / counts.negatives, counts.false_positives / counts.negatives, mass))


def why_no_aupro(n_regions: int, negatives: int) -> str | None:
    """Why AUPRO has no value for so many regions and normal pixels, in a few words; None if it has one."""
    if not n_regions:
        return "no anomalous region"
    return None if negatives else "no normal pixel"


def region_weights(regions: IntArray, sizes: IntArray) -> NDArray[np.float64]:
    """1 / size of its region for each anomalous pixel (n,)."""
    return 1.0 / sizes[regions]
