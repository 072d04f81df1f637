"""Normal slices and patches of volumes to learn from: nothing at or near an annotated lesion is among them.

Volumes are prepared as for scoring and kept as half-precision numbers in a temporary file that the system may page
out; what is drawn is float32 again (off by at most 2**-12 within [-1, 1]).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anodiff.config import AnodiffConfig, AugmentConfig
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.read import read_given
from anodiff.data.volumes.slices import VolumeSlicer, cut_slices
from anodiff.data.volumes.volume import Volume
from anodiff.engine.device import to_device
from anodiff.errors import DataError, InputError
from anodiff.training.augment import NUMBERS, augment
from anodiff.training.examples import Drawn
from anodiff.training.normal_parts import (
    LESION_MARGIN_MM,
    NormalPart,
    anatomical_axes,
    normal_slices,
    normal_voxels,
    other_axes,
    spacing_mm,
)
from anodiff.training.patches import PatchExamples, PatchSource, lesion_free_starts
from anodiff.training.slabs import SLAB_GAP_MM, slab_gap

if TYPE_CHECKING:
    from anodiff.engine.progress import Progress


@dataclass
class SliceExamples:
    """Slices with their neighbours, drawn from prepared volumes.

    slices: float16 (M, C, h, w); rows: int64 (N, stack), which of them an example is made of, in the order of the
    volume; planes: int64 (N,), the axis each was cut along; flips: axes of the grid (left-right, head-foot).
    """

    slices: Tensor
    rows: Tensor
    planes: Tensor
    settings: AugmentConfig
    flips: tuple[int, int] = (0, 2)

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, index: Tensor, u: Tensor, device: torch.device) -> Drawn:
        """See `examples.Examples`; a mirrored body is mirrored along its own axis, whatever way it was cut."""
        chosen = self.rows[index]
        images = to_device(self.slices[chosen.flatten()], device, torch.float32)
        images = images.view(*chosen.shape, *images.shape[1:])  # (N, stack, C, h, w)
        wanted = ((self.settings.flip_lr, self.flips[0], 4), (self.settings.flip_ud, self.flips[1], 5))
        for on, axis, number in wanted:
            if on:
                images = self._mirrored(images, axis, u[:, number] < 0.5, self.planes[index])
        unflipped = self.settings.model_copy(update={"flip_lr": False, "flip_ud": False})
        return Drawn(augment(images.flatten(1, 2), unflipped, u))

    def sample(self, count: int, seed: int) -> Drawn:
        """At most ``count`` of them, drawn without replacement, not augmented."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values
        plain = replace(self, settings=AugmentConfig())
        return plain.draw(order, torch.full((len(order), NUMBERS), 0.5), torch.device("cpu"))

    def _mirrored(self, images: Tensor, axis: int, which: Tensor, planes: Tensor) -> Tensor:
        images = images.clone()
        for plane in planes.unique().tolist():
            # Across is the earlier of the two other axes, down the later; along the cut the slices change places.
            others = [other for other in range(3) if other != plane]
            dim = 1 if axis == plane else (-1 if axis == others[0] else -2)
            rows = (which & (planes == plane)).to(images.device)
            images[rows] = images[rows].flip(dim)
        return images


@dataclass(frozen=True)
class VolumeNormals:
    """What a part of a data set gives.

    examples: slices or patches. paths, groups, hashes: one a volume that gave any; failed: a sentence for each other
    one. covered: share of the foreground that is in any of its slices or patches. remarks: a sentence for each volume
    that gave less than was asked for.
    """

    examples: SliceExamples | PatchExamples
    paths: tuple[str, ...]
    groups: tuple[str, ...]
    failed: tuple[str, ...]
    covered: float
    hashes: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def read_normals(
    parts: Sequence[NormalPart], config: AnodiffConfig, *, progress: Progress | None = None
) -> VolumeNormals:
    """Reads volumes and keeps what is normal of them. Raises DataError where nothing is."""
    assert config.volume is not None
    slicer = VolumeSlicer(config.preprocess, config.volume)
    gather = _Patches(config) if config.volume.mode == "patches" else _Slices(config, slicer)
    kept: list[NormalPart] = []
    hashes, failed, shares = [], [], []
    with tempfile.TemporaryFile() as store:
        for part in parts:
            try:
                volume = read_given(part.path, part.foreground)
                prepared = slicer.prepare(volume)
                shares.append(gather.add(store, prepared, volume, part))
                kept.append(part)
                hashes.append(volume_hash(volume))
            except InputError as error:
                failed.append(str(error))
            if progress is not None:
                progress.update(1)
        if not kept:
            raise DataError(f"expected normal volumes, found none in {len(parts)} ({failed[0] if failed else ''})")
        store.flush()
        examples = gather.finish(store)
    return VolumeNormals(
        examples,
        tuple(part.path for part in kept),
        tuple(part.group for part in kept),
        tuple(failed),
        sum(shares) / len(shares),
        tuple(hashes),
        tuple(gather.remarks),
    )


