"""Volumes restored whole, through windows, or slice by slice, and brought back to their own grid and values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.config import PreprocessConfig, VolumeConfig
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.slices import VolumeSlicer, select_channels
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError
from anodiff.restoration.batches import Batch, Task
from anodiff.restoration.intensity import Intensity, noise_left
from anodiff.restoration.lost import Lost, file_axis, out_of_range, volume_sides
from anodiff.restoration.restored import Restored
from anodiff.restoration.volume_intensity import resampled_noise_left, volume_intensity, without_voxels
from anodiff.restoration.volume_slices import MISSING_SHARE, Slice, middle, put_back, whole_slices

#: a voxel is the model's where this share of it or more comes back from its grid
COVERED = 1 - 1e-4

#: bool (I, J, K) on the model's grid: what may change of a volume, found by looking at it
Find = Callable[[PreparedVolume, Volume], NDArray[np.bool_]]


@dataclass(frozen=True)
class LoadedVolume:
    """One volume: as read, with the model's channels, and as it may be looked at, with its hole filled and prepared.

    intensity, background: of the whole volume; None where each slice has its own. hole: bool (I, J, K), native.
    """

    volume: Volume
    seen: Volume
    prepared: PreparedVolume
    intensity: Intensity | None
    background: NDArray[np.bool_] | None
    hole: NDArray[np.bool_] | None


@dataclass(frozen=True)
class SliceLevel:
    """The noise level of a slice of the model's grid: its axis, its place there, the level and where it comes from.

    sigma_file: the level in the file's values, None where it has none there.
    """

    axis: int
    index: int
    sigma: float
    sigma_from: str
    sigma_file: float | None = None


@dataclass
class RestoredVolume:
    """One volume, restored, on the model's grid: values and spread (C, I, J, K) as stored; hole: what was painted.

    planes: see `anodiff.restoration.lost.volume_sides`. outside: of ``looked`` foreground voxels, those with values
    outside the model's range.
    """

    loaded: LoadedVolume
    values: NDArray[np.float32]
    hole: NDArray[np.bool_] | None = None
    spread: NDArray[np.float32] | None = None
    nfe: int = 0
    seconds: float = 0.0
    sigmas: list[float] = field(default_factory=list)
    sigma_from: list[str] = field(default_factory=list)
    sigmas_file: list[float] = field(default_factory=list)
    slices: list[SliceLevel] = field(default_factory=list)
    planes: dict[int, tuple[float, float]] = field(default_factory=dict)
    outside: int = 0
    looked: int = 0

    @property
    def lost(self) -> Lost:
        """What of the volume the model did not see."""
        sides = volume_sides(self.loaded.prepared.plan, self.planes)
        return Lost(self.loaded.volume.shape, sides, self.outside / max(1, self.looked))


@dataclass(frozen=True)
class NativeVolume:
    """A restored volume on its own grid: values and spread (C, I, J, K), bool hole (I, J, K) of what could change."""

    values: NDArray[np.float32]
    hole: NDArray[np.bool_] | None
    spread: NDArray[np.float32] | None


class VolumeRestorer:
    """Prepares volumes, restores them with a task, and brings them back.

    Args:
        preprocess, volume: the sections of a recipe.
        task: its images are volumes (1, C, I, J, K) of a model that sees them whole, else slices (N, C * stack, h, w).
        find: what finds, by looking, the part that is painted. None: the hole that is given, or all.
        average: restore the slices of every axis and average them, else only those of the first.
        at_once: slices of one call of the task.
        blind: what a given hole holds is not looked at; else it may change, and is what the task starts from.
    """

    def __init__(
        self,
        preprocess: PreprocessConfig,
        volume: VolumeConfig,
        task: Task,
        *,
        find: Find | None = None,
        average: bool = True,
        at_once: int = 16,
        blind: bool = True,
    ) -> None:
        self.preprocess, self.config = preprocess, volume
        self.slicer = VolumeSlicer(preprocess, volume)
        self.task, self.find, self.average, self.at_once, self.blind = task, find, average, at_once, blind

    def load(self, volume: Volume, hole: NDArray[np.bool_] | None = None) -> LoadedVolume:
        """The volume with its hole, bool (I, J, K), prepared without a look into it where that is so wanted.

        Raises InputError, see `VolumeSlicer`.
        """
        seen = without_voxels(volume, hole) if hole is not None and self.blind else volume
        prepared = self.slicer.prepare(seen)
        intensity, background = None, None
        if self.config.statistics == "volume":
            intensity, background = volume_intensity(seen, prepared.plan, self.preprocess, self.config)
        return LoadedVolume(volume, seen, prepared, intensity, background, hole)

    def __call__(self, loaded: LoadedVolume) -> RestoredVolume:
        """Restores one volume on the device. Raises InputError where the values become infinite."""
        began = time.monotonic()
        way = loaded.prepared.plan
        hole = None
        if loaded.hole is not None:
            hole = way.forward(loaded.hole.astype(np.float32)) >= MISSING_SHARE
        elif self.find is not None:
            hole = self.find(loaded.prepared, loaded.seen)
        stored = way.forward(self.channels(loaded.seen))
        done = RestoredVolume(loaded, stored, None if self.find is None else hole)
        if loaded.intensity is not None:
            self._count_outside(done, stored, loaded.prepared.foreground.numpy(), loaded.intensity)
        (self._whole if self.config.mode == "patches" else self._sliced)(done, hole)
        if not np.isfinite(done.values).all():
            raise InputError(
                f"{loaded.volume.path}: expected finite values, found others: do its intensities overflow?"
            )
        done.seconds = time.monotonic() - began
        return done

    def back(self, restored: RestoredVolume) -> NativeVolume:
        """The volume on its own grid; what the model did not see, or was not to change, is as it was read."""
        loaded, way = restored.loaded, restored.loaded.prepared.plan
        changed = way.back(np.ones(way.model.shape, dtype=np.float32)) >= COVERED
        hole = loaded.hole
        if restored.hole is not None:
            hole = way.back(restored.hole.astype(np.float32)) >= 0.5
        if hole is not None:
            changed &= hole
        values = np.where(changed, way.back(restored.values), self.channels(loaded.volume))
        spread = None if restored.spread is None else _grey(way.back(restored.spread), loaded.volume)
        return NativeVolume(_grey(values, loaded.volume), hole, spread)

    def channels(self, volume: Volume) -> NDArray[np.float32]:
        """(C, I, J, K): the channels that the model reads. Raises InputError where they do not fit."""
        return select_channels(volume, self.preprocess.channels, self.preprocess.channel).data

    def sides(self, loaded: LoadedVolume) -> tuple[int | None, tuple[int, int, int]]:
        """(axis of the file along which the first slices are cut, None where it is seen whole; how many voxels the
        model has along the axes of the file, padding and cropping apart)."""
        way = loaded.prepared.plan
        if self.config.mode == "patches":
            return None, volume_sides(way, {})
        shape: tuple[int, int, int] = tuple(loaded.prepared.image.shape[1:])  # type: ignore[assignment]
        axis = self.slicer.axes(shape)[0]
        width, height = (side for other, side in enumerate(shape) if other != axis)
        _, _, *inner = self.slicer.preprocessor.geometry((height, width)).box
        planes = {axis: (inner[0] / height, inner[1] / width)}
        return file_axis(way, axis), volume_sides(way, planes)

    def _whole(self, done: RestoredVolume, hole: NDArray[np.bool_] | None) -> None:
        loaded = done.loaded
        prepared, intensity, background = loaded.prepared, loaded.intensity, loaded.background
        assert intensity is not None
        assert background is not None
        if hole is not None and not hole.any():
            return
        restored, _ = self.task(
            Batch(
                prepared.image[None],
                prepared.foreground[None],
                None if hole is None else torch.from_numpy(hole)[None],
                [intensity],
                lambda: torch.from_numpy(background)[None],
                lambda: torch.tensor([resampled_noise_left(prepared.plan)]),
            )
        )
        image = restored.images[0].numpy()
        done.values = _as_stored(image, intensity.back)
        if restored.uncertainty is not None:
            done.spread = _as_stored(restored.uncertainty[0].numpy(), intensity.spread_back, image)
        done.nfe = restored.nfe
        _note_levels(done, restored, [intensity])

    def _sliced(self, done: RestoredVolume, hole: NDArray[np.bool_] | None) -> None:
        prepared = done.loaded.prepared
        axes = self.slicer.axes(tuple(prepared.image.shape[1:]))  # type: ignore[arg-type]
        results = []
        for axis in axes if self.average else axes[:1]:
            loaded = done.loaded
            slices = whole_slices(self.slicer, prepared, loaded.seen, axis, loaded.intensity, loaded.background, hole)
            if slices:
                (height, width), (_, _, *inner) = slices[0].geometry.native, slices[0].geometry.box
                done.planes[axis] = inner[0] / height, inner[1] / width
            if loaded.intensity is None:
                self._count_slices(done, slices, axis)
            values, spread = done.values.copy(), np.zeros_like(done.values)
            for start in range(0, len(slices), self.at_once):
                self._slices(done, slices[start : start + self.at_once], axis, values, spread)
            results.append((values, spread))
        done.values = np.mean([values for values, _ in results], axis=0)
        done.spread = None if done.spread is None else np.mean([spread for _, spread in results], axis=0)

    def _count_outside(
        self, done: RestoredVolume, stored: NDArray[np.float32], inside: NDArray[np.bool_], intensity: Intensity
    ) -> None:
        """Counts the values (C, *S) where bool (*S) is inside, and those outside the model's range."""
        outside = out_of_range(stored[:, inside], intensity, self.preprocess.intensity)
        done.outside += int(outside.sum())
        done.looked += outside.size

    def _count_slices(self, done: RestoredVolume, slices: Sequence[Slice], axis: int) -> None:
        """As `_count_outside` for slices with intensities of their own, before the first of them is restored."""
        inside = np.moveaxis(done.loaded.prepared.foreground.numpy(), axis, 0)
        stored = np.moveaxis(done.values, axis + 1, 0)
        for each in slices:
            self._count_outside(done, stored[each.number], inside[each.number], each.intensity)

    def _slices(
        self,
        done: RestoredVolume,
        slices: Sequence[Slice],
        axis: int,
        values: NDArray[np.float32],
        spread: NDArray[np.float32],
    ) -> None:
        """Restores slices of one axis into values and spread (C, I, J, K)."""
        left = resampled_noise_left(done.loaded.prepared.plan)
        holes = [each.hole for each in slices if each.hole is not None]
        restored, _ = self.task(
            Batch(
                torch.stack([each.image for each in slices]),
                torch.stack([each.foreground for each in slices]),
                torch.stack(holes) if holes else None,
                [each.intensity for each in slices],
                lambda: torch.stack([each.background for each in slices]),
                lambda: torch.tensor([left * noise_left(each.geometry) for each in slices]),
            )
        )
        own, back = middle(self.slicer), self.slicer.preprocessor.back
        for row, each in enumerate(slices):
            image = back(restored.images[row][own], each.geometry)
            put_back(values, axis, each.number, each.intensity.back(image))
            if restored.uncertainty is not None:
                deviation = back(restored.uncertainty[row][own], each.geometry)
                put_back(spread, axis, each.number, each.intensity.spread_back(deviation, image))
                done.spread = spread
        done.nfe += restored.nfe * len(slices)
        places = [(axis, each.number) for each in slices]
        _note_levels(done, restored, [each.intensity for each in slices], places)


