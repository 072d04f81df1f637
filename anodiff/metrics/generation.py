"""How near generated images are to real ones, as distributions; no downloaded network decides.

Four statistics, each blind to what another sees: patches (sliced Wasserstein distance), the power spectrum, the
intensities, and the features of a network of one's own (kernel distance, KID). All are distances, 0 where the two sets
have one distribution; what two halves of the real images differ by is what "near" means for a set of that size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

#: side of the patches, how many an image, and the directions of the sliced distance
PATCH, PATCHES, DIRECTIONS = 7, 64, 64
#: positions at which two sorted samples of different length are compared
QUANTILES = 1000
BINS = 256


def patch_projections(images: NDArray[Any], seed: int = 0) -> Array:
    """(N, PATCHES, DIRECTIONS): patches at random places of images (N, C, H, W), along random unit directions.

    Places and directions depend on the seed and the images' size alone, so that sets of one size may be compared.
    Raises ValueError for images smaller than a patch.
    """
    images = np.asarray(images, dtype=np.float64)
    _, channels, height, width = images.shape
    if min(height, width) < PATCH:
        raise ValueError(f"expected images of at least {PATCH}x{PATCH}, found {height}x{width}")
    rng = np.random.default_rng(seed)
    places = rng.integers(0, [height - PATCH + 1, width - PATCH + 1], (PATCHES, 2))
    patches = np.stack([images[:, :, y : y + PATCH, x : x + PATCH].reshape(len(images), -1) for y, x in places], axis=1)
    directions = rng.standard_normal((channels * PATCH**2, DIRECTIONS))
    return np.asarray(patches @ (directions / np.linalg.norm(directions, axis=0)))


def sliced_wasserstein(a: Array, b: Array) -> float:
    """Root mean square over directions of the Wasserstein-2 distance of two sets of projections (N, P, K), (M, P, K).

    Rabin et al. 2011. In one dimension the distance is that of the quantile functions, here at QUANTILES places.
    """
    found, wanted = (quantiles(each.reshape(-1, each.shape[-1])) for each in (a, b))
    return float(np.sqrt(((found - wanted) ** 2).mean()))


def quantiles(values: Array) -> Array:
    """(QUANTILES, K) quantiles, evenly spaced, of values (M, K)."""
    return quantiles_of_sorted(np.sort(values, axis=0))


def quantiles_of_sorted(ordered: Array) -> Array:
    """`quantiles` of values that ascend along the first axis."""
    place = (np.arange(QUANTILES) + 0.5) / QUANTILES * len(ordered) - 0.5
    place = place.clip(0, len(ordered) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, len(ordered) - 1)
    share = (place - low)[:, None]
    return np.asarray((1 - share) * ordered[low] + share * ordered[high])


def radial_power(images: NDArray[Any]) -> Array:
    """(N, bands): mean power of images (N, C, H, W) at 1, 2, ... cycles an image, up to those of the shorter side."""
    images = np.asarray(images, dtype=np.float64)
    height, width = images.shape[-2:]
    power = (np.abs(np.fft.fft2(images, norm="ortho")) ** 2).mean(axis=1)
    side = min(height, width)
    y, x = np.meshgrid(np.fft.fftfreq(height) * side, np.fft.fftfreq(width) * side, indexing="ij")
    band = np.rint(np.hypot(y, x)).astype(np.int64)
    return np.stack([power[:, band == k].mean(axis=1) for k in range(1, side // 2 + 1)], axis=1)


def spectrum_distance(a: Array, b: Array) -> float:
    """Root mean square over bands of the ratio of the mean powers (N, bands), (M, bands), in decibels."""
    ratio = 10 * np.log10((a.mean(axis=0) + 1e-12) / (b.mean(axis=0) + 1e-12))
    return float(np.sqrt((ratio**2).mean()))


def intensity_histogram(images: NDArray[Any], low: float = -1.0, high: float = 1.0) -> Array:
    """(N, C, BINS): shares of the values of images (N, C, H, W); what lies outside [low, high] counts at its ends."""
    images = np.asarray(images, dtype=np.float64).reshape(*np.shape(images)[:2], -1)
    bins = ((images - low) / (high - low) * BINS).astype(np.int64).clip(0, BINS - 1)
    return np.stack([[np.bincount(plane, minlength=BINS) / len(plane) for plane in image] for image in bins])


def histogram_distance(a: Array, b: Array, low: float = -1.0, high: float = 1.0) -> float:
    """Wasserstein-1 distance of the pooled intensities (N, C, BINS), (M, C, BINS), the mean over channels."""
    gap = np.cumsum(a.mean(axis=0) - b.mean(axis=0), axis=-1)
    return float(np.abs(gap).sum(axis=-1).mean() * (high - low) / BINS)


def kernel_distance(a: Array, b: Array, rows_a: Rows | None = None, rows_b: Rows | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, F), (M, F): KID (Binkowski et al. 2018).

    Kernel (x.y / F + 1)^3; features are to be standardised. ``rows_a``, ``rows_b``: numbers of the images, where some
    stand there more than once (a resample): pairs of an image with itself are left out. May be below 0. Raises
    ValueError for fewer than two images on a side.
    """
    numbers = [np.arange(len(a)) if rows_a is None else rows_a, np.arange(len(b)) if rows_b is None else rows_b]
    first, second = (len(np.unique(each)) for each in numbers)
    if min(first, second) < 2:
        raise ValueError(f"expected at least two images on either side, found {first} and {second}")
    within = [_kernel(x, x)[same[:, None] != same].mean() for x, same in zip((a, b), numbers, strict=True)]
    return float(sum(within) - 2 * _kernel(a, b).mean())