def volume_hash(volume: Volume) -> int:
    """As `anodiff.data.seen.pixel_hash`, of a decoded volume."""
    from anodiff.data.readers import RawImage
    from anodiff.data.seen import pixel_hash

    return pixel_hash(RawImage(volume.data, volume.low, volume.high, volume.dtype, volume.path))


class _Slices:
    """Collects slices in a file."""

    def __init__(self, config: AnodiffConfig, slicer: VolumeSlicer) -> None:
        assert config.volume is not None
        self.config, self.volume, self.slicer = config, config.volume, slicer
        self.rows: list[list[int]] = []
        self.planes: list[int] = []
        self.remarks: list[str] = []
        self.count = 0

    def add(self, store: IO[bytes], prepared: PreparedVolume, volume: Volume, part: NormalPart) -> float:
        """Takes in a volume; the share of its foreground that is in a slice. Raises InputError where there is none."""
        before = len(self.rows)
        covered = np.zeros(prepared.plan.model.shape, dtype=bool)
        axes = self.slicer.axes(prepared.plan.model.shape)
        clear = normal_slices(part, volume, prepared, self.volume, axes)
        without = []
        for axis in axes:
            images, rows = self._cut(prepared, volume, clear[axis], axis)
            without += [] if rows else [str(axis)]
            store.write(images.half().numpy().tobytes())
            self.rows += [[self.count + place for place in stack] for stack, _ in rows]
            self.planes += [axis] * len(rows)
            self.count += len(images)
            np.moveaxis(covered, axis, 0)[[number for _, number in rows]] = True
        taken = self._taken_by_gap(part, volume, prepared, axes, len(self.rows) - before)
        if len(self.rows) == before:
            why = taken or self._why_none(part, prepared, clear, axes)
            raise InputError(f"{volume.path}: expected a normal slice with enough foreground, found none: {why}")
        if taken:
            self.remarks.append(f"{volume.path}: {taken}")
        if without:
            self.remarks.append(
                f"{volume.path}: no slice along {', '.join(without)} is normal with enough foreground, so nothing is "
                "learnt from it along there (volume.axes)"
            )
        foreground = prepared.foreground.numpy()
        return float(covered[foreground].mean()) if foreground.any() else 0.0

    def finish(self, store: IO[bytes]) -> SliceExamples:
        """The examples, backed by the file."""
        height, width = self.config.preprocess.size
        shape = (self.count, self.config.preprocess.channels, height, width)
        slices = torch.from_numpy(np.memmap(store, dtype=np.float16, mode="c", shape=shape))
        axes = anatomical_axes(self.volume.orientation)
        return SliceExamples(slices, torch.tensor(self.rows), torch.tensor(self.planes), self.config.augment, axes)

    def _why_none(
        self, part: NormalPart, prepared: PreparedVolume, clear: Sequence[np.ndarray], axes: Sequence[int]
    ) -> str:
        """Why a volume gives no slice: how many are clear of what may not be seen, and their foreground."""
        settings, found = self.volume, []
        for axis in axes:
            places = clear[axis]
            share = prepared.foreground.numpy().mean(axis=other_axes(axis))[places].max(initial=0.0)
            # Where intensities are of each slice, so is the foreground.
            most = (
                ""
                if settings.statistics == "slice" or not places.any()
                else f", whose foreground is at most {share:.3g}"
            )
            found.append(f"{int(places.sum())} of {len(places)} slices along {axis} may be used{most}")
        keys = [f"volume.min_foreground={settings.min_foreground:g}"]
        if part.mask:
            keys.append(f"lesions {LESION_MARGIN_MM:g} mm away, also from volume.neighbours={settings.neighbours}")
        return f"{'; '.join(found)} (asked for: {', '.join(keys)})"

    def _taken_by_gap(
        self, part: NormalPart, volume: Volume, prepared: PreparedVolume, axes: Sequence[int], left: int
    ) -> str:
        """How many slices of a single patient are lost beside the held-out slab, in words; nothing of other parts."""
        if part.slab is None or part.slab.held:
            return ""
        axis, slab = part.slab.axis, replace(part.slab, held=True)
        share = prepared.foreground.numpy().mean(axis=other_axes(axis))
        enough = (share > 0) & ((share >= self.volume.min_foreground) | (self.volume.statistics == "slice"))
        normal, held = (
            int((normal_slices(replace(part, slab=side), volume, prepared, self.volume, axes)[axis] & enough).sum())
            for side in (None, slab)
        )
        lost = normal - held - left
        if lost <= 0:
            return ""
        gap = slab_gap(slab, float(spacing_mm(volume, prepared)[axis]))
        return (
            f"of {normal} normal slices {held} are held out (training.holdout) and {lost} lie in the gap of {gap} "
            f"slices beside them ({SLAB_GAP_MM:g} mm and twice volume.neighbours={self.volume.neighbours}): {left} "
            "are left to learn from"
        )

    def _cut(
        self, prepared: PreparedVolume, volume: Volume, clear: np.ndarray, axis: int
    ) -> tuple[Tensor, list[tuple[list[int], int]]]:
        """(slices (M, C, h, w), for each example the M of its stack and its place along the axis)."""
        if self.volume.statistics == "slice":
            stack = self.slicer.cut(prepared, axis, volume)
            keep = [n for n, place in enumerate(stack.index) if clear[place]]
            return stack.images[keep], [([n], stack.index[keep[n]]) for n in range(len(keep))]
        inside = prepared.foreground.numpy()
        share = inside.mean(axis=other_axes(axis))
        index = [n for n in np.flatnonzero(clear).tolist() if share[n] > 0 and share[n] >= self.volume.min_foreground]
        last, reach = len(clear) - 1, range(-self.volume.neighbours, self.volume.neighbours + 1)
        stacks = {n: [min(max(n + step, 0), last) for step in reach] for n in index}
        needed = sorted({place for stack in stacks.values() for place in stack})
        wanted = np.zeros(inside.shape, dtype=bool)
        np.moveaxis(wanted, axis, 0)[needed] = True
        single = self.volume.model_copy(update={"neighbours": 0, "min_foreground": 0.0})
        cut = cut_slices(prepared.image, torch.from_numpy(wanted), axis, self.config.preprocess, single)
        place_of = {number: place for place, number in enumerate(cut.index)}
        return cut.images, [([place_of[place] for place in stacks[n]], n) for n in index]


