"""The native grid, the model's grid, and an exact way between them.

A plan is a chain of steps, each of which knows both of its grids: orientation (a permutation and flips, bit-exact both
ways), spacing (separable linear weights; the same grid is left alone, bit for bit) and size (crop and pad). Arrays are
(..., I, J, K); world coordinates are those of the affines: a step changes where a voxel is stored, never where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anodiff.data.volumes.volume import Volume, voxel_sizes

Shape = tuple[int, int, int]
#: spacings that differ by less than this share are the same
SAME_SPACING = 1e-4
_AXIS_PAIRS = ("RL", "AP", "SI")


@dataclass(frozen=True)
class Grid:
    """shape: (I, J, K); affine: float64 (4, 4), voxel to RAS+ world."""

    shape: Shape
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j and k, in the affine's units."""
        i, j, k = voxel_sizes(self.affine)
        return float(i), float(j), float(k)


class Step(Protocol):
    """One change of grid; ``forward`` and ``back`` take float arrays (..., I, J, K)."""

    @property
    def source(self) -> Grid: ...
    @property
    def target(self) -> Grid: ...
    def forward(self, array: np.ndarray) -> np.ndarray: ...
    def back(self, array: np.ndarray, fill: float) -> np.ndarray: ...


@dataclass(frozen=True)
class Reorient:
    """axes: for each target axis the source axis it takes; flips: for each target axis, whether it runs backwards."""

    source: Grid
    target: Grid
    axes: Shape
    flips: tuple[bool, bool, bool]

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Bit for bit the same values, stored in another order."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return _own(np.flip(moved, self._flipped(lead)))

    def back(self, array: np.ndarray, fill: float) -> np.ndarray:
        """The inverse of ``forward``, bit for bit."""
        lead = array.ndim - 3
        home = np.argsort(self.axes)
        turned = np.flip(array, self._flipped(lead))
        return _own(turned.transpose(*range(lead), *(lead + axis for axis in home)))

    def _flipped(self, lead: int) -> tuple[int, ...]:
        return tuple(lead + axis for axis in range(3) if self.flips[axis])


@dataclass(frozen=True)
class Resample:
    """Another spacing on the same axes; the centres of both grids' fields of view coincide."""

    source: Grid
    target: Grid

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Linear interpolation, with the support of a target voxel where that is larger (anti-aliased)."""
        return _resample(array, self.source, self.target, smooth=True)

    def back(self, array: np.ndarray, fill: float) -> np.ndarray:
        """Linear interpolation at the source's own voxel centres."""
        return _resample(array, self.target, self.source, smooth=False)

    def nearest(self, array: np.ndarray) -> np.ndarray:
        """The value of the nearest source voxel, of any type; halfway between two, that of the earlier one."""
        for axis in range(3):
            count, side = self.source.shape[axis], self.target.shape[axis]
            factor = self.target.spacing[axis] / self.source.spacing[axis]
            if count == side and abs(factor - 1) < SAME_SPACING:
                continue
            # The small term settles halves the same way on every axis, whatever the rounding of the affine.
            index = np.ceil(_places(count, side, factor) - 0.5 - 1e-6)
            array = np.take(array, np.clip(index, 0, count - 1).astype(int), axis=array.ndim - 3 + axis)
        return array


@dataclass(frozen=True)
class CropPad:
    """offset: the source index of the target's first voxel along each axis; negative where the target has padding."""

    source: Grid
    target: Grid
    offset: Shape

    def forward(self, array: np.ndarray) -> np.ndarray:
        """The part of the source that the target covers; outside of the source its border is repeated."""
        for axis, (start, size) in enumerate(zip(self.offset, self.target.shape, strict=True), start=array.ndim - 3):
            index = np.clip(np.arange(start, start + size), 0, array.shape[axis] - 1)
            array = np.take(array, index, axis=axis)
        return array

    def back(self, array: np.ndarray, fill: float) -> np.ndarray:
        """Padding cut off; ``fill`` where the target did not reach."""
        result = np.full((*array.shape[:-3], *self.source.shape), fill, dtype=array.dtype)
        inner: list[slice] = []
        outer: list[slice] = []
        for start, size, side in zip(self.offset, self.target.shape, self.source.shape, strict=True):
            first, last = max(start, 0), max(min(start + size, side), max(start, 0))
            outer.append(slice(first, last))
            inner.append(slice(first - start, last - start))
        result[..., outer[0], outer[1], outer[2]] = array[..., inner[0], inner[1], inner[2]]
        return result

    def covered(self) -> np.ndarray:
        """bool (I, J, K) on the target: False in padding."""
        result = np.ones(self.target.shape, dtype=bool)
        for axis, (start, size) in enumerate(zip(self.offset, self.target.shape, strict=True)):
            index = np.arange(start, start + size)
            keep = (index >= 0) & (index < self.source.shape[axis])
            result &= keep.reshape([-1 if other == axis else 1 for other in range(3)])
        return result


