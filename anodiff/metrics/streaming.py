"""Pixel metrics image by image: exact, or in constant memory for more pixels than fit. One interface:

    metrics = StreamingMetrics()            # or ExactMetrics()
    for values, mask in test_set:
        metrics.update(values, mask)        # mask None or empty = a normal image
    metrics.value("aupro"), metrics.error_bound("aupro")

METRICS names what both know; `thresholds` set on normals add dice_at_<name> and iou_at_<name>, exact in both. An array
of image scores with its labels is an image as well: `update(scores, labels)` gives AUROC and AP at the image level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.areas import Gain, LinearGain, LogGain, Rates, area, area_error
from anodiff.metrics.arrays import BoolArray, FloatArray, IntArray, map_and_mask
from anodiff.metrics.aupimo import BOUNDS, why_no_aupimo
from anodiff.metrics.aupro import LIMIT, STRICT_LIMIT, region_weights, why_no_aupro
from anodiff.metrics.overlap import dice, iou
from anodiff.metrics.pools import PixelPool, binning_error, metric_of_bins
from anodiff.metrics.ranking import RANKED, why_undefined
from anodiff.metrics.regionpool import RegionPool
from anodiff.metrics.regions import regions_of_pixels
from anodiff.metrics.thresholds import allowed_above

AREAS: dict[str, Gain] = {"aupro": LinearGain(LIMIT), "aupro_005": LinearGain(STRICT_LIMIT), "aupimo": LogGain(*BOUNDS)}
METRICS = (*RANKED, *AREAS)
CHUNK = 1 << 24


class PixelMetrics(ABC):
    """What both forms share; Dice and IoU at thresholds fixed beforehand are counted as the images come."""

    def __init__(self, thresholds: Mapping[str, float] | None = None) -> None:
        self.thresholds = dict(thresholds or {})
        self._above = {name: [0, 0] for name in self.thresholds}
        self.n_positive = 0
        self.n_negative = 0

    @abstractmethod
    def update(self, values: Any, mask: Any | None = None) -> None:
        """Add an image: map of any shape, higher = more anomalous; mask of that shape, None or empty = normal.

        Raises:
            DataError: the mask has another shape, or the map holds NaN.
        """

    @abstractmethod
    def value(self, metric: str) -> float | None:
        """A metric of all images so far; None as `why_undefined` says."""

    @abstractmethod
    def error_bound(self, metric: str) -> float:
        """Largest possible |value - exact|."""

    @abstractmethod
    def why_undefined(self, metric: str) -> str | None:
        """Why a metric is None, in a few words; None if it has a value."""

    @property
    def names(self) -> tuple[str, ...]:
        """All metrics that `value` knows."""
        return (*METRICS, *(f"{what}_at_{name}" for name in self.thresholds for what in ("dice", "iou")))

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        return {name: self.value(name) for name in self.names}

    def _count(self, positive: FloatArray, negative: FloatArray) -> None:
        self.n_positive += positive.size
        self.n_negative += negative.size
        for name, threshold in self.thresholds.items():
            exact = np.float64(threshold)
            self._above[name][0] += int(np.count_nonzero(positive > exact))
            self._above[name][1] += int(np.count_nonzero(negative > exact))

    def _overlap(self, metric: str) -> float | None:
        what, _, name = metric.partition("_at_")
        if metric not in self.names:
            raise ValueError(f"metric must be one of {', '.join(self.names)}, found {metric!r}")
        hits, false = self._above[name]
        return (dice if what == "dice" else iou)(hits, hits + false, self.n_positive)


class ExactMetrics(PixelMetrics):
    """Exact values; keeps every pixel."""

    def __init__(self, thresholds: Mapping[str, float] | None = None) -> None:
        super().__init__(thresholds)
        self._positives: list[FloatArray] = []
        self._negatives: list[FloatArray] = []
        self._regions: list[IntArray] = []
        self._pooled: tuple[PixelPool, RegionPool] | None = None

    def update(self, values: Any, mask: Any | None = None) -> None:
        pixels, truth = map_and_mask(values, mask, f"image {len(self._positives)}")
        truth = np.zeros(pixels.shape, dtype=bool) if truth is None else truth
        self._positives.append(pixels[truth])
        self._negatives.append(pixels[~truth])
        self._regions.append(regions_of_pixels(truth)[0])
        self._count(self._positives[-1], self._negatives[-1])
        self._pooled = None

    def value(self, metric: str) -> float | None:
        """The exact metric; None as `why_undefined` says."""
        if metric in RANKED:
            return self._pools()[0].value(metric)
        return self._pools()[1].value(metric) if metric in AREAS else self._overlap(metric)

    def error_bound(self, metric: str) -> float:
        """0: exact."""
        return 0.0

    def why_undefined(self, metric: str) -> str | None:
        if metric in AREAS:
            return self._pools()[1].why_undefined(metric)
        return why_undefined(metric, self.n_positive, self.n_negative, "pixel")

    def _pools(self) -> tuple[PixelPool, RegionPool]:
        if self._pooled is None:
            names = [str(i) for i in range(len(self._positives))]
            pixels = PixelPool(self._positives, self._negatives, ["all"] * len(names), bins=2)
            normal = [not scores.size for scores in self._positives]
            self._pooled = pixels, RegionPool(pixels, self._positives, self._regions, normal, names)
        return self._pooled


class StreamingMetrics(PixelMetrics):
    """Constant memory: histograms over the `bits` leading bits of the float32 scores, in their order.

    Floats sorted as their bits are sorted as numbers, so no range has to be known: bins have one relative width,
    2^(9 - bits) of the score (1.2e-4 at 22 bits), on both sides of zero. 49 bytes a bin, 0.2 GB at 22 bits,
    however many pixels; `value` needs up to as much again.

    The error is bounded by what shares a bin, whatever the scores: |value - exact| <= `error_bound(metric)`, computed
    from the counts. For AUPRO it is at most (the largest bin's share of normal pixels) / limit. Bins that hold a single
    distinct score (8-bit maps, backgrounds of zeros) add nothing. Scores squeezed into a range much narrower than their
    size (0.9990 ... 0.9999) share few bins; the bound says so, and subtracting a constant first cures it.

    Args:
        thresholds: name -> threshold, set on normals.
        bits: 10 to 26.
    """

    def __init__(self, thresholds: Mapping[str, float] | None = None, bits: int = 22) -> None:
        super().__init__(thresholds)
        if not 10 <= bits <= 26:
            raise ValueError(f"bits must lie between 10 and 26, found {bits}")
        self.bits = bits
        self.n_images = 0
        self.n_regions = 0
        self.n_anomalous = 0
        self.n_normal = 0
        self._smallest_normal = 0
        size = 1 << bits
        self._positive = np.zeros(size, dtype=np.int64)
        self._negative = np.zeros(size, dtype=np.int64)
        self._region_mass = np.zeros(size)
        self._image_mass = np.zeros(size)
        self._normal_mass = np.zeros(size)
        self._first = np.zeros(size)
        self._mixed = np.zeros(size, dtype=bool)
        self._filled: IntArray | None = None

    def update(self, values: Any, mask: Any | None = None) -> None:
        pixels, truth = map_and_mask(values, mask, f"image {self.n_images}")
        self.n_images += 1
        self._filled = None
        if truth is None or not truth.any():
            self.n_normal += bool(pixels.size)
            self._smallest_normal = _smaller(self._smallest_normal, pixels.size)
            self._count(pixels.ravel()[:0], pixels)
            self._fill(pixels.ravel(), self._negative, 1.0 / max(pixels.size, 1), self._normal_mass)
            return
        positive, negative = pixels[truth], pixels[~truth]
        regions, sizes = regions_of_pixels(truth)
        self.n_anomalous += 1
        self.n_regions += len(sizes)
        self._count(positive, negative)
        self._fill(positive, self._positive, 1.0 / positive.size, self._image_mass)
        self._fill(negative, self._negative)
        np.add.at(self._region_mass, leading_bits(positive, self.bits), region_weights(regions, sizes))

    def value(self, metric: str) -> float | None:
        """The metric, within `error_bound` of the exact one; None as `why_undefined` says."""
        if metric not in METRICS:
            return self._overlap(metric)
        if self.why_undefined(metric) is not None:
            return None
        if metric in AREAS:
            before, after, mass, _ = self._entry(metric)
            return float(area(AREAS[metric], before, after, mass))
        positive, negative, _ = self._bins()
        return float(metric_of_bins(metric, positive, negative))

    def error_bound(self, metric: str) -> float:
        """Largest possible |value - exact| for what was seen; 0 for what is counted exactly or undefined."""
        if metric not in METRICS or self.why_undefined(metric) is not None:
            return 0.0
        if metric in AREAS:
            return float(area_error(AREAS[metric], *self._entry(metric)))
        return float(binning_error(metric, *self._bins()))

    def why_undefined(self, metric: str) -> str | None:
        if metric == "aupimo":
            return why_no_aupimo(self.n_anomalous, self.n_normal, self._smallest_normal)
        if metric in AREAS:
            return why_no_aupro(self.n_regions, self.n_negative)
        return why_undefined(metric, self.n_positive, self.n_negative, "pixel")

    def threshold_at_fpr(self, rate: float) -> float | None:
        """A threshold above which at most the share `rate` of the normal pixels lies, at most one bin too high; None
        without normal pixels. Feed it normal images for a threshold set on normals."""
        if not self.n_negative:
            return None
        above = self.n_negative - np.cumsum(self._negative)
        first = int(np.argmax(above <= allowed_above(rate, self.n_negative)))
        return self._next_edge(first) if self._mixed[first] else float(self._first[first])

    def merge(self, other: StreamingMetrics) -> None:
        """Add what another process saw.

        Raises:
            ValueError: its bits or thresholds differ.
        """
        if other.bits != self.bits or other.thresholds != self.thresholds:
            raise ValueError("only metrics of the same bits and thresholds can be merged")
        self._filled = None
        seen, theirs = ((each._positive + each._negative) > 0 for each in (self, other))
        self._mixed |= other._mixed | (seen & theirs & (self._first != other._first))
        np.copyto(self._first, other._first, where=~seen)
        for name in ("_positive", "_negative", "_region_mass", "_image_mass", "_normal_mass"):
            mine: NDArray[Any] = getattr(self, name)
            mine += getattr(other, name)
        for name in ("n_positive", "n_negative", "n_images", "n_regions", "n_anomalous", "n_normal"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._smallest_normal = _smaller(self._smallest_normal, other._smallest_normal)
        for name, (hits, false) in other._above.items():
            self._above[name][0] += hits
            self._above[name][1] += false

    def _fill(
        self,
        scores: FloatArray,
        counts: NDArray[np.int64],
        weight: float = 0.0,
        mass: NDArray[np.float64] | None = None,
    ) -> None:
        """Counts scores (n,); sorted, they fall into runs of one bin, whose ends are its smallest and largest score."""
        for start in range(0, scores.size, CHUNK):
            ordered = np.sort(scores[start : start + CHUNK])
            keys = leading_bits(ordered, self.bits)
            starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
            bins, lengths = keys[starts], np.diff(starts, append=keys.size)
            low, high = ordered[starts], ordered[starts + lengths - 1]
            seen = (self._positive[bins] + self._negative[bins]) > 0
            self._mixed[bins] |= (low != high) | (seen & (self._first[bins] != low))
            self._first[bins] = np.where(seen, self._first[bins], low)
            counts[bins] += lengths
            if mass is not None:
                mass[bins] += weight * lengths

    def _next_edge(self, bin_: int) -> float:
        """The smallest float32 of the next bin: scores rounded into this one are below it."""
        ascending = (bin_ + 1) << (32 - self.bits)
        bits = ascending ^ (1 << 31) if ascending >> 31 else ascending ^ 0xFFFFFFFF
        return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])

    def _filled_bins(self) -> IntArray:
        """Bins that hold something, highest first."""
        if self._filled is None:
            self._filled = np.flatnonzero((self._positive > 0) | (self._negative > 0))[::-1]
        return self._filled

    def _bins(self) -> tuple[Rates, Rates, BoolArray]:
        bins = self._filled_bins()
        return self._positive[bins].astype(np.float64), self._negative[bins].astype(np.float64), ~self._mixed[bins]

    def _entry(self, metric: str) -> tuple[Rates, Rates, Rates, BoolArray]:
        """(rate before, rate after, mass, single) of the filled bins."""
        bins = self._filled_bins()
        false = self._normal_mass[bins] if metric == "aupimo" else self._negative[bins].astype(np.float64)
        after = np.minimum(np.cumsum(false) / false.sum(), 1.0)
        mass = self._image_mass if metric == "aupimo" else self._region_mass
        return np.append(0.0, after[:-1]), after, mass[bins], ~self._mixed[bins]


def leading_bits(scores: FloatArray, bits: int) -> NDArray[np.intp]:
    """The leading bits of scores (n,) as float32, flipped where negative, so that they ascend with the scores."""
    with np.errstate(over="ignore"):
        whole = (scores.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # + 0.0: no negative zero
    ascending = np.where(whole >> 31, ~whole, whole | np.uint32(1 << 31))
    return (ascending >> (32 - bits)).astype(np.intp)


def _smaller(a: int, b: int) -> int:
    """The smaller of two sizes; 0 stands for none."""
    return min(a, b) if a and b else a or b
