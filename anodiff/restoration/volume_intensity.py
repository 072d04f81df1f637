"""The way back of a volume's intensities, and what of a volume is background or not to be looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anodiff.config import PreprocessConfig, VolumeConfig
from anodiff.data.volumes.geometry import Plan, Resample
from anodiff.data.volumes.preprocess import VolumePreprocessor
from anodiff.data.volumes.slices import select_channels, volume_settings
from anodiff.data.volumes.volume import Volume
from anodiff.restoration.intensity import Intensity, of_foreground


def volume_intensity(
    volume: Volume, way: Plan, preprocess: PreprocessConfig, config: VolumeConfig
) -> tuple[Intensity, NDArray[np.bool_]]:
    """What a recipe does to the intensities of a volume, and its background (I, J, K) on the model's grid.

    way: that of the prepared volume. The background is what is outside the foreground before that is eroded, and not
    in padding. Raises InputError as preparing the volume does.
    """
    volume = select_channels(volume, preprocess.channels, preprocess.channel)
    preprocessor = VolumePreprocessor(volume_settings(preprocess, config))
    part, data, inside = preprocessor._resampled(volume)
    background = ~inside
    for step in way.steps[len(part.steps) :]:
        background = step.forward(background)
    background &= way.covered()
    low, high = preprocessor.value_range(volume)
    if preprocess.intensity.kind == "unit_range":
        channels = len(data)
        return Intensity(np.full(channels, (low + high) / 2), np.full(channels, (high - low) / 2)), background
    return of_foreground(data[:, inside], preprocessor.settings.intensity, volume.path), background


def without_voxels(volume: Volume, mask: NDArray[np.bool_]) -> Volume:
    """The volume as if nobody knew what it holds where the mask (I, J, K) is True: the nearest other voxel is there.

    See ``anodiff.restoration.intensity.without``.
    """
    from scipy import ndimage

    if not mask.any():
        return volume
    if mask.all():
        return replace(volume, data=np.full_like(volume.data, volume.low))
    i, j, k = ndimage.distance_transform_edt(
        mask, sampling=volume.spacing_mm, return_distances=False, return_indices=True
    )
    data = volume.data[:, i, j, k]
    low, high = volume.low, volume.high
    if not volume.ranged:
        low, high = float(data.min()), float(data.max())
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    return replace(volume, data=data, low=low, high=high)


def resampled_noise_left(way: Plan) -> float:
    """Share of the variance of white noise that is left on the way to the model's grid."""
    if not any(isinstance(step, Resample) for step in way.steps):
        return 1.0
    noise = np.random.default_rng(0).standard_normal(way.native.shape, dtype=np.float32)
    return float(way.forward(noise).var())
