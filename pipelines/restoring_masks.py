"""Which part of an image may change: masks and boxes of the command line, by image, and on the model's grid."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.preprocess import Geometry, resize
from anodiff.data.readers import MAX_PIXELS, read_mask
from anodiff.engine.store import Item
from anodiff.errors import ConfigError, DataError, InputError
from anodiff.pipelines.common import file_digest

#: a pixel of the model's grid is missing where this share of it or more is
MISSING_SHARE = 1e-3

MaskSource = Callable[[Item, tuple[int, int]], NDArray[np.bool_]]


def mask_source(mask: Path | None, box: str | None, max_pixels: int = MAX_PIXELS) -> MaskSource | None:
    """Where the masks of the inputs come from; None where neither is given.

    A folder holds a mask by the name of each image, ``x.png`` or ``x_mask.png`` (or another image format). Where masks
    lie in subfolders, the one whose path below the folder ends the image's path is its mask (``site2/x`` of
    ``scans/site2/x.png``), the longest such path before others, and the name alone counts where there is none and it is
    that of one mask only. Raises ConfigError for both at once or a malformed box, DataError for a path that does not
    exist, a broken link, and two masks of one name in one folder.
    """
    if mask is not None and box is not None:
        raise ConfigError("--mask and --box: expected one of them, found both")
    if box is not None:
        return _box_source(box)
    if mask is None:
        return None
    if not mask.exists():
        raise DataError(f"{mask}: expected a mask or a folder of masks, found no such path")
    if mask.is_file():
        return lambda item, shape: read_mask(mask, shape, max_pixels=max_pixels)
    named = MaskFolder(mask, _masks_in(mask))

    def from_folder(item: Item, shape: tuple[int, int]) -> NDArray[np.bool_]:
        parts = _name(Path(os.path.abspath(item.file or item.path)), "")
        return read_mask(named.find(item.path, parts, ".png"), shape, max_pixels=max_pixels)

    return from_folder


class MaskFolder:
    """The masks of a folder by the names of what they are masks of; see `mask_source`.

    name: the parts of a mask's path below the folder, the last one without its suffix and the end "_mask". Raises
    DataError for two masks of one name.
    """

    def __init__(
        self, folder: Path, masks: Sequence[Path], name: Callable[[Path], tuple[str, ...]] | None = None
    ) -> None:
        self.folder = folder
        self.by_name: dict[tuple[str, ...], Path] = {}
        for path in masks:
            parts = (name or _name)(path.relative_to(folder))
            if parts in self.by_name:
                raise DataError(
                    f"{folder}: expected one mask for {'/'.join(parts)}, found {self.by_name[parts]} and {path}"
                )
            self.by_name[parts] = path

    def find(self, path: str, parts: tuple[str, ...], suffix: str) -> Path:
        """The mask of the input ``path``, whose name has these parts. Raises InputError where there is none, or several
        by the name alone."""
        endings = [parts[at:] for at in range(len(parts)) if parts[at:] in self.by_name]
        if endings:
            return self.by_name[endings[0]]
        same = [mask for name, mask in self.by_name.items() if name[-1] == parts[-1]]
        if len(same) == 1:
            return same[0]
        found = " and ".join(str(mask) for mask in same[:2]) if same else "none"
        raise InputError(
            f"{path}: expected a mask {parts[-1]}{suffix} or {parts[-1]}_mask{suffix} in {self.folder}, found {found}"
        )


def _name(path: Path, suffix: str = "_mask") -> tuple[str, ...]:
    return (*path.parts[:-1], path.stem.removesuffix(suffix))


def _masks_in(folder: Path) -> list[Path]:
    from anodiff.data.layouts.folder import list_images

    paths = [Path(path) for path in list_images(folder, masks=True)]
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: expected a mask, found a link to a file that does not exist")
    return paths


def mask_settings(mask: Path | None, box: str | None) -> dict[str, Any]:
    """Where the masks come from, and what tells them from others of the same name when a run is resumed."""
    if mask is None:
        return {"box": box}
    if mask.is_file():
        return {"mask": str(mask), "mask_digest": file_digest(mask)}
    return {"mask": str(mask), "mask_digest": folder_digest(mask, _masks_in(mask))}


def folder_digest(folder: Path, paths: Sequence[Path]) -> str:
    """What tells files of a folder from others of the same names: their sizes and times."""
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in paths]
    found = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()


def _box_source(text: str) -> MaskSource:
    try:
        top, left, height, width = (int(part) for part in text.split(","))
        if min(top, left) < 0 or min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--box: expected Y,X,H,W in pixels, H and W at least 1, found {text!r}") from None

    def box(item: Item, shape: tuple[int, int]) -> NDArray[np.bool_]:
        if top >= shape[0] or left >= shape[1]:
            raise InputError(f"{item.path}: expected a box inside {shape[1]}x{shape[0]} pixels, found Y,X,H,W = {text}")
        mask = np.zeros(shape, dtype=bool)
        mask[top : top + height, left : left + width] = True
        return mask

    return box


def model_mask(mask: NDArray[np.bool_] | None, geometry: Geometry) -> Tensor:
    """A mask on the model's grid: True where any of the missing pixels comes in, in the padding as at its border."""
    assert mask is not None
    top, left, height, width = geometry.box
    inner = resize(mask.astype(np.float32), (height, width)) >= MISSING_SHARE
    margin = ((top, geometry.model[0] - top - height), (left, geometry.model[1] - left - width))
    return torch.from_numpy(np.pad(inner, margin, mode="edge"))
