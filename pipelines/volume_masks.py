"""Which voxels of a volume may change: masks and boxes of the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.data.volumes.discover import split_mark
from anodiff.data.volumes.inputs import SUFFIXES
from anodiff.data.volumes.read import read_mask
from anodiff.data.volumes.volume import Volume
from anodiff.engine.store import Item
from anodiff.errors import ConfigError, DataError, InputError
from anodiff.pipelines.common import file_digest
from anodiff.pipelines.restoring_masks import MaskFolder, folder_digest

#: the mask of a volume (I, J, K)
VolumeMaskSource = Callable[[Item, Volume], NDArray[np.bool_]]


def volume_mask_source(mask: Path | None, box: str | None) -> VolumeMaskSource | None:
    """Where the masks of the volumes come from; None where neither is given.

    A folder holds a mask by the name of each volume, ``x.nii.gz`` or ``x_mask.nii.gz`` (or another format of volumes),
    found as masks of images are, see `mask_source`. Raises ConfigError for a malformed box, DataError for a path that
    does not exist and two masks of one name.
    """
    if box is not None:
        return _box_source(box)
    if mask is None:
        return None
    path, _ = split_mark(str(mask))
    if not Path(path).exists():
        raise DataError(f"{mask}: expected a mask or a folder of masks, found no such path")
    if not mask.is_dir() or not _masks_in(mask):
        return lambda item, volume: read_mask(mask, volume)
    named = MaskFolder(mask, _masks_in(mask), _name)

    def from_folder(item: Item, volume: Volume) -> NDArray[np.bool_]:
        parts = _name(Path(os.path.abspath(split_mark(item.path)[0])), "")
        return read_mask(named.find(item.path, parts, ".nii.gz"), volume)

    return from_folder


def volume_mask_settings(mask: Path | None, box: str | None) -> dict[str, Any]:
    """Where the masks come from, and what tells them from others of the same name when a run is resumed."""
    if mask is None:
        return {"box": box}
    if mask.is_file():
        return {"mask": str(mask), "mask_digest": file_digest(mask)}
    files = sorted(path for path in mask.rglob("*") if path.is_file())
    return {"mask": str(mask), "mask_digest": folder_digest(mask, files)}


def _masks_in(folder: Path) -> list[Path]:
    """The NIfTI and MGH files below a folder; a folder of DICOM files alone is one mask."""
    suffixes = tuple(suffix for suffix in SUFFIXES if suffix.startswith((".nii", ".mg")))
    return sorted(path for path in folder.rglob("*") if path.name.lower().endswith(suffixes))


def _name(path: Path, ending: str = "_mask") -> tuple[str, ...]:
    suffix = next((each for each in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(each)), "")
    name = path.name.removesuffix(path.name[len(path.name) - len(suffix) :]) if suffix else path.name
    return (*path.parts[:-1], name.removesuffix(ending))


def _box_source(text: str) -> VolumeMaskSource:
    try:
        numbers = [int(part) for part in text.split(",")]
        starts, sides = numbers[:3], numbers[3:]
        if len(sides) != 3 or min(starts) < 0 or min(sides) < 1:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--box: expected Z,Y,X,D,H,W in voxels of the file (x along its first axis), D, H and W at least 1, "
            f"found {text!r}"
        ) from None

    def box(item: Item, volume: Volume) -> NDArray[np.bool_]:
        if any(start >= side for start, side in zip(starts, volume.shape[::-1], strict=True)):
            size = "x".join(str(side) for side in volume.shape[::-1])
            raise InputError(f"{item.path}: expected a box inside {size} voxels (z, y, x), found Z,Y,X,D,H,W = {text}")
        mask = np.zeros(volume.shape[::-1], dtype=bool)
        z, y, x = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        mask[z, y, x] = True
        return mask.T

    return box