class _Patches:
    """Collects prepared volumes in a file, and where patches may be taken from."""

    def __init__(self, config: AnodiffConfig) -> None:
        assert config.volume is not None
        self.config, self.volume = config, config.volume
        self.sources: list[PatchSource] = []
        self.places: list[tuple[int, tuple[int, ...]]] = []
        self.remarks: list[str] = []
        self.count = 0

    def add(self, store: IO[bytes], prepared: PreparedVolume, volume: Volume, part: NormalPart) -> float:
        """Takes in a volume; the share of its foreground that is in a patch. Raises InputError where there is none."""
        free = normal_voxels(part, volume, prepared)
        image, foreground = _padded(prepared.image.numpy(), prepared.foreground.numpy(), self.volume.patch)
        allowed = np.pad(free, [(0, big - side) for big, side in zip(foreground.shape, free.shape, strict=True)])
        # What was padded is no lesion, and no place to centre a patch on either.
        allowed[tuple(slice(side, None) for side in free.shape)] = True
        starts = lesion_free_starts(allowed, foreground, self.volume.patch, self.config.augment)
        if not len(starts.inner):
            size = " x ".join(map(str, self.volume.patch))
            raise InputError(f"{volume.path}: expected a lesion-free patch of {size} voxels, found none")
        spacing = spacing_mm(volume, prepared)
        wanted = max(1, round(foreground.sum() * starts.covered / math.prod(self.volume.patch)))
        self.sources.append(PatchSource(torch.empty(0), starts.inner, starts.anywhere, tuple(spacing.tolist()), wanted))
        data = image.astype(np.float16)
        self.places.append((self.count, data.shape))
        store.write(data.tobytes())
        self.count += data.size
        return starts.covered

    def finish(self, store: IO[bytes]) -> PatchExamples:
        """The examples, backed by the file."""
        whole = torch.from_numpy(np.memmap(store, dtype=np.float16, mode="c", shape=(self.count,)))
        sources = [
            replace(source, volume=whole[start : start + math.prod(shape)].view(shape))
            for source, (start, shape) in zip(self.sources, self.places, strict=True)
        ]
        axes = anatomical_axes(self.volume.orientation)
        return PatchExamples(sources, self.volume.patch, self.config.augment, axes)


def _padded(image: np.ndarray, foreground: np.ndarray, patch: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """At least as large as a patch: the border of the image is repeated at the far ends, the foreground is not."""
    more = [(0, max(0, edge - side)) for edge, side in zip(patch, foreground.shape, strict=True)]
    return np.pad(image, [(0, 0), *more], mode="edge"), np.pad(foreground, more)
