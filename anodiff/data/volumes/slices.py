"""Volumes as a recipe wants them, cut into the slices that a network sees, and slices put together to a volume again.

Slices of a volume are images (C, H, W): of the two axes that are left the later one runs down and the earlier one
across, so that in the orientation LPI (left, posterior, inferior) every plane looks as on a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anodiff.data.foreground import nearest
from anodiff.data.preprocess import Geometry, Preprocessor, resize
from anodiff.data.readers import RawImage
from anodiff.data.volumes.geometry import plan
from anodiff.data.volumes.preprocess import (
    PreparedVolume,
    VolumeIntensity,
    VolumePreprocessor,
    VolumeSettings,
    given_foreground,
    valid_voxels,
)
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError

if TYPE_CHECKING:
    from anodiff.config import PreprocessConfig, VolumeConfig


@dataclass(frozen=True)
class SliceStack:
    """The slices along one axis of a volume (C, I, J, K) that have something to look at.

    images: float32 (N, C * stack, h, w), the channels of each slice after those of the one before it in the volume;
    foreground: bool (N, h, w); index: (N,) where each lies along ``axis``; geometry: of a slice; shape: (I, J, K).
    """

    images: Tensor
    foreground: Tensor
    index: tuple[int, ...]
    axis: int
    geometry: Geometry
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.images)

    def only(self, keep: Sequence[int]) -> SliceStack:
        """Some of the slices, by their number in the stack."""
        chosen = list(keep)
        index = tuple(self.index[n] for n in chosen)
        return replace(self, images=self.images[chosen], foreground=self.foreground[chosen], index=index)


class VolumeSlicer:
    """Volume -> PreparedVolume -> SliceStack, and maps of slices -> a map of the volume; by a recipe's two sections."""

    def __init__(self, preprocess: PreprocessConfig, volume: VolumeConfig) -> None:
        self.preprocess, self.volume = preprocess, volume
        # The channel is chosen when a volume is prepared.
        self.preprocessor = Preprocessor(preprocess.model_copy(update={"channel": None}))

    def prepare(self, volume: Volume) -> PreparedVolume:
        """The volume on the model's grid; in [-1, 1] unless intensities are of each slice, then as stored.

        Raises InputError for another number of channels, values whose range is unknown or without spread.
        """
        return prepare_volume(volume, self.preprocess, self.volume)

    def axes(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """The axes along which a volume on the model's grid is cut: the recipe's, or the thin one of a single slice."""
        thin = [axis for axis, side in enumerate(shape) if side == 1]
        return (thin[0],) if len(thin) == 1 else self.volume.axes

    def cut(self, prepared: PreparedVolume, axis: int, volume: Volume | None = None) -> SliceStack:
        """The slices along ``axis`` with at least ``volume.min_foreground`` of foreground, of those that are clear.

        ``volume``: what was prepared; needed where intensities are of each slice. Raises InputError where the range
        of its values is unknown.
        """
        if self.volume.statistics == "slice":
            if volume is None:
                raise ValueError("slices with statistics of their own need the volume that was prepared")
            stack = self._cut_each(prepared, axis, volume)
        else:
            stack = cut_slices(prepared.image, prepared.foreground, axis, self.preprocess, self.volume)
        if prepared.clear is None:
            return stack
        return stack.only([n for n, place in enumerate(stack.index) if prepared.clear[axis][place]])

    def _cut_each(self, prepared: PreparedVolume, axis: int, volume: Volume) -> SliceStack:
        """Every slice as an image of its own; constant ones and those without spread have nothing to look at."""
        whole = _slices(prepared.image.numpy(), axis)
        valid = _slices(prepared.foreground.numpy()[None], axis)[:, 0]
        geometry = self.preprocessor.geometry((whole.shape[2], whole.shape[3]))
        pixels_inside = geometry.box[2] * geometry.box[3]
        images, foreground, index = [], [], []
        for number, pixels in enumerate(whole):
            if pixels.min() == pixels.max():
                continue
            raw = RawImage(np.moveaxis(pixels, 0, 2), volume.low, volume.high, volume.dtype, volume.path)
            if volume.ranged and self.preprocess.value_range is None:
                # The range of the stored type, through the file's scaling, is known: uint8 says so.
                raw = replace(raw, dtype="uint8")
            if prepared.given:
                if not nearest(valid[number], geometry.box[2:]).any():
                    continue
                raw = replace(raw, foreground=valid[number])
            try:
                found = self.preprocessor(raw)
            except InputError as error:
                if "no spread" in str(error):
                    continue
                raise
            inside = found.foreground
            if not prepared.given:
                inside = inside & torch.from_numpy(_resized_mask(valid[number], geometry))
            if bool(inside.any()) and int(inside.sum()) >= self.volume.min_foreground * pixels_inside:
                images.append(found.image)
                foreground.append(inside)
                index.append(number)
        return _stack(images, foreground, index, axis, geometry, prepared.image.shape, self.preprocess.channels)

    def join(self, maps: Tensor | np.ndarray, stack: SliceStack) -> np.ndarray:
        """Maps (N, h, w) of the slices of a stack -> float32 (I, J, K); 0 where no slice was."""
        return join_slices(maps, stack, self.preprocessor)

    def inside(self, stack: SliceStack) -> np.ndarray:
        """bool (I, J, K): the foreground of the slices of a stack."""
        return self.join(stack.foreground.float(), stack) >= 0.5


def volume_settings(preprocess: PreprocessConfig, volume: VolumeConfig) -> VolumeSettings:
    """What `VolumePreprocessor` needs of a recipe."""
    intensity = preprocess.intensity
    return VolumeSettings(
        orientation=volume.orientation,
        spacing=volume.spacing,
        size=volume.size,
        crop_to_foreground=volume.crop_to_foreground,
        intensity=VolumeIntensity(
            intensity.kind,
            intensity.low,
            intensity.high,
            intensity.clip,
            intensity.spread,
            landmarks=intensity.landmarks,
            standard=intensity.standard,
        ),
        value_range=preprocess.value_range,
        foreground=preprocess.foreground,
        foreground_threshold=preprocess.foreground_threshold,
        foreground_erode_px=preprocess.foreground_erode_px,
        foreground_erode_mm=volume.foreground_erode_mm,
    )


def prepare_volume(volume: Volume, preprocess: PreprocessConfig, config: VolumeConfig) -> PreparedVolume:
    """The volume on the model's grid; in [-1, 1] unless intensities are of each slice, then as stored.

    Raises InputError for another number of channels, values whose range is unknown or without spread, and for a
    foreground that should be given and is not.
    """
    volume = select_channels(volume, preprocess.channels, preprocess.channel)
    if config.statistics == "volume":
        return VolumePreprocessor(volume_settings(preprocess, config))(volume)
    way = plan(volume, config.orientation, config.spacing, config.size)
    inside = given_foreground(volume, way, preprocess.foreground)
    foreground = torch.from_numpy(np.ascontiguousarray(valid_voxels(volume, way) if inside is None else inside))
    image = torch.from_numpy(np.ascontiguousarray(way.forward(volume.data)))
    return PreparedVolume(image, foreground, way, given=inside is not None)


def select_channels(volume: Volume, channels: int, channel: int | None = None) -> Volume:
    """The volume with the ``channels`` that a model reads, by the rules for images. Raises InputError if they do not
    fit."""
    data, found = volume.data, len(volume.data)
    if channel is not None:
        if channel >= found:
            raise InputError(f"{volume.path}: expected a channel number {channel} (from 0), found {found} channel(s)")
        data, found = data[channel : channel + 1], 1
    if found == channels:
        return replace(volume, data=data)
    if found == 1 and channels == 3:
        return replace(volume, data=np.repeat(data, 3, axis=0))
    if found == 3 and channels == 1 and (data[0] == data[1]).all() and (data[0] == data[2]).all():
        return replace(volume, data=data[:1])
    raise InputError(
        f"{volume.path}: expected {channels} channel(s), found {found} (preprocess.channel picks one, from 0)"
    )


def cut_slices(
    image: Tensor, foreground: Tensor, axis: int, preprocess: PreprocessConfig, volume: VolumeConfig
) -> SliceStack:
    """Slices of a prepared image (C, I, J, K) and its foreground (I, J, K), with their neighbours as channels.

    Beyond the first and the last slice these are repeated. Slices with less than ``volume.min_foreground`` of
    foreground (of their size on the volume's grid) are left out, but are neighbours of others.
    """
    slices = _slices(image.numpy(), axis)
    inside = _slices(foreground.numpy()[None], axis)[:, 0]
    geometry = Preprocessor(preprocess).geometry((slices.shape[2], slices.shape[3]))
    share = inside.mean(axis=(1, 2))
    likely = [n for n in range(len(slices)) if inside[n].any() and share[n] >= volume.min_foreground]
    # What is of a few voxels may vanish on a coarser grid, and a slice without foreground would be scored whole.
    on_grid = {n: mask for n in likely if (mask := _resized_mask(inside[n], geometry)).any()}
    index = list(on_grid)
    reach = range(-volume.neighbours, volume.neighbours + 1)
    needed = {min(max(n + step, 0), len(slices) - 1) for n in index for step in reach}
    ready = {n: torch.from_numpy(_on_grid(slices[n], geometry)) for n in sorted(needed)}
    images = [torch.cat([ready[min(max(n + step, 0), len(slices) - 1)] for step in reach]) for n in index]
    masks = [torch.from_numpy(on_grid[n]) for n in index]
    return _stack(images, masks, index, axis, geometry, image.shape, len(image) * volume.stack)


def join_slices(maps: Tensor | np.ndarray, stack: SliceStack, preprocessor: Preprocessor) -> np.ndarray:
    """Maps (N, h, w) of the slices of a stack -> float32 (I, J, K); 0 where no slice was."""
    values = np.zeros(stack.shape, dtype=np.float32)
    ordered = np.moveaxis(values, stack.axis, 0)
    for number, found in zip(stack.index, maps, strict=True):
        # the view of `values` along the axis is (across, down)
        ordered[number] = preprocessor.back(found, stack.geometry).T
    return values


def _slices(array: np.ndarray, axis: int) -> np.ndarray:
    """(C, I, J, K) -> (N, C, H, W): the later of the other axes down, the earlier one across."""
    moved = np.moveaxis(array, axis + 1, 0)
    return np.ascontiguousarray(np.swapaxes(moved, 2, 3))


def _on_grid(planes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """float32 (C, H, W) resized into the box of the model's grid, its border repeated in the padding."""
    _, _, height, width = geometry.box
    resized = np.stack([resize(plane, (height, width)) for plane in planes])
    return np.pad(resized, ((0, 0), *_margins(geometry)), mode="edge")


def _resized_mask(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """bool (H, W) on the model's grid: where at least half of the pixel is; not in padding."""
    _, _, height, width = geometry.box
    inside = mask if mask.shape == (height, width) else resize(mask.astype(np.float32), (height, width)) >= 0.5
    return np.pad(inside, _margins(geometry), constant_values=False)


def _margins(geometry: Geometry) -> tuple[tuple[int, int], tuple[int, int]]:
    top, left, height, width = geometry.box
    return (top, geometry.model[0] - top - height), (left, geometry.model[1] - left - width)


def _stack(
    images: list[Tensor],
    masks: list[Tensor],
    index: list[int],
    axis: int,
    geometry: Geometry,
    shape: torch.Size,
    channels: int,
) -> SliceStack:
    i, j, k = shape[1:]
    if not images:
        empty = torch.zeros(0, channels, *geometry.model)
        return SliceStack(empty, torch.zeros(0, *geometry.model, dtype=torch.bool), (), axis, geometry, (i, j, k))
    return SliceStack(torch.stack(images), torch.stack(masks), tuple(index), axis, geometry, (i, j, k))