def _kernel(a: Array, b: Array) -> Array:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def standardised(features: Array, real: Array) -> Array:
    """Features (N, F) in deviations of the real ones; what is constant there counts for nothing."""
    spread = real.std(axis=0)
    return np.asarray((features - real.mean(axis=0)) * np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0))


@dataclass(frozen=True)
class Described:
    """What the statistics see of N images: see `described`.

    numbers: (N,) tell images apart, where some stand here more than once.
    """

    patches: Array
    power: Array
    intensities: Array
    features: Array | None
    numbers: Rows

    def __len__(self) -> int:
        return len(self.power)

    def take(self, rows: Rows) -> Described:
        """Some of the images."""
        features = None if self.features is None else self.features[rows]
        return Described(self.patches[rows], self.power[rows], self.intensities[rows], features, self.numbers[rows])


def described(images: NDArray[Any], features: NDArray[Any] | None, seed: int = 0) -> Described:
    """images: (N, C, H, W) in about [-1, 1]; features: (N, F) of any network, such as a denoiser's encoder.

    Without features, the statistic of features is left out of what is found.
    """
    return Described(
        patch_projections(images, seed),
        radial_power(images),
        intensity_histogram(images),
        None if features is None else np.asarray(features, dtype=np.float64),
        np.arange(len(images)),
    )


def _features(found: Described, real: Described) -> float:
    assert found.features is not None
    assert real.features is not None
    scaled, wanted = (standardised(each, real.features) for each in (found.features, real.features))
    return kernel_distance(scaled, wanted, found.numbers, real.numbers)


#: name -> (found, real) -> distance
STATISTICS: dict[str, Callable[[Described, Described], float]] = {
    "patches": lambda found, real: sliced_wasserstein(found.patches, real.patches),
    "spectrum_db": lambda found, real: spectrum_distance(found.power, real.power),
    "intensities": lambda found, real: histogram_distance(found.intensities, real.intensities),
    "features_kid": _features,
}


def distances(found: Described, real: Described) -> dict[str, float]:
    """Every statistic of a set of images from the real ones that both sets have what is needed for."""
    blind = found.features is None or real.features is None
    return {
        name: statistic(found, real) for name, statistic in STATISTICS.items() if not (blind and statistic is _features)
    }


class Redraws:
    """Resamples of a set of images, as `distances` takes them: patches are sorted once, not in each resample."""

    def __init__(self, images: Described) -> None:
        count, patches, directions = images.patches.shape
        values = images.patches.reshape(-1, directions).T
        order = values.argsort(axis=1)
        self._values = np.take_along_axis(values, order, axis=1)
        self._owner = order // patches
        self._rest = replace(images, patches=np.empty((count, 0, 0)))

    def drawn(self, rng: np.random.Generator) -> Described:
        """As many images, drawn with replacement, at least two that differ; of patches their quantiles."""
        count = len(self._rest)
        rows = rng.integers(0, count, count)
        if (rows == rows[0]).all():  # happens with few images; a kernel distance needs two that differ
            rows[0] = (rows[0] + 1) % count
        times = np.bincount(rows, minlength=count)
        ascending = [np.repeat(v, times[owner]) for v, owner in zip(self._values, self._owner, strict=True)]
        return replace(self._rest.take(rows), patches=quantiles_of_sorted(np.stack(ascending, axis=1))[None])


def bootstrap_distances(found: Described, real: Described, n_boot: int = 200, seed: int = 0) -> dict[str, Array]:
    """Every statistic (n_boot,) where either set is drawn anew with replacement, the bootstrap's bias taken off.

    A resample holds some images twice and others not at all, so that two of them lie farther apart than the sets
    themselves, as these do than the distributions they come from: its percentiles may leave out the very distance that
    was resampled. The mean of the resamples less that distance estimates this bias (Efron & Tibshirani 1993, chapter
    10). It is subtracted here: the percentiles are an interval about the distance, for the mean distance of such sets
    of so many images. They are not one for the distance of the distributions, which is less; a lower end may lie below
    0. The same seed draws the same real images for all sets, and the same rows of sets of one size, so that what is
    resampled of two sets beside the same real ones may be subtracted, also where their images belong in pairs.
    """
    sets, streams = (Redraws(found), Redraws(real)), np.random.default_rng(seed).spawn(2)
    values: dict[str, list[float]] = {}
    for _ in range(n_boot):
        for name, value in distances(*(each.drawn(rng) for each, rng in zip(sets, streams, strict=True))).items():
            values.setdefault(name, []).append(value)
    own = distances(found, real)
    return {name: np.asarray(each) - np.mean(each) + own[name] for name, each in values.items()}


def nearest(images: NDArray[Any], others: NDArray[Any]) -> tuple[Rows, Array]:
    """Of each of images (N, ...): the number of the nearest of others (M, ...), and their root mean square difference.

    Images of a model that lie nearer to its training images than held-out real ones do are copies.
    """
    flat, known = (np.asarray(each, dtype=np.float64).reshape(len(each), -1) for each in (images, others))
    squares = (flat**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None] - 2 * flat @ known.T
    index = squares.argmin(axis=1)
    return index, np.sqrt(((flat - known[index]) ** 2).mean(axis=1))
