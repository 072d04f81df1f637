"""A volume as one picture that a page can hold: its axial slices side by side, from which a script cuts any plane.

The slices are stored once, not once a plane. Arrays are (I, J, K) with i to the patient's right, j to the front and k
upwards (RAS+), which `to_ras` brings about.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.visualize.heatmap import Pixels

#: no side of a stored volume is longer
MOST_SIDE = 256
JPEG_QUALITY = 78
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Sheet:
    """A volume in one picture.

    Attributes:
        uri: of the picture: tile k, ``columns`` to a line, is the axial slice k with j downwards and i to the right.
        shape: (I, J, K) of what is stored.
        factors: voxels of the given volume along each axis that one stored voxel stands for.
        columns: tiles on a line.
        size: bytes of the picture before it became text.
    """

    uri: str
    shape: tuple[int, int, int]
    factors: tuple[int, int, int]
    columns: int
    size: int


def image_sheet(volume: Pixels, most_bytes: int, spacing: Spacing = (1.0, 1.0, 1.0)) -> Sheet:
    """uint8 (I, J, K) as JPEG, shrunk by block averages until it has at most ``most_bytes``."""
    return _fitted(volume, "mean", "JPEG", most_bytes, spacing)


def map_sheet(index: Pixels, most_bytes: int, spacing: Spacing = (1.0, 1.0, 1.0)) -> Sheet:
    """uint8 (I, J, K) positions on the colour scale as PNG, exact; shrunk by block maxima until it fits."""
    return _fitted(index, "max", "PNG", most_bytes, spacing)


def mask_sheet(mask: ArrayLike, most_bytes: int, spacing: Spacing = (1.0, 1.0, 1.0)) -> Sheet:
    """bool (I, J, K) as a black and white PNG; a block is marked where any of its voxels is."""
    marked = np.where(np.asarray(mask, dtype=bool), np.uint8(255), np.uint8(0))
    return _fitted(marked, "max", "PNG", most_bytes, spacing, bits=True)


def to_ras(volume: NDArray[np.generic], affine: NDArray[np.float64]) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """(I, J, K) as stored and its affine -> the same voxels with axes nearest to RAS+, and the affine of that."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    change = io_orientation(affine)
    return apply_orientation(volume, change), np.asarray(affine @ inv_ornt_aff(change, volume.shape))


def shrink_factors(spacing: Sequence[float], step: int) -> tuple[int, int, int]:
    """Voxels to a block along each axis where the finest axis has ``step``, so that blocks come near to cubes."""
    finest = min(spacing)
    i, j, k = (max(1, round(step * finest / side)) for side in spacing)
    return i, j, k


def shrink(volume: Pixels, factors: tuple[int, int, int], how: str) -> Pixels:
    """uint8 (I, J, K) by whole factors: the "mean" or "max" of each block; blocks at the far border repeat it."""
    if factors == (1, 1, 1):
        return volume
    shape = [math.ceil(length / factor) for length, factor in zip(volume.shape, factors, strict=True)]
    padding = [(0, side * factor - length) for side, factor, length in zip(shape, factors, volume.shape, strict=True)]
    blocks = np.pad(volume, padding, mode="edge").reshape(
        shape[0], factors[0], shape[1], factors[1], shape[2], factors[2]
    )
    if how == "max":
        return np.asarray(blocks.max(axis=(1, 3, 5)))
    return np.round(blocks.mean(axis=(1, 3, 5), dtype=np.float32)).astype(np.uint8)


def mosaic(volume: Pixels) -> tuple[Pixels, int]:
    """uint8 (I, J, K) -> (all slices k in one picture (H, W), how many stand on a line)."""
    width, height, count = volume.shape
    columns = max(1, min(count, round(math.sqrt(count * height / width))))
    lines = math.ceil(count / columns)
    tiles = np.zeros((lines * columns, height, width), dtype=np.uint8)
    tiles[:count] = volume.transpose(2, 1, 0)
    picture = tiles.reshape(lines, columns, height, width).transpose(0, 2, 1, 3).reshape(lines * height, -1)
    return np.ascontiguousarray(picture), columns


def _fitted(volume: Pixels, how: str, kind: str, most_bytes: int, spacing: Spacing, bits: bool = False) -> Sheet:
    """The finest blocks that make a file of at most ``most_bytes`` with no side over MOST_SIDE."""
    step = 1
    while True:
        factors = shrink_factors(spacing, step)
        shape = [math.ceil(side / factor) for side, factor in zip(volume.shape, factors, strict=True)]
        if max(shape) <= MOST_SIDE:
            small = shrink(volume, factors, how)
            picture, columns = mosaic(small)
            data = _encoded(picture, kind, bits)
            if len(data) <= most_bytes or max(shape) == 1:
                break
        step += 1
    i, j, k = small.shape
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"
    return Sheet(uri, (i, j, k), factors, columns, len(data))


def _encoded(picture: Pixels, kind: str, bits: bool) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if bits:
        # No dithering: a mask is black or white already.
        image = image.convert("1", dither=Image.Dither.NONE)
    options = {"quality": JPEG_QUALITY} if kind == "JPEG" else {"compress_level": 7}
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
