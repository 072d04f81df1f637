"""A volume on the model's grid and range, with its foreground, and a map back on the native grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from anodiff.data.foreground import missing, vanished
from anodiff.data.histogram import landmarks_of, standardised
from anodiff.data.intensity import limit, line
from anodiff.data.preprocess import erode, otsu_threshold
from anodiff.data.volumes.geometry import Plan, plan
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError

Kind = Literal["unit_range", "percentile", "zscore", "robust", "nyul", "window"]
KINDS: tuple[Kind, ...] = ("unit_range", "percentile", "zscore", "robust", "nyul", "window")


@dataclass(frozen=True)
class VolumeIntensity:
    """How intensities become [-1, 1]; statistics are of the whole volume's foreground, never of a slice.

    The kinds and their settings are those of ``anodiff.data.preprocess.Preprocessor``; ``window`` maps ``window`` =
    (low, high), in the volume's own units (HU for CT), to -1 and 1 and clips there.
    """

    kind: Kind = "robust"
    low: float = 0.5
    high: float = 99.5
    clip: float | None = 5.0
    spread: str = "both"
    window: tuple[float, float] | None = None
    landmarks: tuple[float, ...] = ()
    standard: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown intensity kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.kind == "window" and (self.window is None or not self.window[0] < self.window[1]):
            raise ValueError(f"the kind window needs window = (low, high) with low below high, found {self.window}")
        if self.kind == "robust" and not self.clip:
            raise ValueError("robust needs clip, the deviations from the median that become -1 and 1")


@dataclass(frozen=True)
class VolumeSettings:
    """orientation, spacing (mm), size: see ``geometry.plan``. value_range: what the stored type does not say.

    foreground: the volume's own where it has one, by the nearest voxel and as it is, its rim taken off as below; with
    ``given`` every volume must have one. Else every voxel, or those above Otsu's threshold or above
    ``foreground_threshold`` of the value range; of them the largest connected component (26 neighbours), holes filled,
    its rim of ``foreground_erode_px`` steps on the model's grid and ``foreground_erode_mm`` taken off.
    crop_to_foreground: ``size`` is centred on the foreground.
    """

    orientation: str | None = "RAS"
    spacing: tuple[float, float, float] | None = None
    size: tuple[int, int, int] | None = None
    crop_to_foreground: bool = False
    intensity: VolumeIntensity = field(default_factory=VolumeIntensity)
    value_range: tuple[float, float] | None = None
    foreground: Literal["none", "otsu", "threshold", "given"] = "otsu"
    foreground_threshold: float = 0.05
    foreground_erode_px: int = 0
    foreground_erode_mm: float = 0.0


@dataclass(frozen=True)
class PreparedVolume:
    """image: float32 (C, I, J, K), in [-1, 1] unless zscore; foreground: bool (I, J, K); plan: the way back.

    clear: for each axis bool (n,), the slices across it that may be cut; None: all. given: whether the foreground was
    made elsewhere.
    """

    image: Tensor
    foreground: Tensor
    plan: Plan
    clear: tuple[np.ndarray, ...] | None = None
    given: bool = False

    def back(self, values: Tensor | np.ndarray, fill: float = 0.0) -> np.ndarray:
        """A map (I, J, K) or (C, I, J, K) on the model's grid -> float32 on the native one."""
        array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
        return self.plan.back(np.asarray(array), fill)


class VolumePreprocessor:
    """Volume (C, I, J, K) -> PreparedVolume: orientation, spacing, foreground, intensity, size, in that order."""

    def __init__(self, settings: VolumeSettings) -> None:
        self.settings = settings

    def __call__(self, volume: Volume) -> PreparedVolume:
        """Prepare one volume.

        Raises InputError for values whose range is unknown, or without any spread, and for a foreground that should be
        given and is not, or that vanishes on the model's grid.
        """
        settings = self.settings
        low, high = self.value_range(volume)
        way, data, inside = self._resampled(volume)
        spacing = np.array(way.model.spacing) * volume.spacing_mm[0] / way.native.spacing[0]
        try:
            image = normalise(data, inside, low, high, settings.intensity, volume.path)
        except InputError as error:
            raise InputError(f"{error}{_of_mask(volume)}") from None
        inside = erode_mm(erode(inside, settings.foreground_erode_px), settings.foreground_erode_mm, spacing)
        if settings.size is not None:
            centre = None
            if settings.crop_to_foreground:
                places = np.argwhere(inside)
                middle = (places.min(axis=0) + places.max(axis=0)) / 2
                centre = (way.model.affine @ np.array([*middle, 1.0]))[:3]
            whole = plan(volume, settings.orientation, settings.spacing, settings.size, centre)
            last = whole.steps[-1]
            image = last.forward(image)
            inside = last.forward(inside) & whole.covered()
            way = whole
        image = np.ascontiguousarray(image, dtype=np.float32)
        foreground = torch.from_numpy(np.ascontiguousarray(inside))
        return PreparedVolume(torch.from_numpy(image), foreground, way, given=volume.foreground is not None)

    def landmarks(self, volume: Volume) -> np.ndarray:
        """(C, K) float64 of a volume's foreground, of many of which the standard scale of ``nyul`` is made.

        Raises InputError as the preprocessor itself does.
        """
        _, data, inside = self._resampled(volume)
        try:
            return landmarks_of(data[:, inside], self.settings.intensity, volume.path)
        except InputError as error:
            raise InputError(f"{error}{_of_mask(volume)}") from None

    def _resampled(self, volume: Volume) -> tuple[Plan, np.ndarray, np.ndarray]:
        """The way to the model's orientation and spacing, the values there and the foreground before it is eroded."""
        way = plan(volume, self.settings.orientation, self.settings.spacing)
        data = way.forward(volume.data)
        inside = given_foreground(volume, way, self.settings.foreground)
        if inside is not None:
            return way, data, inside
        valid = valid_voxels(volume, way)
        return way, data, self._foreground(data.mean(axis=0), valid, *self.value_range(volume))

    def value_range(self, volume: Volume) -> tuple[float, float]:
        """The values that mean black and white: the settings', else the stored type's, else [0, 1].

        Raises InputError where ``unit_range`` or a threshold asks for them and nothing says what they are.
        """
        settings = self.settings
        if settings.value_range is not None:
            return settings.value_range
        needed = settings.intensity.kind == "unit_range" or settings.foreground == "threshold"
        if needed and not volume.ranged and (volume.low, volume.high) != (0.0, 1.0):
            raise InputError(
                f"{volume.path}: expected values in [0, 1] or a value_range in the settings, found {volume.dtype} "
                f"values from {volume.low:g} to {volume.high:g}"
            )
        return volume.low, volume.high

    def _foreground(self, grey: np.ndarray, valid: np.ndarray, low: float, high: float) -> np.ndarray:
        """bool (I, J, K) from the channel mean; all that is valid where nothing is above the threshold."""
        kind = self.settings.foreground
        if kind == "none":
            return valid
        threshold = (
            otsu_threshold(grey[valid]) if kind == "otsu" else low + self.settings.foreground_threshold * (high - low)
        )
        mask = clean_foreground(grey > threshold) & valid
        return mask if mask.any() else valid