def _note_levels(
    done: RestoredVolume,
    restored: Restored,
    intensities: Sequence[Intensity],
    places: Sequence[tuple[int, int]] = (),
) -> None:
    """Keeps the noise levels that were given or found, of slices each with its place."""
    if restored.sigma is None or restored.sigma_from is None:
        return
    levels: list[float] = restored.sigma.tolist()
    stored: list[float | None] = [None] * len(levels)
    if not restored.counts:
        stored = [each.level_back(level) for each, level in zip(intensities, levels, strict=True)]
    done.sigmas += levels
    done.sigma_from += restored.sigma_from
    done.sigmas_file += [each for each in stored if each is not None]
    for place, level, told, of_file in zip(places, levels, restored.sigma_from, stored, strict=False):
        done.slices.append(SliceLevel(*place, level, told, of_file))


def _as_stored(
    values: NDArray[np.float32], back: Callable[..., NDArray[np.float32]], *others: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A map of an `Intensity`, of images (C, H, W) to (H, W, C), on volumes (C, I, J, K)."""
    flat = [each.reshape(len(each), len(each[0]), -1) for each in (values, *others)]
    return np.moveaxis(back(*flat), 2, 0).reshape(values.shape)


def _grey(values: NDArray[np.float32], volume: Volume) -> NDArray[np.float32]:
    """(C, I, J, K); a grey volume of which a model made three channels becomes grey again."""
    return values.mean(axis=0, keepdims=True) if len(volume.data) == 1 and len(values) > 1 else values
