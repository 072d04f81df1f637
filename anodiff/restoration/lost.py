"""What of an image or volume a model never sees: detail finer than its grid, and values outside its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anodiff.data.intensity import IntensitySettings, limit
from anodiff.data.preprocess import Prepared, Preprocessor, resize, select_channels
from anodiff.data.readers import RawImage
from anodiff.data.volumes.geometry import Plan, Reorient, Resample
from anodiff.restoration.intensity import Intensity

#: in the model's range; resizing and float32 round by less
ROUNDING = 1e-4


@dataclass(frozen=True)
class Lost:
    """Sides of the file's grid and of what its pixels fill of the model's, both (H, W) or both (I, J, K).

    clipped: share of the foreground whose stored values are outside the range that the model sees.
    """

    native: tuple[int, ...]
    model: tuple[int, ...]
    clipped: float

    @property
    def shrink(self) -> float:
        """Pixels of the file to one of the model, along the axis where they are most: below 1 the file is enlarged."""
        return max(before / after for before, after in zip(self.native, self.model, strict=True))


def lost_of(raw: RawImage, prepared: Prepared, intensity: Intensity, preprocessor: Preprocessor) -> Lost:
    """What of a ranged image ``preprocessor`` leaves out of the prepared one."""
    geometry, settings = prepared.geometry, preprocessor.settings
    top, left, height, width = geometry.box
    pixels = np.moveaxis(select_channels(raw, settings.channels, settings.channel), 2, 0)
    planes = np.stack([resize(plane, (height, width)) for plane in pixels])
    inside = prepared.foreground.numpy()[top : top + height, left : left + width]
    outside = out_of_range(planes[:, inside], intensity, settings.intensity)
    return Lost(geometry.native, (height, width), float(outside.mean()) if outside.size else 0.0)


def out_of_range(values: NDArray[np.float32], intensity: Intensity, settings: IntensitySettings) -> NDArray[np.bool_]:
    """bool (N,): where a channel of stored values (C, N) is clipped; ``settings`` are the recipe's."""
    end = limit(settings)
    if end is None:
        return np.zeros(values.shape[1], dtype=bool)
    seen = (values - intensity.offset[:, None]) / intensity.scale[:, None]
    return np.asarray((np.abs(seen) > end + ROUNDING).any(axis=0))


def file_axis(way: Plan, axis: int) -> int:
    """The axis of the file that an axis of the model's grid is."""
    turned = next((step.axes for step in way.steps if isinstance(step, Reorient)), (0, 1, 2))
    return turned[axis]


def volume_sides(way: Plan, planes: Mapping[int, tuple[float, float]]) -> tuple[int, int, int]:
    """How many voxels of the model's lie along the axes of the file, padding and cropping apart.

    planes: by axis of the model's grid, how much larger its slices (H, W) are for the network than on that grid.
    """
    scale, order = np.ones(3), (0, 1, 2)
    for step in way.steps:
        if isinstance(step, Reorient):
            order = step.axes
        elif isinstance(step, Resample):
            scale = np.array(step.source.spacing) / np.array(step.target.spacing)
    factors = np.full(3, np.inf) if planes else np.ones(3)
    for axis, (height, width) in planes.items():
        # a slice has the earlier of its two axes across, the later one down
        across, down = (other for other in range(3) if other != axis)
        factors[across], factors[down] = min(factors[across], width), min(factors[down], height)
    scale = scale * np.where(np.isfinite(factors), factors, 1.0)
    sides = [0, 0, 0]
    for place, source in enumerate(order):
        sides[source] = max(1, round(way.native.shape[source] * float(scale[place])))
    return sides[0], sides[1], sides[2]
