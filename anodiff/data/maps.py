"""Anomaly maps and masks made by any software: finding them, pairing them by name, reading them on one grid.

A name is the path below the folder without its extension, "/" read as "__" (so that the flat maps/ of a run pairs with
nested masks). Maps are float files (.npy, .tiff, .nii.gz), masks are those and pictures; 2-D or volumes, the same to
every metric.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anodiff.data.layouts.folder import walk
from anodiff.data.readers import mark_pixels, read_mask, split_page
from anodiff.data.table import page_paths
from anodiff.errors import DataError, InputError

MAP_SUFFIXES = (".npy", ".tiff", ".tif", ".nii.gz", ".nii")
MASK_SUFFIXES = (".png", ".npy", ".nii.gz", ".nii", ".tif", ".tiff", ".bmp")
ARRAY_SUFFIXES = (".npy", ".nii.gz", ".nii")
MASK_MARK = "_mask"
TOPK = 0.005  # the detector's own share; a test holds the two together

#: masks without a map of which the error looks for the nearest map: that takes time with many of both
NAMED = 3
#: how a mask is found, for errors
NAME_RULE = "a mask has its map's path below the folder without extension, / read as __, on request with _mask behind"

Reduction = Literal["max", "mean", "topk"]
FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """What belongs to one name: paths of its map and its mask; `mask` "" = none, `error` why it cannot be used."""

    id: str
    map: str = ""
    mask: str = ""
    error: str = ""


def stem_of(name: str, suffixes: Iterable[str] = MAP_SUFFIXES + MASK_SUFFIXES) -> str:
    """A file's name without its extension, as two spellings of one name compare: "/" as "__", Unicode composed."""
    plain = unicodedata.normalize("NFC", name).replace("\\", "/").replace("/", "__")
    ending = next((end for end in (".nii.gz", *suffixes) if plain.lower().endswith(end)), "")
    return plain[: len(plain) - len(ending)]