@dataclass(frozen=True)
class Plan:
    """The way from a native grid to a model's and back. ``steps`` may be empty: then both are one."""

    native: Grid
    steps: tuple[Step, ...]

    @property
    def model(self) -> Grid:
        """The grid at the end of the way."""
        return self.steps[-1].target if self.steps else self.native

    def forward(self, array: np.ndarray) -> np.ndarray:
        """float32 (..., I, J, K) on the native grid -> float32 on the model's. Raises ValueError for another grid."""
        self._check(array, self.native, "native")
        array = np.asarray(array, dtype=np.float32)
        for step in self.steps:
            array = step.forward(array)
        return array

    def forward_mask(self, mask: np.ndarray) -> np.ndarray:
        """bool (I, J, K) -> bool on the model's grid: True where at least half of the voxel is; False in padding."""
        return (self.forward(mask.astype(np.float32)) >= 0.5) & self.covered()

    def nearest(self, mask: np.ndarray) -> np.ndarray:
        """bool (I, J, K) -> bool on the model's grid: the nearest voxel's value; False in padding."""
        self._check(mask, self.native, "native")
        for step in self.steps:
            mask = step.nearest(mask) if isinstance(step, Resample) else step.forward(mask)
        return np.asarray(mask & self.covered())

    def back(self, array: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """A map (..., I, J, K) on the model's grid -> float32 on the native one; ``fill`` where it was cropped off."""
        self._check(array, self.model, "model's")
        array = np.asarray(array, dtype=np.float32)
        for step in reversed(self.steps):
            array = step.back(array, fill)
        return array

    def covered(self) -> np.ndarray:
        """bool (I, J, K) on the model's grid: False in padding."""
        result = np.ones(self.model.shape, dtype=bool)
        for step in self.steps:
            if isinstance(step, CropPad):
                result &= step.covered()
        return result

    @staticmethod
    def _check(array: np.ndarray, grid: Grid, name: str) -> None:
        if array.shape[-3:] != grid.shape:
            raise ValueError(f"expected an array on the {name} grid {grid.shape}, found {array.shape}")


def plan(
    native: Grid | Volume,
    orientation: str | None = "RAS",
    spacing: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    centre: Sequence[float] | None = None,
) -> Plan:
    """The way to ``orientation`` (None: as stored), then ``spacing`` (mm), then ``size`` voxels.

    orientation names where i, j and k point, e.g. "RAS" or "LPS", and is the nearest such one for an oblique grid.
    spacing, size and centre are in that orientation; a spacing of 0 keeps an axis as it is. ``centre`` is the world
    coordinate (RAS+, the affine's units) that the crop is centred on; None: the middle of the grid. Raises ValueError
    for an unknown orientation, a negative spacing or a size below 1.
    """
    unit = 1.0
    if isinstance(native, Volume):
        unit = native.spacing_mm[0] / float(voxel_sizes(native.affine)[0])
        native = Grid(native.shape, native.affine)
    steps: list[Step] = []
    grid = native
    if orientation is not None:
        steps.append(reorient(grid, orientation))
        grid = steps[-1].target
    if spacing is not None:
        step = resample(grid, [float(side) / unit for side in spacing])
        if step.target.shape != grid.shape or not np.array_equal(step.target.affine, grid.affine):
            steps.append(step)
            grid = step.target
    if size is not None:
        steps.append(crop_pad(grid, size, centre))
    return Plan(native, tuple(steps))


def reorient(grid: Grid, orientation: str = "RAS") -> Reorient:
    """The permutation and flips after which i, j, k point nearest to ``orientation``. Raises ValueError if unknown."""
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    code = orientation.upper()
    if len(code) != 3 or any(sum(letter in pair for letter in code) != 1 for pair in _AXIS_PAIRS):
        raise ValueError(f"expected an orientation of one of R/L, A/P and S/I each, such as RAS, found {orientation!r}")
    change = ornt_transform(io_orientation(grid.affine), axcodes2ornt(tuple(code)))
    # ``change``: for each source axis its target axis and direction
    axes = [int(np.flatnonzero(change[:, 0] == target)[0]) for target in range(3)]
    flips = [bool(change[axis, 1] < 0) for axis in axes]
    shape = tuple(grid.shape[axis] for axis in axes)
    affine = grid.affine @ inv_ornt_aff(change, grid.shape)
    return Reorient(grid, Grid(shape, affine), tuple(axes), tuple(flips))  # type: ignore[arg-type]


def resample(grid: Grid, spacing: Sequence[float]) -> Resample:
    """The grid of ``spacing`` (affine's units; 0: as it is) that covers the same field of view to half a voxel."""
    if len(spacing) != 3 or min(spacing) < 0:
        raise ValueError(f"expected three spacings from 0 up, found {tuple(spacing)}")
    sides, move = [], np.eye(4)
    for axis, (old, new, count) in enumerate(zip(grid.spacing, spacing, grid.shape, strict=True)):
        factor = 1.0 if not new or abs(new / old - 1) < SAME_SPACING else new / old
        side = max(1, round(count / factor))
        sides.append(side)
        move[axis, axis] = factor
        move[axis, 3] = (count - 1) / 2 - factor * (side - 1) / 2
    return Resample(grid, Grid((sides[0], sides[1], sides[2]), grid.affine @ move))


def crop_pad(grid: Grid, size: Sequence[int], centre: Sequence[float] | None = None) -> CropPad:
    """The grid of ``size`` voxels about ``centre`` (world), or about the middle, on the same lattice."""
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"expected three sizes from 1 up, found {tuple(size)}")
    middle = (np.array(grid.shape) - 1) / 2
    if centre is not None:
        middle = (np.linalg.inv(grid.affine) @ np.array([*centre, 1.0]))[:3]
    # The small term settles halves the same way on every axis, whatever the rounding of the affine.
    offset = np.rint(middle - (np.array(size) - 1) / 2 + 1e-6).astype(int)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ offset
    i, j, k = (int(side) for side in size)
    return CropPad(grid, Grid((i, j, k), affine), (int(offset[0]), int(offset[1]), int(offset[2])))


