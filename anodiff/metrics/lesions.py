"""Lesions as wholes: how many are found, at how many false detections an image, and how large they must be.

A lesion is a connected region of the mask. A detection is a connected region of (map > candidate threshold); its score
is its highest pixel. It finds every lesion that it touches, at its score; a detection that touches none is a false
one. FROC is the share of lesions found against false detections an image as the score to be reached falls. The
candidate threshold is set on normals (1 % false-positive pixels by custom), so no label is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anodiff.metrics.arrays import IntArray, map_and_mask
from anodiff.metrics.regions import label_regions, regions_of_pixels

#: false detections an image at which the sensitivity is averaged (CAMELYON 16)
FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Froc:
    """Free-response ROC.

    Attributes:
        thresholds: (K,) scores to be reached, descending.
        false_positives: (K,) false detections an image with score >= threshold.
        sensitivity: (K,) share of lesions found at score >= threshold.
        n_lesions, n_images: how many there are; images without a lesion count.
    """

    thresholds: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    n_lesions: int
    n_images: int

    def sensitivity_at(self, rate: float) -> float | None:
        """Share of lesions found at a threshold with at most `rate` false detections an image; None without lesions."""
        if not self.n_lesions:
            return None
        allowed = int(np.searchsorted(self.false_positives, rate, side="right"))
        return float(self.sensitivity[allowed - 1]) if allowed else 0.0

    def score(self, rates: Sequence[float] = FROC_RATES) -> float | None:
        """Mean of `sensitivity_at` over the rates, in [0, 1]; None without lesions."""
        found = [self.sensitivity_at(rate) for rate in rates]
        return float(np.mean([value for value in found if value is not None])) if self.n_lesions else None


class FrocCounter:
    """Collects detections image by image; memory grows with detections, not with pixels."""

    def __init__(self, candidate_threshold: float) -> None:
        self.candidate_threshold = float(candidate_threshold)
        self.n_images = 0
        self._found: list[NDArray[np.float64]] = []
        self._false: list[NDArray[np.float64]] = []

    def update(self, values: Any, mask: Any | None = None) -> None:
        """One image: map of any shape, and mask of that shape or None (no lesion).

        Raises:
            DataError: the mask has another shape, or the map holds NaN.
        """
        pixels, truth = map_and_mask(values, mask, f"image {self.n_images}")
        detections, n_detections = label_regions(pixels > self.candidate_threshold)
        scores = np.asarray(ndimage.maximum(pixels, detections, np.arange(1, n_detections + 1)), dtype=np.float64)
        self.n_images += 1
        touches = np.zeros(n_detections + 1, dtype=bool)
        if truth is not None and truth.any():
            lesions, n_lesions = label_regions(truth)
            best = np.full(n_lesions, -np.inf)
            np.maximum.at(best, lesions[truth] - 1, np.append(-np.inf, scores)[detections[truth]])
            touches[detections[truth]] = True
            self._found.append(best)
        self._false.append(scores[~touches[1:]])

    def result(self) -> Froc:
        """The curve of all images so far."""
        found, false = (np.sort(np.concatenate([*parts, np.array([])])) for parts in (self._found, self._false))
        thresholds = np.unique(np.concatenate([found[np.isfinite(found)], false]))[::-1]
        n_found, n_false = (values.size - np.searchsorted(values, thresholds) for values in (found, false))
        return Froc(
            thresholds, n_false / max(self.n_images, 1), n_found / max(found.size, 1), found.size, self.n_images
        )


def froc(maps: Iterable[Any], masks: Iterable[Any], candidate_threshold: float) -> Froc:
    """FROC of a set: maps of any shape, masks of their shapes or None; the threshold from normals.

    Raises:
        DataError: a mask has another shape than its map, or a map holds NaN.
    """
    counter = FrocCounter(candidate_threshold)
    for values, mask in zip(maps, masks, strict=True):
        counter.update(values, mask)
    return counter.result()


def lesion_overlaps(
    maps: Iterable[Any], masks: Iterable[Any], threshold: float
) -> tuple[NDArray[np.float64], IntArray]:
    """(share of each lesion with map > threshold (n,), its size in pixels (n,)) over all images of a set."""
    shares, sizes = [np.array([])], [np.array([], dtype=np.int64)]
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels, truth = map_and_mask(values, mask, f"image {i}")
        if truth is not None and truth.any():
            regions, size = regions_of_pixels(truth)
            shares.append(np.bincount(regions, pixels[truth] > np.float64(threshold), len(size)) / size)
            sizes.append(size)
    return np.concatenate(shares), np.concatenate(sizes)


def lesion_sensitivity(
    maps: Iterable[Any], masks: Iterable[Any], threshold: float, least_overlap: float = 0.0
) -> float | None:
    """Share of lesions of which more than `least_overlap` has map > threshold, in [0, 1]; None without lesions.

    Args:
        maps, masks: the set, as `froc`.
        threshold: fixed beforehand, on normals.
        least_overlap: share of a lesion in [0, 1); 0 counts a lesion as found by a single pixel.
    """
    shares, _ = lesion_overlaps(maps, masks, threshold)
    return float((shares > least_overlap).mean()) if shares.size else None


def sensitivity_by_size(
    maps: Iterable[Any],
    masks: Iterable[Any],
    threshold: float,
    edges: Sequence[float],
    *,
    least_overlap: float = 0.0,
    pixel_size: float = 1.0,
) -> dict[str, dict[str, float | int | None]]:
    """{size class: {sensitivity, n}} with `size_classes(edges)`, sizes being pixels x `pixel_size` (mm2 or mm3)."""
    shares, sizes = lesion_overlaps(maps, masks, threshold)
    classes = np.searchsorted(edges, sizes * pixel_size, side="right")
    out: dict[str, dict[str, float | int | None]] = {}
    for number, name in enumerate(size_classes(edges)):
        found = shares[classes == number] > least_overlap
        out[name] = {"sensitivity": float(found.mean()) if found.size else None, "n": int(found.size)}
    return out


def size_classes(edges: Sequence[float]) -> list[str]:
    """Names of the size classes between ascending edges: [10, 100] -> "<10", "10-100", ">=100".

    Raises:
        ValueError: there is no edge, or they do not ascend.
    """
    if not len(edges) or any(high <= low for low, high in pairwise(edges)):
        raise ValueError(f"edges of lesion sizes must ascend, found {list(edges)}")
    inner = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    return [f"<{edges[0]:g}", *inner, f">={edges[-1]:g}"]