def shared_folders(names: Iterable[str]) -> str:
    """The folders that all these names begin with, "test__" of "test__cut__000" and "test__good__001"; "" if none."""
    levels = zip(*(name.split("__")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}__" for level in takewhile(lambda level: len(set(level)) == 1, levels))


def find_files(folder: str | os.PathLike[str], suffixes: Sequence[str], what: str) -> dict[str, list[str]]:
    """name -> paths of the files of these extensions below `folder`, sorted, linked folders too; hidden ones left out.

    Raises:
        DataError: there is no such folder, no such file in it, or a folder in it that cannot be listed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of {what}, found {'a file' if root.exists() else 'nothing there'}")
    found: dict[str, list[str]] = {}
    for place, folders, names in walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith("."):
                below = os.path.relpath(os.path.join(place, name), root)
                found.setdefault(stem_of(below, suffixes), []).append(os.path.join(place, name))
    if not found:
        raise DataError(f"{root}: expected {what} ({', '.join(suffixes)}), found none")
    return found


def find_maps(folder: str | os.PathLike[str]) -> dict[str, list[str]]:
    """The maps below a folder, see `find_files`; `x_mask` beside `x` is taken for a mask."""
    found = find_files(folder, MAP_SUFFIXES, "anomaly maps")
    return {name: paths for name, paths in found.items() if not _is_mask_beside(name, found)}


def find_masks(folder: str | os.PathLike[str]) -> dict[str, list[str]]:
    """The masks below a folder, see `find_files`; where an `x_mask` stands beside an `x`, only `_mask` files are masks.

    Such a folder holds images beside their masks, and an image read as a mask would mark nearly anything.
    """
    found = find_files(folder, MASK_SUFFIXES, "masks")
    if any(_is_mask_beside(name, found) for name in found):
        return {name: paths for name, paths in found.items() if name.endswith(MASK_MARK)}
    return found


def pair_up(maps: Mapping[str, list[str]], masks: Mapping[str, list[str]]) -> list[Pair]:
    """Every map with its mask, then every mask without a map, as an error.

    A mask has the map's name, with or without `_mask` behind it; folders that all maps have in common may be missing
    from it (a run's maps are called test__cut__000, the masks cut/000_mask).

    Raises:
        DataError: no mask has a map, so the names of the two folders do not agree.
    """
    shared = shared_folders(maps)
    pairs, used = [], set()
    for name, paths in maps.items():
        names = (name, name.removeprefix(shared))
        mask = next((key for each in names for key in (each, each + MASK_MARK) if key in masks), None)
        used.add(mask)
        pairs.append(_pair(name, paths, masks[mask] if mask is not None else []))
    left = [name for name in masks if name not in used]
    if len(left) == len(masks):
        mask, paths = _nearest(next(iter(maps)), masks), next(iter(maps.values()))
        raise DataError(
            f"expected a map for every mask, by name, found none for any of {len(masks)} masks: nearest are "
            f"the mask {masks[mask][0]} and the map {paths[0]}; {NAME_RULE}"
        )
    return pairs + [
        Pair(
            name,
            mask=masks[name][0],
            error=_no_map(masks[name][0], maps[_nearest(name, maps)][0] if at < NAMED else ""),
        )
        for at, name in enumerate(left)
    ]


def read_map(path: str | os.PathLike[str]) -> FloatArray:
    """A map as float32 or float64, (H, W) or (D, H, W); axes of length 1 beyond two are dropped.

    Raises:
        InputError: missing, unreadable, not two- or three-dimensional numbers, NaN or infinite values.
    """
    return _read(path)[0]


def read_pair(map_path: str | os.PathLike[str], mask_path: str = "") -> tuple[FloatArray, BoolArray | None]:
    """(map, mask) on one grid, the mask bool (True = anomalous) and of the map's shape, None where there is none.

    What a mask may hold, and from where on it is anomalous, says `anodiff.data.readers.mark_pixels`.

    Raises:
        InputError: either cannot be read; the mask is a label map; they differ in size, or lie elsewhere in space
            (NIfTI: a corner of the volume by more than half a voxel); a NIfTI file stands against a picture, whose axes
            are in another order.
    """
    values, affine = _read(map_path)
    if not mask_path:
        return values, None
    suffix = _suffix(mask_path)
    if affine is not None and suffix not in ARRAY_SUFFIXES:
        raise InputError(
            f"{mask_path}: expected a .nii.gz, .nii or .npy mask for the NIfTI map {map_path}, "
            "found a picture, whose rows and columns are in another order"
        )
    if suffix in (".nii.gz", ".nii") and _suffix(map_path) in (".tif", ".tiff"):
        raise InputError(
            f"{mask_path}: expected a mask of picture or .npy format for the TIFF map {map_path}, "
            "found NIfTI, whose axes are in another order"
        )
    truth, mask_affine = _read_mask(mask_path)
    if truth.shape != values.shape:
        if truth.ndim == values.ndim + 1 and truth.shape[:-1] == values.shape:
            truth = np.asarray(truth.any(-1))
        else:
            raise InputError(
                f"{mask_path}: expected a mask of {size_text(values.shape)} like the map {map_path}, "
                f"found {size_text(truth.shape)}"
            )
    if affine is not None and mask_affine is not None:
        _check_place(map_path, affine, mask_path, mask_affine, values.shape)
    return values, truth


def map_score(values: FloatArray, reduction: Reduction = "topk", topk: float = TOPK) -> float:
    """One score from a map of any shape: its largest value, its mean, or the mean of its largest `topk` share.

    The share is of all pixels, round(topk * pixels) and one at least: a foreground is not known here.
    """
    flat = values.ravel()
    if reduction == "max":
        return float(flat.max())
    if reduction == "topk":
        count = max(1, min(flat.size, round(topk * flat.size)))
        flat = np.partition(flat, flat.size - count)[flat.size - count :]
    return float(flat.mean(dtype=np.float64))


def size_text(shape: Sequence[int]) -> str:
    """ "24x20 pixels" (width first) of an image, "182x218x182 voxels" of a volume in its own order of axes."""
    if len(shape) == 2:
        return f"{shape[1]}x{shape[0]} pixels"
    return "x".join(str(side) for side in shape) + " voxels"


def _is_mask_beside(name: str, found: Mapping[str, list[str]]) -> bool:
    return name.endswith(MASK_MARK) and name[: -len(MASK_MARK)] in found


def _pair(name: str, maps: Sequence[str], masks: Sequence[str]) -> Pair:
    error = ""
    for what, paths in (("map", maps), ("mask", masks)):
        if len(paths) > 1:
            error = f"{paths[0]}: expected one {what} of this name, found {len(paths)}, the next is {paths[1]}"
    return Pair(name, maps[0], masks[0] if masks else "", error)


def _nearest(name: str, others: Iterable[str]) -> str:
    """The name most like this one, without what only marks a mask; the first where several are."""
    plain = name.removesuffix(MASK_MARK)
    return max(others, key=lambda other: SequenceMatcher(None, other.removesuffix(MASK_MARK), plain).ratio())


def _no_map(mask: str, nearest: str) -> str:
    found = f", the nearest is {nearest}; {NAME_RULE}" if nearest else ""
    return f"{mask}: expected a map of the same name, found none{found}"


def _suffix(path: str | os.PathLike[str]) -> str:
    """The extension in lower case, ".nii.gz" whole, the page of a TIFF ("x.tif#page=2") not part of it."""
    name = split_page(path)[0].lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def _read(path: str | os.PathLike[str]) -> tuple[FloatArray, NDArray[np.float64] | None]:
    """A map and, of NIfTI, its affine."""
    array, affine = _decode(path, "an anomaly map")
    values = _as_float(_thin(array))
    if values.ndim not in (2, 3) or not values.size:
        shape = "x".join(str(side) for side in array.shape) or "a single number"
        raise InputError(f"{path}: expected a map of two or three dimensions, found {shape}")
    if not np.isfinite(values).all():
        wrong = values.size - int(np.isfinite(values).sum())
        raise InputError(f"{path}: expected finite values, found {wrong:,} of {values.size:,} that are NaN or infinite")
    return values, affine


def _read_mask(path: str) -> tuple[BoolArray, NDArray[np.float64] | None]:
    """A mask as bool and, of NIfTI, its affine."""
    if _suffix(path) in ARRAY_SUFFIXES:
        array, affine = _decode(path, "a mask")
        return _as_bool(_thin(array), path), affine
    pages = page_paths(path)
    first = read_mask(pages[0])
    if len(pages) == 1:
        return first, None
    shape = (first.shape[0], first.shape[1])
    return np.stack([first, *(read_mask(page, shape) for page in pages[1:])]), None


def _decode(path: str | os.PathLike[str], what: str) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """The numbers of a file as stored, and the affine of NIfTI; every failure becomes one sentence."""
    suffix = _suffix(path)
    affine = None
    try:
        if suffix in (".nii", ".nii.gz"):
            array, affine = _read_nifti(path)
        else:
            array = np.array(np.lib.format.open_memmap(path, mode="r")) if suffix == ".npy" else _read_tiff(path)
    except FileNotFoundError:
        raise InputError(f"{path}: expected {what}, found no such file") from None
    except Exception as error:
        # A damaged file can raise nearly anything inside a decoder; none of it may stop the others.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: expected {what}, found a damaged or unreadable file ({reason})") from None
    if array.dtype.kind not in "buif":
        raise InputError(f"{path}: expected numbers, found the type {array.dtype}")
    return array, affine


def _read_nifti(path: str | os.PathLike[str]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import nibabel

    image: Any = nibabel.load(path)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _read_tiff(path: str | os.PathLike[str]) -> NDArray[Any]:
    """(H, W), or (pages, H, W); Pillow knows more compressions, tifffile more types of number (half, double)."""
    from PIL import ImageSequence, TiffImagePlugin, UnidentifiedImageError

    try:
        with open(path, "rb") as file, TiffImagePlugin.TiffImageFile(file) as image:
            if image.mode not in ("F", "L", "I", "I;16", "I;16B"):
                raise ValueError(f"colours of the mode {image.mode} where a map has one number a pixel")
            pages = [np.array(page) for page in ImageSequence.Iterator(image)]
    except (SyntaxError, UnidentifiedImageError):
        import tifffile

        with tifffile.TiffFile(path) as whole:
            pages = [np.asarray(page.asarray()) for page in whole.pages]
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _thin(array: NDArray[Any]) -> NDArray[Any]:
    """Drops axes of length 1 while more than two are left: (1, H, W) and (H, W, 1) are images."""
    while array.ndim > 2 and 1 in array.shape:
        array = array.squeeze(axis=array.shape.index(1))
    return array


def _as_float(array: NDArray[Any]) -> FloatArray:
    """float32 where it holds every value of the type, else float64."""
    exact = array.dtype.kind == "b" or array.dtype.itemsize <= (4 if array.dtype.kind == "f" else 2)
    return np.ascontiguousarray(array, dtype=np.float32 if exact else np.float64)


def _as_bool(values: NDArray[Any], path: str) -> BoolArray:
    """A mask's numbers as bool, see `mark_pixels`; InputError for NaN, for a label map and for no numbers at all."""
    if not values.size or not np.isfinite(values).all():
        found = "NaN or infinite ones" if values.size else "none"
        raise InputError(f"{path}: expected a mask of finite values, found {found}")
    return mark_pixels(values, values.dtype, path)


def _check_place(
    map_path: object,
    affine: NDArray[np.float64],
    mask_path: object,
    mask_affine: NDArray[np.float64],
    shape: tuple[int, ...],
) -> None:
    """InputError where the corners of two grids of one size lie apart; an identity affine says nothing of the place."""
    if any(np.array_equal(each, np.eye(4)) for each in (affine, mask_affine)):
        return
    sides = (*shape, *(1,) * (3 - len(shape)))
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * [*(side - 1 for side in sides), 1]
    apart = float(np.linalg.norm((corners @ (affine - mask_affine).T)[:, :3], axis=1).max())
    if apart > 0.5 * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
        raise InputError(
            f"{mask_path}: expected a mask in the place of the map {map_path}, found its corners {apart:.3g} mm away "
            "(another orientation, spacing or origin)"
        )