def _own(array: np.ndarray) -> np.ndarray:
    """A copy in C order: an axis of one voxel that is flipped counts as contiguous, and keeps its negative stride."""
    return np.array(array, order="C", copy=True)


def _resample(array: np.ndarray, source: Grid, target: Grid, smooth: bool) -> np.ndarray:
    """Weighted sums along each axis in turn; an axis that does not change is not touched."""
    for axis in range(3):
        count, side = source.shape[axis], target.shape[axis]
        factor = target.spacing[axis] / source.spacing[axis]
        if count == side and abs(factor - 1) < SAME_SPACING:
            continue
        weights = linear_weights(count, side, factor, max(1.0, factor) if smooth else 1.0).astype(np.float32)
        position = array.ndim - 3 + axis
        array = np.moveaxis(np.tensordot(weights, array, axes=(1, position)), 0, position)
    return np.ascontiguousarray(array)


def linear_weights(count: int, side: int, factor: float, width: float = 1.0) -> np.ndarray:
    """float64 (side, count), rows summing to 1: a triangle of half-width ``width`` >= 1 about each target voxel.

    Target voxel m lies at (count - 1) / 2 + factor * (m - (side - 1) / 2) among the source voxels; beyond the first
    and last of them the border is repeated.
    """
    places = np.clip(_places(count, side, factor), 0, count - 1)
    weights = np.clip(1 - np.abs(places[:, None] - np.arange(count)) / width, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _places(count: int, side: int, factor: float) -> np.ndarray:
    """float64 (side,): where target voxels lie among ``count`` source voxels, the middles of both in one place."""
    return np.asarray((count - 1) / 2 + factor * (np.arange(side) - (side - 1) / 2))


def to_depth_first(array: np.ndarray) -> np.ndarray:
    """(..., I, J, K) -> (..., D, H, W) = (..., K, J, I): with orientation "LPS", axial slices as seen on a screen."""
    return np.ascontiguousarray(np.swapaxes(array, -1, -3))


def from_depth_first(array: np.ndarray) -> np.ndarray:
    """(..., D, H, W) -> (..., I, J, K): the inverse of ``to_depth_first``."""
    return np.ascontiguousarray(np.swapaxes(array, -1, -3))
