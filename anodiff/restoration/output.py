"""Restored images as files: of the input's type where a PNG holds it, written so that nobody sees half a file."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.data.readers import RawImage
from anodiff.files import atomic_write, make_folder
from anodiff.restoration.operators import SuperResolution

#: stored types that a PNG holds; the last only with one channel
PNG_TYPES = {"bool": np.uint8, "uint8": np.uint8, "uint16": np.uint16}


def like_file(pixels: NDArray[np.float32], raw: RawImage) -> NDArray[np.float32]:
    """Values (H, W, C) with the channels and within the values that the file's type can hold; rounded for whole ones.

    A grey file of which a model made three channels becomes grey again.
    """
    if raw.pixels.shape[2] == 1 and pixels.shape[2] > 1:
        pixels = pixels.mean(axis=2, keepdims=True)
    limits = limits_of(raw.dtype)
    return pixels if limits is None else np.clip(np.rint(pixels), *limits)


def limits_of(dtype: str) -> tuple[float, float] | None:
    """The least and the greatest value that a stored type of whole numbers can hold; None of other types."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return 0, 1
    return (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "ui" else None


def as_measured(
    pixels: NDArray[np.float32], measured: NDArray[np.float32], factor: int, dtype: str
) -> NDArray[np.float32]:
    """Values (H f, W f, C) brought to what ``measured`` (H, W, C) says of averages over f x f pixels, within what the
    stored type can hold.

    A solver agrees with the measurement on the model's side: what its range cut off of it, and what a type without
    negative numbers cuts off of the result, would stay missing in the averages.
    """
    x, y = (torch.from_numpy(np.moveaxis(each, 2, 0).astype(np.float64))[None] for each in (pixels, measured))
    low, high = limits_of(dtype) or (-math.inf, math.inf)
    found = SuperResolution(factor).project_within(x, y, low, high)[0].numpy()
    return np.ascontiguousarray(np.moveaxis(found, 0, 2), dtype=np.float32)


def png_pixels(pixels: NDArray[np.float32], dtype: str) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
    """Values (H, W, C) as a PNG of 8 or 16 bit holds them, (H, W) or (H, W, 3); None where no PNG does."""
    if dtype not in PNG_TYPES or pixels.shape[2] not in (1, 3) or (dtype == "uint16" and pixels.shape[2] != 1):
        return None
    whole = (pixels * 255 if dtype == "bool" else pixels).astype(PNG_TYPES[dtype])
    return whole[:, :, 0] if whole.shape[2] == 1 else whole


def write_image(folder: Path, id_: str, pixels: NDArray[np.float32], dtype: str) -> str:
    """Writes values (H, W, C) as images/<id>.png where a PNG holds the type, else as .npy; returns its name below."""
    whole = png_pixels(pixels, dtype)
    if whole is None:
        return write_array(folder, f"images/{id_}.npy", pixels)
    name = f"images/{id_}.png"
    write_png(folder / name, whole)
    return name


def write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Writes uint8 (H, W[, 3]) or uint16 (H, W), atomically; its folder is made."""
    from PIL import Image

    make_folder(path.parent)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


def write_array(folder: Path, name: str, values: NDArray[np.floating[Any]]) -> str:
    """Writes float32 (H, W) or (H, W, C) as NPY, atomically; returns ``name``."""
    make_folder((folder / name).parent)
    array = np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values, dtype=np.float32)
    atomic_write(folder / name, lambda stream: np.lib.format.write_array(stream, array, allow_pickle=False))
    return name


def read_values(path: Path) -> NDArray[np.float32]:
    """What `write_image` wrote, (H, W, C), also where it is constant."""
    from PIL import Image

    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False).astype(np.float32)
    else:
        with Image.open(path) as picture:
            values = np.asarray(picture).astype(np.float32)
    return values if values.ndim == 3 else values[:, :, None]