def _of_mask(volume: Volume) -> str:
    """The end of a sentence on a foreground: which file gave it, and how much it marks there."""
    if volume.foreground is None or not volume.foreground_file:
        return ""
    return f"; the foreground is that of {volume.foreground_file}, {int(volume.foreground.sum()):,} voxels"


def valid_voxels(volume: Volume, way: Plan) -> np.ndarray:
    """bool (I, J, K) on the model's grid: where the file holds numbers, not in padding."""
    return way.covered() if volume.valid is None else way.forward_mask(volume.valid)


def given_foreground(volume: Volume, way: Plan, kind: str) -> np.ndarray | None:
    """bool (I, J, K) on the model's grid: a volume's own foreground where it is valid; None where it has none.

    Raises InputError where ``kind`` says that it must have one, and where no voxel of it is left.
    """
    if volume.foreground is None:
        if kind == "given":
            from anodiff.data.layouts.foregrounds import looked_for

            raise InputError(missing(volume.path, looked_for(volume.path)))
        return None
    inside = way.nearest(volume.foreground) & valid_voxels(volume, way)
    if not inside.any():
        raise InputError(vanished(volume.path, int(volume.foreground.sum()), "voxel"))
    return inside


def window_limits(centre: float, width: float) -> tuple[float, float]:
    """(low, high) of a CT window: centre -+ width / 2 (DICOM's LINEAR_EXACT, PS3.3 C.11.2.1.3.2)."""
    if not width > 0:
        raise ValueError(f"expected a window width above 0, found {width}")
    return centre - width / 2, centre + width / 2


def normalise(
    data: np.ndarray, inside: np.ndarray, low: float, high: float, intensity: VolumeIntensity, path: str
) -> np.ndarray:
    """float32 (C, I, J, K) with the values of ``inside`` (I, J, K) as reference; see ``VolumeIntensity``."""
    if intensity.kind == "nyul":
        return standardised(data, data[:, inside], intensity, path)
    known = {"unit_range": (low, high), "window": intensity.window}.get(intensity.kind)
    if known is not None:
        bottom, top = known
        offset, scale = np.array([(top + bottom) / 2]), np.array([(top - bottom) / 2])
    else:
        offset, scale = line(data[:, inside].astype(np.float64), intensity, path)
    shape = (-1, 1, 1, 1)
    scores = (data - offset.reshape(shape).astype(np.float32)) / scale.reshape(shape).astype(np.float32)
    end = limit(intensity)
    return scores if end is None else np.clip(scores, -end, end)


def clean_foreground(mask: np.ndarray) -> np.ndarray:
    """bool (I, J, K): the largest component (26 neighbours) with its holes filled. Axes of one voxel do not count.

    A cavity is a hole where it is closed in all directions that the volume extends in.
    """
    from scipy import ndimage

    shape = mask.shape
    flat = mask.squeeze() if min(shape) == 1 else mask
    if flat.ndim == 0:
        return mask
    labels, count = ndimage.label(flat, structure=np.ones((3,) * flat.ndim))
    if count > 1:
        flat = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(flat), dtype=bool).reshape(shape)


def erode_mm(mask: np.ndarray, width: float, spacing: np.ndarray) -> np.ndarray:
    """bool (I, J, K) without what lies within ``width`` mm of a voxel outside; unchanged where nothing is left.

    Beyond the volume counts as inside, so that a head cut off by the border keeps its cut face.
    """
    if not width or mask.all():
        return mask
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(mask, sampling=[float(step) for step in spacing])
    inner = np.asarray(distance > width)
    return inner if inner.any() else mask
