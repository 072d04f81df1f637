"""A foreground that somebody made (a brain mask): on an image's own grid in, on the model's grid out."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from PIL import Image

from anodiff.data.readers import MAX_PIXELS, RawImage, read_mask
from anodiff.errors import InputError


def with_given(raw: RawImage, path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> RawImage:
    """The image with the foreground in the file ``path``, read as masks of anomalies are; without a path as it is.

    Raises InputError, naming both files, for what cannot be decoded, for another size and an empty mask.
    """
    if not os.fspath(path):
        return raw
    try:
        return given(raw, read_mask(path, raw.pixels.shape[:2], max_pixels=max_pixels))
    except InputError as error:
        raise InputError(f"{raw.path}: its foreground cannot be used: {error}") from None
    except ValueError as error:
        raise InputError(f"{raw.path}: its foreground {os.fspath(path)} cannot be used: {error}") from None


def given(raw: RawImage, mask: np.ndarray) -> RawImage:
    """The image with a foreground, bool (H, W). Raises ValueError for another size and an empty mask."""
    return replace(raw, foreground=checked(mask, (raw.pixels.shape[0], raw.pixels.shape[1])))


def checked(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool ``shape``: what is not 0. Raises ValueError for another size and a mask that marks nothing."""
    inside = np.asarray(mask) != 0
    if inside.shape != shape:
        expected, found = (" x ".join(map(str, size)) for size in (shape, inside.shape))
        raise ValueError(f"expected a foreground of {expected} like its image, found {found}")
    if not inside.any():
        raise ValueError("expected a foreground with something inside, found an empty one")
    return inside


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W) -> bool ``size``: the nearest pixel's, centres at half-integers; the same array where sizes agree."""
    if mask.shape == size:
        return mask
    # A copy: a mask may be a view with negative strides.
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0


def on_grid(raw: RawImage, size: tuple[int, int]) -> np.ndarray:
    """The given foreground of an image, bool ``size``. Raises InputError where nothing of it is left there."""
    assert raw.foreground is not None
    inside = nearest(raw.foreground, size)
    if not inside.any():
        raise InputError(vanished(raw.path, int(raw.foreground.sum()), "pixel"))
    return inside


def vanished(path: str, count: int, what: str) -> str:
    """A sentence on a given foreground that no pixel or voxel of the model's grid falls into."""
    return f"{path}: expected a given foreground that is seen on the model's grid, found no {what} left (of {count})"


def missing(path: str, looked: str = "") -> str:
    """A sentence on an image without the foreground that its model needs; ``looked``: what was looked for."""
    where = f": {looked}" if looked else ""
    return (
        f"{path}: expected a foreground mask, which this model needs (preprocess.foreground: given), found none{where} "
        "(--foreground, or a column foreground of a CSV, names it)"
    )
