"""Histogram standardisation: landmarks of an image's histogram are brought to those of a standard scale.

Nyul & Udupa 1999, "On standardizing the MR image intensity scale"; Nyul, Udupa & Zhang 2000, "New variants of a method
of MRI scale standardization" (whose deciles are the default landmarks). Intensities of MRI have no unit; after this the
same tissue has about the same number on every scanner. The standard scale runs from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.errors import ConfigError, InputError

Floats = NDArray[np.float64]


class HistogramSettings(Protocol):
    """What is read of ``anodiff.config.IntensityConfig`` and ``anodiff.data.volumes.preprocess.VolumeIntensity``."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def landmarks(self) -> tuple[float, ...]: ...
    @property
    def standard(self) -> tuple[tuple[float, ...], ...] | None: ...


@dataclass(frozen=True)
class Curve:
    """A rising piecewise linear map of one channel through ``stored`` (K,) -> ``x`` (K,), both strictly rising."""

    stored: Floats
    x: Floats

    def forward(self, values: np.ndarray) -> Floats:
        """Stored values of any shape -> x, within the ends of the standard scale."""
        return np.asarray(np.interp(values, self.stored, self.x), dtype=np.float64)

    def extended(self, values: ArrayLike) -> Floats:
        """As `forward`, beyond the ends by the slope of the first and of the last segment."""
        return _through(values, self.stored, self.x)

    def back(self, x: ArrayLike) -> Floats:
        """The inverse of `extended`."""
        return _through(x, self.x, self.stored)

    def slope(self, x: np.ndarray) -> Floats:
        """How much the stored value changes with x there, at a landmark that of the segment above it."""
        segment = np.searchsorted(self.x[1:-1], x, side="right")
        return np.asarray((np.diff(self.stored) / np.diff(self.x))[segment])


def landmarks_of(values: np.ndarray, settings: HistogramSettings, path: str) -> Floats:
    """Percentiles ``low``, ``landmarks`` and ``high`` of each channel; values (C, N) -> (C, K) float64.

    Raises InputError, naming ``path``, where there is no spread from the first to the last.
    """
    wanted = [settings.low, *settings.landmarks, settings.high]
    found = np.percentile(values.astype(np.float64), wanted, axis=1).T
    if not bool((found[:, -1] > found[:, 0]).all()):
        raise InputError(
            f"{path}: expected intensities that differ inside the foreground, found no spread (landmarks of the "
            "histogram)"
        )
    return np.asarray(found)


def standard_scale(landmarks: Sequence[np.ndarray]) -> tuple[tuple[float, ...], ...]:
    """The standard scale (C, K): landmarks (C, K) of each image, brought to [-1, 1] by a line; their mean over images.

    Raises ValueError without an image.
    """
    if not landmarks:
        raise ValueError("a standard scale is of at least one image, found none")
    rows = np.stack(landmarks)
    first, last = rows[..., :1], rows[..., -1:]
    mean = (2 * (rows - first) / (last - first) - 1).mean(axis=0)
    mean[:, 0], mean[:, -1] = -1.0, 1.0
    return tuple(tuple(float(value) for value in channel) for channel in np.maximum.accumulate(mean, axis=1))


def curves(values: np.ndarray, settings: HistogramSettings, path: str) -> list[Curve]:
    """The map of each channel of an image with foreground values (C, N) to the standard scale.

    Landmarks that lie on one value (a frequent intensity, a foreground of few pixels) count as one, half way between
    the outer two; so do those that the standard scale does not tell apart. The ends stay at -1 and 1.

    Raises InputError as :func:`landmarks_of`, and ConfigError where no standard scale was fitted.
    """
    if settings.standard is None:
        raise ConfigError(
            "preprocess.intensity: kind nyul needs the standard scale of its training images, found none; anodiff "
            "train fits it, and imported weights bring it as preprocess.intensity.standard"
        )
    found = landmarks_of(values, settings, path)
    return [_curve(stored, np.asarray(x)) for stored, x in zip(found, settings.standard, strict=True)]


def standardised(data: np.ndarray, values: np.ndarray, settings: HistogramSettings, path: str) -> NDArray[np.float32]:
    """(C, *S) stored values -> float32 x in [-1, 1], by the landmarks of ``values`` (C, N); see :func:`curves`."""
    out = np.empty(data.shape, dtype=np.float32)
    for channel, curve in enumerate(curves(values, settings, path)):
        out[channel] = curve.forward(data[channel])
    return out


def _through(at: ArrayLike, rising: Floats, values: Floats) -> Floats:
    """Linear interpolation through (K,) points, and extrapolation by the first and the last segment."""
    at = np.asarray(at, dtype=np.float64)
    slopes = np.diff(values) / np.diff(rising)
    below, above = np.minimum(at - rising[0], 0), np.maximum(at - rising[-1], 0)
    return np.asarray(np.interp(at, rising, values) + slopes[0] * below + slopes[-1] * above)


def _curve(stored: Floats, x: Floats) -> Curve:
    x, stored = _joined(*_joined(stored, x)[::-1])
    return Curve(stored, x)


def _joined(rising: Floats, beside: Floats) -> tuple[Floats, Floats]:
    """Equal numbers of ``rising`` (K,) as one, with the middle of what stands ``beside``; the ends keep theirs."""
    distinct, first, count = np.unique(rising, return_index=True, return_counts=True)
    middle = (beside[first] + beside[first + count - 1]) / 2
    middle[0], middle[-1] = beside[0], beside[-1]
    return distinct, middle
