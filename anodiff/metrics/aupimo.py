"""AUPIMO: each anomalous image's recall at false-positive rates so low that normal images stay nearly clean.

Thresholds come from normal images only: F(threshold) is the mean over normal images of the share of the image at or
above it. For an anomalous image, AUPIMO = (1 / ln(U / L)) integral of its recall over ln F in [L, U], by default
[1e-5, 1e-4] (Bertoldo et al. 2024, arXiv 2401.01984). It is a number an image: look at their spread, not only at the
mean. The paper's code samples thresholds on a line; this one uses every normal pixel that matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.areas import LogGain, Rates
from anodiff.metrics.arrays import FloatArray, map_and_mask

BOUNDS = (1e-5, 1e-4)


@dataclass(frozen=True)
class Aupimo:
    """AUPIMO of each anomalous image, (n,) in [0, 1] in the images' order, or none of them with the `reason`."""

    per_image: NDArray[np.float64]
    reason: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the anomalous images; None where undefined."""
        return float(self.per_image.mean()) if self.per_image.size else None

    def percentile(self, percent: float) -> float | None:
        """A percentile of the anomalous images' values; None where undefined."""
        return float(np.percentile(self.per_image, percent)) if self.per_image.size else None


@dataclass(frozen=True)
class NormalTail:
    """The highest scores of the normal images: all at which F may still be below a rate.

    Attributes:
        values: (K,) distinct scores, ascending.
        at: (K,) F(score >= value).
        above: (K,) F(score > value).
    """

    values: FloatArray
    at: Rates
    above: Rates

    def entry(self, scores: FloatArray) -> tuple[Rates, Rates]:
        """(F just before, F just after) each score is passed; below the tail both are at least the rate it was cut
        at."""
        i = np.searchsorted(self.values, scores)
        after = np.append(self.at, 0.0)[i]
        tied = np.append(self.values, np.nan)[i] == scores
        return np.where(tied, np.append(self.above, 0.0)[i], after), after


def normal_tail(normals: Sequence[FloatArray], rate: float) -> NormalTail:
    """The tail of normal images (at least one, as ascending scores) down to where F is surely above `rate`.

    The k-th highest score of one image alone makes F >= k / (images x its pixels), so nothing below the highest of
    these order statistics can have F < rate; sorting every normal pixel is not needed.
    """
    cut = max((_bounding(scores, rate * len(normals) * scores.size) for scores in normals), default=-np.inf)
    kept = [scores[np.searchsorted(scores, cut) :] for scores in normals]
    if not kept:
        return NormalTail(np.array([]), np.array([]), np.array([]))
    weights = np.concatenate(
        [np.full(tail.size, 1.0 / (len(normals) * scores.size)) for tail, scores in zip(kept, normals, strict=True)]
    )
    scores = np.concatenate(kept)
    order = np.argsort(scores, kind="stable")
    values, starts = np.unique(scores[order], return_index=True)
    at = np.minimum(np.cumsum(np.add.reduceat(weights[order], starts)[::-1])[::-1], 1.0)
    return NormalTail(values, at, np.append(at[1:], 0.0))


def aupimo_of(
    anomalous: Sequence[FloatArray], normals: Sequence[FloatArray], bounds: tuple[float, float] = BOUNDS
) -> Aupimo:
    """AUPIMO from the anomalous pixels of each anomalous image and the ascending pixels of each normal image."""
    gain = LogGain(*bounds)
    filled = [scores for scores in normals if scores.size]
    reason = why_no_aupimo(len(anomalous), len(filled), min((s.size for s in filled), default=0), bounds)
    if reason is not None:
        return Aupimo(np.array([]), reason)
    tail = normal_tail(filled, bounds[1])
    return Aupimo(np.array([gain(*tail.entry(scores)).mean() for scores in anomalous]))


def aupimo(maps: Iterable[Any], masks: Iterable[Any], bounds: tuple[float, float] = BOUNDS) -> Aupimo:
    """Exact AUPIMO of a set; arguments as `aupro`, an image whose mask is None or empty being normal.

    Raises:
        DataError: a mask has another shape than its map, or a map holds NaN.
        ValueError: not 0 < low < high <= 1.
    """
    anomalous, normals = [], []
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels, truth = map_and_mask(values, mask, f"image {i}")
        if truth is None or not truth.any():
            normals.append(np.sort(pixels, axis=None))
        else:
            anomalous.append(pixels[truth])
    return aupimo_of(anomalous, normals, bounds)


def why_no_aupimo(n_anomalous: int, n_normal: int, smallest: int, bounds: tuple[float, float] = BOUNDS) -> str | None:
    """Why AUPIMO has no value for so many anomalous and normal images, the smallest normal one of so many pixels.

    None if it has one. A normal pixel must be worth no more than the lower rate, or the range lies below what the
    images can show.
    """
    if not n_anomalous:
        return "no image with anomalous pixels"
    if not n_normal:
        return "no normal image with a map"
    step = 1.0 / (n_normal * smallest)
    if step > bounds[0]:
        return f"too few normal pixels: one of them is a false-positive rate of {step:.1e}, above {bounds[0]:g}"
    return None


def _bounding(scores: FloatArray, pixels: float) -> float:
    """The score of which an image has more than `pixels` at or above; minus infinity where it has not that many."""
    k = int(pixels) + 1
    return float(scores[-k]) if k <= scores.size else -np.inf
