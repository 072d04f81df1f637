"""What of a volume is normal: all, what its mask spares, or a slab of that; as voxels and as slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anodiff.config import VolumeConfig
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.read import read_mask
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError
from anodiff.training.slabs import Slab, slab_slices

#: nothing nearer to an annotated lesion counts as normal: annotations end where a voxel is half lesion
LESION_MARGIN_MM = 3.0


@dataclass(frozen=True)
class NormalPart:
    """A volume that can be read, and what of it is normal: all, what its mask spares, a slab of that.

    foreground: the file of its foreground, "" where it is estimated.
    """

    path: str
    group: str
    mask: str = ""
    slab: Slab | None = None
    foreground: str = ""


def normal_voxels(part: NormalPart, volume: Volume, prepared: PreparedVolume) -> np.ndarray:
    """bool (I, J, K) on the model's grid: what a patch may hold that is learnt from, or calibrated on.

    Raises InputError for a mask that cannot be used.
    """
    spacing = spacing_mm(volume, prepared)
    near = lesion_zone(part, volume, prepared, spacing)
    free = np.ones(prepared.plan.model.shape, dtype=bool) if near is None else ~near
    if part.slab is not None:
        normal = free & prepared.foreground.numpy()
        free &= _along(slab_slices(part.slab, normal, float(spacing[part.slab.axis])), part.slab.axis)
    return free


def normal_slices(
    part: NormalPart, volume: Volume, prepared: PreparedVolume, config: VolumeConfig, axes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each axis of the model's grid bool (n,): the slices across it that may be learnt from, or calibrated on.

    A slice within LESION_MARGIN_MM of a lesion is not normal, nor is one that would see it as a neighbour; each axis of
    ``axes`` has slices of its own, and a lesion may leave none along one of them. Raises InputError for a mask that
    cannot be used, and a slab of a volume that is cut along another axis.
    """
    spacing = spacing_mm(volume, prepared)
    near = lesion_zone(part, volume, prepared, spacing)
    clear = [np.ones(side, dtype=bool) for side in prepared.plan.model.shape]
    for axis in axes if near is not None else ():
        clear[axis] = _all_near(np.asarray(~np.asarray(near).any(axis=other_axes(axis))), config.neighbours)
    if part.slab is not None:
        axis = part.slab.axis
        if tuple(axes) != (axis,):
            raise InputError(
                f"{volume.path}: expected slices along {'ijk'[axis]}, of which a part can be held out, found "
                f"{' x '.join(map(str, prepared.plan.model.shape))} voxels"
            )
        normal = prepared.foreground.numpy() & _along(clear[axis], axis)
        clear[axis] &= slab_slices(part.slab, normal, float(spacing[axis]))
    return clear[0], clear[1], clear[2]


def other_axes(axis: int) -> tuple[int, ...]:
    """The two other axes."""
    return tuple(other for other in range(3) if other != axis)


def lesion_zone(part: NormalPart, volume: Volume, prepared: PreparedVolume, spacing: np.ndarray) -> np.ndarray | None:
    """bool (I, J, K): voxels that hold any lesion or lie within LESION_MARGIN_MM of one; None where there is none."""
    if not part.mask:
        return None
    lesion = prepared.plan.forward(read_mask(part.mask, volume).astype(np.float32)) > 0
    if not lesion.any():
        return None
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(~lesion, sampling=[float(side) for side in spacing])
    return np.asarray(distance <= LESION_MARGIN_MM)


def spacing_mm(volume: Volume, prepared: PreparedVolume) -> np.ndarray:
    """Voxel sides (3,) of the model's grid in mm."""
    return np.array(prepared.plan.model.spacing) * volume.spacing_mm[0] / prepared.plan.native.spacing[0]


def anatomical_axes(orientation: str | None) -> tuple[int, int]:
    """Axes (left-right, head-foot) of a grid; the first and the last where it is not known."""
    if orientation is None:
        return 0, 2
    code = orientation.upper()
    left_right, head_foot = (next(n for n in range(3) if code[n] in pair) for pair in ("RL", "SI"))
    return left_right, head_foot


def _all_near(clear: np.ndarray, reach: int) -> np.ndarray:
    """bool (n,): whether all within ``reach`` places are clear; beyond the ends there is nothing that is not."""
    from scipy import ndimage

    return np.asarray(ndimage.minimum_filter1d(clear.astype(np.uint8), 2 * reach + 1, mode="nearest"), dtype=bool)


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    """(n,) that broadcasts over (I, J, K) along an axis."""
    return values.reshape([-1 if other == axis else 1 for other in range(3)])
