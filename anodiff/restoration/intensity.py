"""The way back of intensities: from the model's range to the values that the image's file holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anodiff.data.preprocess import Preprocessor, resize, robust_moments, select_channels
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
    _, _, height, width = preprocessor.geometry((pixels.shape[0], pixels.shape[1])).box
    planes = np.stack([resize(plane, (height, width)) for plane in np.moveaxis(pixels, 2, 0)])
    values = planes[:, preprocessor._foreground(planes.mean(axis=0), raw)]
    if intensity.kind == "percentile":
        low, high = np.percentile(values, [intensity.low, intensity.high], axis=1)
        return Intensity((high + low).astype(np.float64) / 2, (high - low).astype(np.float64) / 2)
    if intensity.kind == "robust":
        centre, spread = robust_moments(values, intensity.spread)
        return Intensity(centre, float(intensity.clip or 1) * spread)
    return Intensity(values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64))
