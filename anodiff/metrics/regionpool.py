"""Regions and images of a test set as wholes: AUPRO and AUPIMO, exact and on resamples of the groups.

A resample redraws everything: the regions, the normal pixels that set the false-positive rate of AUPRO, and the normal
images that set that of AUPIMO. Both are means over anomalous pixels (areas.py), so counts by group and bin are all that
a resample needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.areas import LinearGain, LogGain, Rates, area, area_error
from anodiff.metrics.arrays import FloatArray, IntArray
from anodiff.metrics.aupimo import BOUNDS, Aupimo, aupimo_of, normal_tail, why_no_aupimo
from anodiff.metrics.aupro import (
    LIMIT,
    STRICT_LIMIT,
    aupro_of_counts,
    mass_at_thresholds,
    region_weights,
    why_no_aupro,
)
from anodiff.metrics.pools import Counts, PixelPool, weighted

LIMITS = {"aupro": LIMIT, "aupro_005": STRICT_LIMIT}
TAIL_BINS = 1024
BODY_BINS = 256
#: how far beyond the range of AUPIMO the bins stay fine: a resample may miss the brightest normal images
SLACK = 8.0


class RegionPool:
    """The anomalous regions of a set of maps beside its pixels; metrics "aupro", "aupro_005" (limit 0.05), "aupimo".

    Args:
        pixels: the pixels of the same images, in the same order.
        anomalous: for each image the values of its anomalous pixels, unsorted.
        regions: for each image the region 0 ... n-1 of each of those pixels.
        normal: for each image whether it is a normal one.
        ids: for each image its name.

    Attributes:
        groups, group_positives, group_negatives: as of the pixels.
        group_regions: (n_groups,) regions of each group.
        anomalous_ids: names of the images with anomalous pixels, in order.
        sizes: (n_regions,) pixels of each region.
    """

    def __init__(
        self,
        pixels: PixelPool,
        anomalous: Sequence[FloatArray],
        regions: Sequence[IntArray],
        normal: Sequence[bool],
        ids: Sequence[str],
    ) -> None:
        self._pixels = pixels
        self.groups = pixels.groups
        self.group_positives, self.group_negatives = pixels.group_positives, pixels.group_negatives
        self.normal = np.array(normal, dtype=bool)
        self._anomalous = [i for i, scores in enumerate(anomalous) if scores.size]
        self._normal = [i for i, scores in enumerate(pixels.negatives) if normal[i] and scores.size]
        self._scores = [anomalous[i] for i in self._anomalous]
        self._regions = [regions[i] for i in self._anomalous]
        self._sizes = [np.bincount(region) for region in self._regions]
        self.anomalous_ids = tuple(ids[i] for i in self._anomalous)
        self.sizes = np.concatenate([np.array([], dtype=np.int64), *self._sizes])
        n_regions = np.array([len(size) for size in self._sizes], dtype=np.int64)
        self._group_of_region = np.repeat(pixels.group_of_image[self._anomalous], n_regions)
        self.group_regions = np.bincount(self._group_of_region, minlength=len(self.groups)).astype(np.int64)

    def value(self, metric: str) -> float | None:
        """Exact "aupro", "aupro_005" or mean "aupimo"; None as `why_undefined` says."""
        return self.aupimo.mean if metric == "aupimo" else self.aupro(_limit(metric))

    def aupro(self, limit: float) -> float | None:
        """Exact AUPRO up to any limit; None as `why_undefined` says."""
        return aupro_of_counts(self._pixels.counts, self._region_mass, limit)

    @cached_property
    def aupimo(self) -> Aupimo:
        """AUPIMO of each image with anomalous pixels, in the order of `anomalous_ids`."""
        return aupimo_of(self._scores, self._normal_scores)

    def why_undefined(self, metric: str) -> str | None:
        """Why "aupro", "aupro_005" or "aupimo" has no value, in a few words; None if it has one."""
        if metric == "aupimo":
            smallest = min((scores.size for scores in self._normal_scores), default=0)
            return why_no_aupimo(len(self._anomalous), len(self._normal), smallest)
        return why_no_aupro(len(self.sizes), self._pixels.counts.negatives)

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Counts]:
        """Each metric, (n_boot,), when group g is drawn weights[b, g] times; NaN where undefined."""
        return {metric: area(gain, *entry) for metric, gain, *entry, _ in self._entries(metrics, weights)}

    def error_bound(self, metric: str, weights: NDArray[Any]) -> Counts:
        """A strict bound on |resampled - exact| for each row of weights, (n_boot,)."""
        ((_, gain, before, after, mass, single),) = self._entries((metric,), weights)
        return area_error(gain, before, after, mass, single)

    def found(self, threshold: float) -> NDArray[np.bool_]:
        """Whether any pixel of each region lies above the threshold, (n_regions,)."""
        hits = [
            np.bincount(region, scores > np.float64(threshold), len(size)) > 0
            for scores, region, size in zip(self._scores, self._regions, self._sizes, strict=True)
        ]
        return np.concatenate([np.array([], dtype=bool), *hits])

    def found_by_group(self, threshold: float) -> IntArray:
        """How many regions of each group have a pixel above the threshold, (n_groups,)."""
        found = self._group_of_region[self.found(threshold)]
        return np.bincount(found, minlength=len(self.groups)).astype(np.int64)

    def scores_of(self, chosen: NDArray[np.bool_]) -> FloatArray:
        """All pixels of the chosen regions, (n,); chosen is (n_regions,)."""
        ends = np.cumsum([len(size) for size in self._sizes])
        parts = zip(self._scores, self._regions, np.split(chosen, ends[:-1]), strict=True) if len(ends) else ()
        return np.concatenate(
            [np.array([], dtype=np.float32), *(scores[kept[region]] for scores, region, kept in parts)]
        )

    @cached_property
    def _normal_scores(self) -> list[FloatArray]:
        return [self._pixels.negatives[i] for i in self._normal]

    @cached_property
    def _weights(self) -> list[NDArray[np.float64]]:
        return [region_weights(*pair) for pair in zip(self._regions, self._sizes, strict=True)]

    @cached_property
    def _region_mass(self) -> NDArray[np.float64]:
        none = np.array([])
        scores, weights = (np.concatenate([none, *parts]) for parts in (self._scores, self._weights))
        return mass_at_thresholds(self._pixels.counts, scores, weights)

    @cached_property
    def _region_bins(self) -> NDArray[np.float32]:
        return self._binned(self._pixels.edges, self._anomalous, self._scores, self._weights)

    @cached_property
    def _tail_edges(self) -> FloatArray:
        """Bins as fine as single pixels where F is near the range of AUPIMO, and a few quantiles below."""
        tail = normal_tail(self._normal_scores, SLACK * BOUNDS[1]).values
        edges = [part for part in (_thinned(tail, TAIL_BINS), _thinned(self._pixels.edges, BODY_BINS)) if part.size]
        # A value's right neighbour as an edge gives the value a bin of its own.
        edges += [np.nextafter(part, np.inf, dtype=part.dtype) for part in edges[:1]]
        return np.unique(np.concatenate([*edges, self._pixels.edges[:1]]))

    @cached_property
    def _tail_bins(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Normal and anomalous images by group and bin, a pixel being worth 1 / its image's pixels; single bins."""
        edges, normals = self._tail_edges, self._normal_scores
        normal = self._binned(edges, self._normal, normals, [np.full(s.size, 1.0 / s.size) for s in normals])
        mass = self._binned(edges, self._anomalous, self._scores, [np.full(s.size, 1.0 / s.size) for s in self._scores])
        following = np.nextafter(edges, np.inf, dtype=edges.dtype)
        return normal, mass, np.append(following[:-1] == edges[1:], False)[::-1]

    def _entries(
        self, metrics: tuple[str, ...], weights: NDArray[Any]
    ) -> list[tuple[str, LinearGain | LogGain, Rates, Rates, Rates, NDArray[np.bool_]]]:
        """For each metric its gain, the rates before and after each bin, the bins' mass, and which are single."""
        drawn = np.asarray(weights, dtype=np.float64)
        out: list[tuple[str, LinearGain | LogGain, Rates, Rates, Rates, NDArray[np.bool_]]] = []
        if any(metric in LIMITS for metric in metrics):
            ramp = _ramp(weighted(drawn, self._pixels.negative_bins))
            mass = weighted(drawn, self._region_bins)
            out = [
                (metric, LinearGain(_limit(metric)), *ramp, mass, self._pixels.single_valued)
                for metric in metrics
                if metric != "aupimo"
            ]
        if "aupimo" in metrics:
            normal, anomalous, single = self._tail_bins
            ramp = _ramp(weighted(drawn, normal))
            out.append(("aupimo", LogGain(*BOUNDS), *ramp, weighted(drawn, anomalous), single))
        return out

    def _binned(
        self, edges: FloatArray, images: Sequence[int], scores: Sequence[FloatArray], weights: Sequence[Rates]
    ) -> NDArray[np.float32]:
        """Summed weights (n_groups, B), highest bin first."""
        bins = np.zeros((len(self.groups), len(edges)), dtype=np.float32)
        for image, values, weight in zip(images, scores, weights, strict=True):
            inside = np.searchsorted(edges, values, side="right") - 1
            bins[self._pixels.group_of_image[image]] += np.bincount(inside, weight, len(edges))[::-1]
        return bins


def _limit(metric: str) -> float:
    if metric not in LIMITS:
        raise ValueError(f"metric must be {', '.join(LIMITS)} or aupimo, found {metric!r}")
    return LIMITS[metric]


def _ramp(false: Counts) -> tuple[Rates, Rates]:
    """(rate before, rate after) each bin (..., B) from the weight of normal pixels in it; NaN without any."""
    with np.errstate(invalid="ignore", divide="ignore"):
        after = np.minimum(false.cumsum(-1) / false.sum(-1, keepdims=True), 1.0)
    return np.concatenate([np.zeros_like(after[..., :1]), after[..., :-1]], axis=-1), after


def _thinned(values: FloatArray, most: int) -> FloatArray:
    return values if values.size <= most else values[np.linspace(0, values.size - 1, most).round().astype(np.int64)]
