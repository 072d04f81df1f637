"""The way back of intensities, and what of an image is background or not to be looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.data.histogram import Curve, curves
from anodiff.data.intensity import line
from anodiff.data.preprocess import RANGED_TYPES, Geometry, Preprocessor, resize, select_channels
from anodiff.data.readers import RawImage


@dataclass(frozen=True)
class Intensity:
    """Stored value = ``offset`` + ``scale`` x of each channel, both (C,) float64; x as the model sees it, unclipped."""

    offset: NDArray[np.float64]
    scale: NDArray[np.float64]

    def back(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """x (C, H, W) -> stored values (H, W, C) float32."""
        stored = values * self.scale[:, None, None] + self.offset[:, None, None]
        return np.moveaxis(stored, 0, 2).astype(np.float32)

    @property
    def zero(self) -> NDArray[np.float64]:
        """The x (C,) of a stored 0, beyond the model's range where 0 is."""
        return -self.offset / self.scale

    def level_back(self, sigma: float) -> float:
        """A noise level of x -> of stored values: the mean over channels, of curves by the line through their ends."""
        return sigma * float(self.scale.mean())

    def spread_back(self, spread: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A deviation of x (C, H, W), where x is ``values``, -> of stored values (H, W, C) float32."""
        return np.moveaxis(spread * self.scale[:, None, None], 0, 2).astype(np.float32)


@dataclass(frozen=True)
class CurvedIntensity(Intensity):
    """Stored values by a rising curve a channel; ``offset`` and ``scale`` are those of the line through its ends."""

    curves: tuple[Curve, ...]

    def back(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Intensity.back`."""
        stored = [curve.back(channel) for curve, channel in zip(self.curves, values, strict=True)]
        return np.stack(stored, axis=2).astype(np.float32)

    @property
    def zero(self) -> NDArray[np.float64]:
        """See `Intensity.zero`."""
        return np.array([float(curve.extended(np.float64(0))) for curve in self.curves])

    def spread_back(self, spread: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Intensity.spread_back`; by the slope of the curve at each value."""
        slopes = np.stack([curve.slope(channel) for curve, channel in zip(self.curves, values, strict=True)])
        return np.moveaxis(spread * slopes, 0, 2).astype(np.float32)


def intensity_of(raw: RawImage, preprocessor: Preprocessor) -> Intensity:
    """What ``preprocessor`` does to the intensities of this image, from the same statistics of the same pixels.

    Raises InputError as the preprocessor itself does.
    """
    settings = preprocessor.settings
    raw = preprocessor.ranged(raw)
    pixels = select_channels(raw, settings.channels, settings.channel)
    channels, intensity = pixels.shape[2], settings.intensity
    if intensity.kind == "unit_range":
        half = (raw.high - raw.low) / 2
        return Intensity(np.full(channels, raw.low + half), np.full(channels, half))
    planes, inside = _inside(raw, preprocessor)
    return of_foreground(planes[:, inside], intensity, raw.path)


def of_foreground(values: NDArray[np.float32], settings: Any, path: str) -> Intensity:
    """The intensities of an image or volume whose foreground has the values (C, N), by the recipe's ``settings``.

    Raises InputError, naming ``path``, for values without spread.
    """
    if settings.kind == "nyul":
        own = tuple(curves(values, settings, path))
        ends = np.array([(curve.back(np.float64(-1)), curve.back(np.float64(1))) for curve in own])
        return CurvedIntensity(ends.mean(axis=1), (ends[:, 1] - ends[:, 0]) / 2, own)
    return Intensity(*line(values, settings, path))


def background_of(raw: RawImage, preprocessor: Preprocessor) -> NDArray[np.bool_]:
    """bool (h, w) on the model's grid: outside the foreground before that is eroded, and not in the padding."""
    geometry = preprocessor.geometry((raw.pixels.shape[0], raw.pixels.shape[1]))
    top, left, height, width = geometry.box
    background = np.zeros(geometry.model, dtype=bool)
    background[top : top + height, left : left + width] = ~_inside(preprocessor.ranged(raw), preprocessor)[1]
    return background


def noise_left(geometry: Geometry) -> float:
    """Share of the variance of white noise that is left when pixels of the native grid are resized to the model's."""
    _, _, *inner = geometry.box
    left = 1.0
    for count, side in zip(geometry.native, inner, strict=True):
        weights = resize(np.eye(count, dtype=np.float32), (side, count)).astype(np.float64)
        left *= float((weights**2).sum(axis=1).mean())
    return left


def without(raw: RawImage, mask: NDArray[np.bool_]) -> RawImage:
    """The image as if nobody knew what it holds where the mask (H, W) is True: the nearest other pixel is there.

    So neither the statistics of the intensities, nor the foreground, nor a pixel beside the mask after resizing depend
    on what was there; nor does the value range of a type that has none of its own.
    """
    from scipy import ndimage

    if not mask.any():
        return raw
    if mask.all():
        return replace(raw, pixels=np.full_like(raw.pixels, raw.low))
    rows, columns = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    pixels = raw.pixels[rows, columns]
    low, high = raw.low, raw.high
    if raw.dtype not in RANGED_TYPES:
        low, high = float(pixels.min()), float(pixels.max())
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    return replace(raw, pixels=pixels, low=low, high=high)


def _inside(raw: RawImage, preprocessor: Preprocessor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Planes (C, h, w) of a ranged image on the model's grid, without padding, and its foreground before erosion."""
    settings = preprocessor.settings
    pixels = select_channels(raw, settings.channels, settings.channel)
    _, _, height, width = preprocessor.geometry((pixels.shape[0], pixels.shape[1])).box
    planes = np.stack([resize(plane, (height, width)) for plane in np.moveaxis(pixels, 2, 0)])
    return planes, preprocessor._foreground(planes.mean(axis=0), raw)
