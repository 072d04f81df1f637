"""How good a candidate is: average precision (AP) on planted anomalies, by kind and size, and how far groups vary it.

Resamples draw groups with replacement, the same draws for all candidates, so that the standard error of a difference
is that of the same images seen twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anodiff.anomaly.planted import CLEAN, SIZES
from anodiff.anomaly.settings import DetectorSettings
from anodiff.anomaly.tuning_cache import ErrorCache
from anodiff.engine.progress import Progress
from anodiff.metrics.bootstrap import group_weights
from anodiff.metrics.ranking import average_precision

RESAMPLES = 200
#: quantiles of each class by which pixel values are binned for the resamples; the AP itself is exact
BINS = 256

Values = NDArray[np.float32]
Draws = NDArray[np.float64]


class Measure:
    """AP of candidates on the images of a cache, each candidate worked out once.

    ``kinds`` weigh the same, however many of their anomalies could be planted, and so do ``sizes`` classes of area
    within a kind (see :meth:`PlantedImages.cells`): pixels are pooled among anomalies of one size only. With one class
    all pixels of a kind are pooled. ``progress`` counts the candidates.
    """

    def __init__(self, cache: ErrorCache, kinds: Sequence[str], seed: int, sizes: int = SIZES) -> None:
        self.cache, self.kinds = cache, tuple(kinds)
        self.progress = Progress(None, quiet=True)
        planted = cache.planted
        starts = np.concatenate([[0], cache.ends])
        cells = planted.cells(sizes)
        #: by kind, the numbers of the measured pixels of each size class
        self._pixels: dict[str, list[NDArray[np.int64]]] = {
            kind: [np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows]) for rows in cells[kind]]
            for kind in self.kinds
        }
        known = {group: n for n, group in enumerate(sorted(set(planted.groups)))}
        self._group = np.array([known[group] for group in planted.groups], dtype=np.int64)
        self._pixel_group = np.repeat(self._group[: planted.planted], np.diff(starts))
        self._weights = group_weights(len(known), RESAMPLES, seed)
        self._aps: dict[str, dict[str, float]] = {}
        self._draws: dict[str, Draws] = {}

    def value(self, settings: DetectorSettings) -> float:
        """Pixel AP of planted anomalies, averaged over kinds and sizes."""
        return mean(self.by_kind(settings))

    def by_kind(self, settings: DetectorSettings) -> dict[str, float]:
        """Pixel AP by kind, averaged over sizes."""
        key = map_key(settings)
        if key not in self._aps:
            self._aps[key] = self.pixel_ap(self.cache.values(settings))
            self.progress.update(1)
        return self._aps[key]

    def draws(self, settings: DetectorSettings) -> Draws:
        """The value on resamples of the groups, (RESAMPLES,)."""
        key = map_key(settings)
        if key not in self._draws:
            values, labels, groups = self.cache.values(settings), self.cache.labels, self._pixel_group
            found = [
                defined_mean([resampled_ap(labels[c], values[c], groups[c], self._weights) for c in cells])
                for cells in self._pixels.values()
            ]
            self._draws[key] = defined_mean(found)
        return self._draws[key]

    def gain(self, ours: DetectorSettings, theirs: DetectorSettings) -> tuple[float, float]:
        """How much better ours is, and the standard error of that difference."""
        return self.value(ours) - self.value(theirs), standard_error(self.draws(ours) - self.draws(theirs))

    def pixel_ap(self, values: Values) -> dict[str, float]:
        """AP by kind, averaged over sizes, of map values at the measured pixels (P,)."""
        labels = self.cache.labels
        return {
            kind: math.fsum(average_precision(labels[c], values[c]) or 0.0 for c in cells) / len(cells)
            for kind, cells in self._pixels.items()
        }

    def of_levels(self, settings: DetectorSettings, alone: Values) -> dict[str, float]:
        """AP by kind of the mean of some levels' values (l, P), as :meth:`ErrorCache.level_values` gives them."""
        values = alone.mean(axis=0)
        whole = settings.residual == "signed" and settings.polarity == "both"
        self.progress.update(1)
        return self.pixel_ap(np.abs(values) if whole else values)

    def image_ap(self, scores: Tensor) -> tuple[dict[str, float], Draws]:
        """AP of planted images against clean ones, by kind, and their mean on resamples; scores (M,)."""
        names = np.array(self.cache.planted.kinds)
        values = scores.numpy()
        aps, found = {}, []
        for kind in self.kinds:
            rows = np.isin(names, (kind, CLEAN))
            labels = names[rows] == kind
            aps[kind] = average_precision(labels, values[rows]) or 0.0
            found.append(resampled_ap(labels, values[rows], self._group[rows], self._weights))
        return aps, defined_mean(found)


def resampled_ap(
    labels: NDArray[np.bool_], values: Values, groups: NDArray[np.int64], weights: NDArray[np.int64]
) -> Draws:
    """AP when group g counts ``weights[b, g]`` times, (B,), of items binned by quantiles; NaN without a positive.

    A bin counts as one tie; with no more distinct values than BINS in each class there is no loss.
    """
    edges = np.unique(np.concatenate([_quantiles(values[labels]), _quantiles(values[~labels])]))
    place = len(edges) - np.searchsorted(edges, values, side="right")
    bins, count = len(edges) + 1, weights.shape[1]
    at = groups * bins + place
    counts = (np.bincount(at[chosen], minlength=count * bins).reshape(count, bins) for chosen in (labels, ~labels))
    positive, negative = (weights.astype(np.float64) @ each.astype(np.float64) for each in counts)
    hits, alarms = positive.cumsum(1), negative.cumsum(1)
    total = hits[:, -1]
    with np.errstate(invalid="ignore"):
        return np.asarray((positive * (hits / np.maximum(hits + alarms, 1))).sum(1) / total)


def _quantiles(values: Values) -> Values:
    ordered = np.unique(values)
    return ordered[np.linspace(0, len(ordered) - 1, min(BINS, len(ordered))).round().astype(np.int64)]


def defined_mean(draws: Sequence[Draws]) -> Draws:
    """Of each resample the mean of those draws (each (B,)) that are defined; NaN where none is.

    With few groups a class of size often has no anomaly in a resample. Were such resamples left out, those that remain
    would all hold much the same groups, and the standard error would be too small.
    """
    table = np.stack(draws)
    known = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, table, 0.0).sum(axis=0) / known.sum(axis=0))


def standard_error(draws: Draws) -> float:
    """The spread over resamples; those without an anomalous item are left out. Infinite where none can be told."""
    defined = draws[np.isfinite(draws)]
    return float(defined.std(ddof=1)) if len(defined) > 1 else math.inf


def mean(by_kind: dict[str, float]) -> float:
    """All kinds weigh the same."""
    return math.fsum(by_kind.values()) / len(by_kind)


def map_key(settings: DetectorSettings) -> str:
    """Equal for settings whose maps are equal: the reduction comes after the map."""
    return repr({slot: value for slot, value in settings.model_dump().items() if slot not in ("reduction", "topk")})
