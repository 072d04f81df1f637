"""Names for what one file does not hold: a volume whose channels are files of their own, and some labels of a mask.

``case/case_#channels=flair.nii.gz,t1.nii.gz`` is the volume whose channels are ``case/case_flair.nii.gz`` and
``case/case_t1.nii.gz``, in that order. ``case_seg.nii.gz#labels=1,4`` is the mask of the voxels with the value 1 or 4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anodiff.data.volumes.volume import MAX_VOXELS, Volume, check_voxels
from anodiff.errors import InputError

CHANNELS_MARK, LABELS_MARK = "#channels=", "#labels="
#: what the common beginning of channels' names may end in, and the name of their volume does not
CUT_OFF = "_-./\\"
#: two grids are one where no voxel centre differs by more than this part of the smallest voxel side
SAME_PLACE = 0.01


def channels_path(files: Sequence[str]) -> str:
    """The name of the volume whose channels are these files, in their order; of a single file, the file itself."""
    if len(files) == 1:
        return files[0]
    # Character by character, then whole words only: "case_0000" and "case_0001" differ in "0000" and "0001".
    common = re.sub(r"[^/\\_\-.]*$", "", os.path.commonprefix(list(files)))  # noqa: RUF071
    return f"{common}{CHANNELS_MARK}{','.join(file[len(common) :] for file in files)}"


def channel_files(path: str | os.PathLike[str]) -> list[str]:
    """The files that a name stands for; empty where it is no such name."""
    common, mark, endings = os.fspath(path).rpartition(CHANNELS_MARK)
    if not mark or os.path.lexists(path):
        return []
    return [f"{common}{ending}" for ending in endings.split(",")]


def join_channels(volumes: Sequence[Volume], path: str, max_voxels: int = MAX_VOXELS) -> Volume:
    """One volume of several on the same grid, each of one channel; geometry and header are the first one's.

    Raises InputError, naming the file, for another size or place, and for a file of several channels.
    """
    first = volumes[0]
    for volume in volumes:
        if len(volume.data) != 1:
            raise InputError(f"{volume.path}: expected one channel in each of the files, found {len(volume.data)}")
        check_same_grid(volume, first, "a channel")
    check_voxels(sum(volume.data.size for volume in volumes), path, max_voxels)
    masks = [volume.valid for volume in volumes if volume.valid is not None]
    return replace(
        first,
        data=np.concatenate([volume.data for volume in volumes]),
        low=min(volume.low for volume in volumes),
        high=max(volume.high for volume in volumes),
        ranged=all(volume.ranged for volume in volumes),
        valid=np.logical_and.reduce(masks) if masks else None,
        path=path,
        remarks=tuple(dict.fromkeys(remark for volume in volumes for remark in volume.remarks)),
    )


def check_same_grid(volume: Volume, like: Volume, what: str) -> None:
    """Raises InputError where two volumes differ in size or place."""
    if volume.shape != like.shape:
        found, expected = (" x ".join(map(str, each.shape)) for each in (volume, like))
        raise InputError(f"{volume.path}: expected {what} of {expected} voxels like its volume, found {found}")
    sides = [max(side - 1, 1) for side in volume.shape]
    shift = float(np.abs((volume.affine - like.affine) @ np.diag([*sides, 1.0])).sum(axis=1).max())
    if shift > SAME_PLACE * float(np.sqrt((like.affine[:3, :3] ** 2).sum(axis=0)).min()):
        raise InputError(
            f"{volume.path}: expected {what} at the place of its volume, found one up to {shift:.3g} {volume.units} "
            "away"
        )


def labels_path(path: str, labels: Sequence[int]) -> str:
    """The name of the mask of some labels; of none: every value above 0."""
    return f"{path}{LABELS_MARK}{','.join(map(str, sorted(labels)))}" if labels else path


def split_labels(path: str) -> tuple[str, tuple[int, ...]]:
    """("seg.nii.gz", (1, 4)) of ``seg.nii.gz#labels=1,4``; (path, ()) of any other name."""
    found = re.fullmatch(r"(.*)#labels=(\d+(?:,\d+)*)", path, re.DOTALL)
    if found is None or os.path.lexists(path):
        return path, ()
    return found[1], tuple(int(label) for label in found[2].split(","))


def marked(mask: Volume, labels: Sequence[int] = ()) -> np.ndarray:
    """bool (I, J, K): values above 0, or the given ones; never where the file holds no number."""
    values = mask.data[0]
    inside = np.isin(np.rint(values), labels) if labels else values > 0
    # Where the file holds no number, the data do: the smallest other value, which may be above 0.
    return np.asarray(inside & (True if mask.valid is None else mask.valid))
