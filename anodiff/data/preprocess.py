"""From a decoded image to the model's grid and range, and from a map on the model's grid back to the native one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anodiff.data.foreground import missing, on_grid
from anodiff.data.histogram import landmarks_of, standardised
from anodiff.data.intensity import IntensitySettings, limit, line, statistics
from anodiff.data.readers import RawImage
from anodiff.errors import InputError

OTSU_BINS = 256
SPECKLE_SHARE = 0.1
#: stored types whose values have a meaning of their own: black is 0 and white the largest
RANGED_TYPES = ("bool", "uint8", "uint16")


class PreprocessSettings(Protocol):
    """What ``Preprocessor`` reads of ``anodiff.config.PreprocessConfig``."""

    @property
    def channels(self) -> int: ...
    @property
    def channel(self) -> int | None: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def resize(self) -> str: ...
    @property
    def intensity(self) -> IntensitySettings: ...
    @property
    def value_range(self) -> tuple[float, float] | None: ...
    @property
    def foreground(self) -> str: ...
    @property
    def foreground_threshold(self) -> float: ...
    @property
    def foreground_erode_px(self) -> int: ...


@dataclass(frozen=True)
class Geometry:
    """Where the native pixels lie on the model's grid.

    native: (H, W) of the file; model: (h, w) of the network; box: (top, left, height, width) on the model's grid that
    the image fills, the rest being padding.
    """

    native: tuple[int, int]
    model: tuple[int, int]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Prepared:
    """image: float32 (C, h, w), in [-1, 1] unless intensity.kind is zscore; foreground: bool (h, w), not in padding."""

    image: Tensor
    foreground: Tensor
    geometry: Geometry


class Preprocessor:
    """RawImage (H, W, C) -> Prepared on the grid ``settings.size`` = (h, w); ``back`` is the way home.

    Resizing is bilinear with the support of a pixel of the smaller grid (anti-aliased), and is skipped, bit for bit,
    where the sizes agree. ``resize="pad"`` keeps the aspect ratio, centres the image and repeats its border outside;
    ``"stretch"`` fills the grid; ``"none"`` takes every image on its own grid, which must be that of ``settings.size``
    unless ``any_size``. Intensities (settings.intensity.kind):

    - ``unit_range``: the value range to [-1, 1]: ``settings.value_range``, else that of the stored type (uint8, uint16,
      bool), else [0, 1]; an image of another type that leaves [0, 1] is refused, since what its values mean is unknown;
    - ``percentile``: the ``low`` and ``high`` percentiles of the image's foreground to -1 and 1, clipped there;
    - ``zscore``: mean 0 and deviation 1 over the foreground, clipped at +-``clip`` where that is set;
    - ``robust``: (value - median) / (``clip`` x deviation), clipped to [-1, 1]; the deviation is that of a normal
      distribution with the foreground's quartiles: both, or the ``lower`` or ``upper`` one alone (``spread``);
    - ``nyul``: the foreground's percentiles to those of the training images, see :mod:`anodiff.data.histogram`.

    The foreground is the image's own where it has one (``RawImage.foreground``), by the nearest pixel; else it is found
    as ``settings.foreground`` says, where ``given`` means that every image must have its own.

    Channels: grey and RGB with three equal channels count as grey; grey is repeated where the model has 3 channels;
    ``settings.channel`` picks one channel (from 0) before anything else. Any other mismatch is an InputError.
    """

    def __init__(self, settings: PreprocessSettings, any_size: bool = False) -> None:
        self.settings, self.any_size = settings, any_size

    def __call__(self, raw: RawImage) -> Prepared:
        """Prepare one image.

        Raises InputError for another channel count, values whose range is unknown, intensities without any spread,
        another size than that of a model that resizes nothing, or a foreground that should be given and is not.
        """
        raw = self.ranged(raw)
        pixels = select_channels(raw, self.settings.channels, self.settings.channel)
        geometry = self.geometry((pixels.shape[0], pixels.shape[1]), str(raw.path))
        top, left, height, width = geometry.box
        planes = np.stack([resize(plane, (height, width)) for plane in np.moveaxis(pixels, 2, 0)])
        inside = self._foreground(planes.mean(axis=0), raw)
        planes = self._normalise(planes, inside, raw)
        model_height, model_width = geometry.model
        margin = ((top, model_height - top - height), (left, model_width - left - width))
        planes = np.pad(planes, ((0, 0), *margin), mode="edge")
        foreground = np.pad(erode(inside, self.settings.foreground_erode_px), margin, constant_values=False)
        image = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))
        return Prepared(image, torch.from_numpy(foreground), geometry)

    def landmarks(self, raw: RawImage) -> np.ndarray:
        """(C, K) float64 of an image's foreground, of many of which the standard scale of ``nyul`` is made.

        Raises InputError as the preprocessor itself does.
        """
        raw = self.ranged(raw)
        pixels = select_channels(raw, self.settings.channels, self.settings.channel)
        _, _, height, width = self.geometry((pixels.shape[0], pixels.shape[1])).box
        planes = np.stack([resize(plane, (height, width)) for plane in np.moveaxis(pixels, 2, 0)])
        inside = self._foreground(planes.mean(axis=0), raw)
        return landmarks_of(planes[:, inside], self.settings.intensity, raw.path)

    def ranged(self, raw: RawImage) -> RawImage:
        """The image with the value range that the settings give it; see :func:`with_range`."""
        return with_range(raw, self.settings)

    def geometry(self, native: tuple[int, int], name: str = "image") -> Geometry:
        """Where an image of ``native`` = (H, W) pixels lies on the model's grid; ``name`` it has in an InputError."""
        model_height, model_width = self.settings.size
        if self.settings.resize == "none":
            if native != (model_height, model_width) and not self.any_size:
                raise InputError(
                    f"{name}: expected {model_width}x{model_height} pixels, since this model resizes nothing "
                    f"(preprocess.resize: none), found {native[1]}x{native[0]}; with engine.window anodiff score, "
                    "evaluate and calibrate take any size"
                )
            return Geometry(native, native, (0, 0, *native))
        height, width = model_height, model_width
        if self.settings.resize == "pad":
            scale = min(model_height / native[0], model_width / native[1])
            height = min(model_height, max(1, round(native[0] * scale)))
            width = min(model_width, max(1, round(native[1] * scale)))
        box = ((model_height - height) // 2, (model_width - width) // 2, height, width)
        return Geometry(native, (model_height, model_width), box)

    def back(self, values: Tensor | np.ndarray, geometry: Geometry) -> np.ndarray:
        """A map (h, w) or (C, h, w) on the model's grid -> float32 (H, W) or (C, H, W) on the native grid.

        Padding is cut off; values are untouched, bit for bit, where the grids have the same size. Raises ValueError
        for a map that is not on the model's grid.
        """
        array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
        array = np.asarray(array, dtype=np.float32)
        if array.shape[-2:] != geometry.model:
            raise ValueError(f"expected a map of {geometry.model} on the model's grid, found {array.shape}")
        top, left, height, width = geometry.box
        inner = array[..., top : top + height, left : left + width]
        if inner.ndim == 2:
            return resize(inner, geometry.native)
        return np.stack([resize(plane, geometry.native) for plane in inner])

    def _foreground(self, grey: np.ndarray, raw: RawImage) -> np.ndarray:
        """bool (h, w): the given one, or from the channel mean: above the threshold, holes filled, specks dropped, all
        True if empty."""
        kind = self.settings.foreground
        if raw.foreground is not None:
            return on_grid(raw, (grey.shape[0], grey.shape[1]))
        if kind == "given":
            raise InputError(missing(raw.path))
        if kind == "none":
            return np.ones(grey.shape, dtype=bool)
        if kind == "otsu":
            threshold = otsu_threshold(grey)
        else:
            threshold = raw.low + self.settings.foreground_threshold * (raw.high - raw.low)
        mask = clean_foreground(grey > threshold)
        return mask if mask.any() else np.ones(grey.shape, dtype=bool)

    def _normalise(self, planes: np.ndarray, inside: np.ndarray, raw: RawImage) -> np.ndarray:
        intensity = self.settings.intensity
        if intensity.kind == "unit_range":
            return np.clip((planes - raw.low) * np.float32(2 / (raw.high - raw.low)) - 1, -1, 1)
        values = planes[:, inside]
        if intensity.kind == "nyul":
            return standardised(planes, values, intensity, raw.path)
        if intensity.kind == "percentile":
            low, high = statistics(values, intensity, raw.path)
            # not by offset and scale: rounded otherwise, and calibrated models expect these bits
            scores = (planes - low[:, None, None]) / (high - low)[:, None, None] * 2 - 1
        else:
            offset, scale = line(values, intensity, raw.path)
            scores = (planes - offset[:, None, None]) / scale[:, None, None]
        end = limit(intensity)
        return scores if end is None else np.clip(scores, -end, end)


def with_range(raw: RawImage, settings: PreprocessSettings) -> RawImage:
    """``raw`` with the range of ``settings.value_range`` where that is set, whatever its type; else as it is.

    Raises InputError for ``unit_range`` intensities where nobody says what the values mean: a type without a range of
    its own (float, wide or signed integers) and values outside [0, 1]. Its own minimum and maximum are no answer,
    because then the same tissue or part would look different from image to image.
    """
    if settings.value_range is not None:
        low, high = settings.value_range
        return replace(raw, low=float(low), high=float(high))
    if settings.intensity.kind != "unit_range" or raw.dtype in RANGED_TYPES or (raw.low, raw.high) == (0.0, 1.0):
        return raw
    raise InputError(
        f"{raw.path}: expected {raw.dtype} values in [0, 1] for unit_range intensities, found {raw.low:g} to "
        f"{raw.high:g}; say what they mean with preprocess.value_range: [low, high], or train with robust or "
        "percentile intensities"
    )


def select_channels(raw: RawImage, channels: int, channel: int | None = None) -> np.ndarray:
    """The pixels (H, W, channels) that a model of ``channels`` channels reads. Raises InputError if they do not fit."""
    pixels, found = raw.pixels, raw.pixels.shape[2]
    if channel is not None:
        if channel >= found:
            raise InputError(f"{raw.path}: expected a channel number {channel} (from 0), found {found} channel(s)")
        pixels, found = pixels[:, :, channel : channel + 1], 1
    if found == channels:
        return pixels
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if found == 3 and channels == 1 and _all_equal(pixels):
        return pixels[:, :, :1]
    colour = " of different colours (preprocess.channel picks one)" if found == 3 and channels == 1 else ""
    raise InputError(f"{raw.path}: expected {channels} channel(s), found {found}{colour}")


def _all_equal(pixels: np.ndarray) -> bool:
    return bool((pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 0] == pixels[:, :, 2]).all())


def resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (H, W) -> float32 ``size``: bilinear, anti-aliased when shrinking, pixel centres at half-integers.

    The same array where the sizes agree.
    """
    if plane.shape == size:
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that maximises the variance between the two classes (Otsu 1979), on a 256-bin histogram."""
    counts, edges = np.histogram(values, bins=OTSU_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    sum_below = np.cumsum(counts * centres)[:-1]
    mean_gap = sum_below / np.maximum(below, 1) - ((counts * centres).sum() - sum_below) / np.maximum(above, 1)
    return float(edges[1 + int(np.argmax(below * above * mean_gap**2))])


def erode(mask: np.ndarray, width: int) -> np.ndarray:
    """bool (H, W) without its outer ``width`` px (4-connected steps); unchanged where nothing would be left.

    Outside the image counts as inside, so that a head cut off by the border keeps its cut edge.
    """
    if not width:
        return mask
    from scipy import ndimage

    inner = np.asarray(ndimage.binary_erosion(mask, iterations=width, border_value=1), dtype=bool)
    return inner if inner.any() else mask


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) with what is outside but cut off from the border added (`binary_fill_holes`, at half the cost)."""
    from scipy import ndimage

    outside, count = ndimage.label(~mask)
    open_ = np.zeros(count + 1, dtype=bool)
    for border in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        open_[border] = True
    open_[0] = False
    return ~open_[outside]


def clean_foreground(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) with holes filled and every component below a tenth of the largest one dropped."""
    from scipy import ndimage

    filled = _without_holes(mask)
    labels, count = ndimage.label(filled)
    if count < 2:
        return np.asarray(filled, dtype=bool)
    sizes = np.bincount(labels.ravel())[1:]
    keep = np.concatenate([[False], sizes >= SPECKLE_SHARE * sizes.max()])
    return keep[labels]
