"""2-D images as one volume: the files of a folder in natural order, or the pages of one TIFF."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anodiff.data.readers import PAGE_MARK, RawImage, count_pages, decode_image
from anodiff.data.volumes.volume import MAX_VOXELS, Volume, VolumeSource, check_voxels
from anodiff.errors import InputError

STACK_MARK = "#stack"
MIN_SLICES = 2


def find_stacks(
    images: Sequence[str], spacing: tuple[float, float, float]
) -> tuple[list[VolumeSource], list[tuple[str, str]]]:
    """(one source a folder of at least two images or a TIFF of at least two pages, the rest with the reason)."""
    folders: dict[str, list[str]] = {}
    sources: list[VolumeSource] = []
    skipped: list[tuple[str, str]] = []
    for image in images:
        pages = count_pages(image) if Path(image).suffix.lower() in (".tif", ".tiff") else 1
        if pages >= MIN_SLICES:
            named = tuple(f"{image}{PAGE_MARK}{number}" for number in range(1, pages + 1))
            text = f"{pages} pages of a TIFF as one volume"
            path = f"{image}{stack_mark(spacing)}"
            sources.append(VolumeSource(path, path, "stack", text, named, spacing=spacing))
        else:
            folders.setdefault(os.path.dirname(image), []).append(image)
    for folder, files in folders.items():
        if len(files) < MIN_SLICES:
            skipped.extend((file, "a single 2-D image: a stack needs at least two in a folder") for file in files)
            continue
        path = f"{folder or '.'}{stack_mark(spacing)}"
        ordered = tuple(sorted(files, key=natural_key))
        sources.append(
            VolumeSource(
                path, path, "stack", f"{len(files)} images of a folder as one volume", ordered, spacing=spacing
            )
        )
    return sources, skipped


def stack_mark(spacing: tuple[float, float, float]) -> str:
    """``#stack`` for a spacing of 1 mm, else as ``#stack=0.5x0.5x2``, with every digit that reading needs."""
    if tuple(spacing) == (1, 1, 1):
        return STACK_MARK
    return f"{STACK_MARK}={'x'.join(str(float(step)).removesuffix('.0') for step in spacing)}"


def stack_spacing(text: str, mark: str) -> tuple[float, float, float]:
    """The spacing in mm that the mark of the path ``text`` names. Raises InputError where it is none."""
    if mark == STACK_MARK:
        return 1.0, 1.0, 1.0
    try:
        i, j, k = (float(step) for step in mark.removeprefix(f"{STACK_MARK}=").split("x"))
    except ValueError:
        i = j = k = math.nan
    if not (math.isfinite(i + j + k) and min(i, j, k) > 0):
        raise InputError(f"{text}: expected three spacings as {STACK_MARK}=0.5x0.5x2 in mm, found {mark}")
    return i, j, k


def natural_key(path: str) -> tuple[object, ...]:
    """Sorts slice2 before slice10: text and numbers in turn."""
    parts = re.split(r"(\d+)", Path(path).name)
    return (*(int(part) if part.isdecimal() else part for part in parts), path)


def read_stack(source: VolumeSource, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read images as the slices of one volume: i the column, j the row, k the place in the order.

    The images say nothing of the patient: the affine has the source's spacing, i to the patient's left and j to the
    back, as in an axial slice seen on a screen, and the order of files as upwards. Raises InputError for images that
    cannot be read or differ in size, channels or type.
    """
    images: list[RawImage] = []
    for file in source.files:
        # A slice of one value is part of its volume: only a volume without content is refused, when it is whole.
        image = decode_image(file)
        first = images[0] if images else image
        if (image.pixels.shape, image.dtype) != (first.pixels.shape, first.dtype):
            raise InputError(
                f"{file}: expected a slice of {_size(first.pixels)} {first.dtype} like the first one, "
                f"found {_size(image.pixels)} {image.dtype}"
            )
        if not images:
            check_voxels(image.pixels.size * len(source.files), source.path, max_voxels)
        images.append(image)
    # (K, H, W, C) -> (C, W, H, K)
    data = np.ascontiguousarray(np.stack([image.pixels for image in images]).transpose(3, 2, 1, 0))
    return Volume(
        data,
        np.diag([-source.spacing[0], -source.spacing[1], source.spacing[2], 1.0]),
        min(image.low for image in images),
        max(image.high for image in images),
        images[0].dtype,
        source.path,
        "stack",
        ranged=images[0].dtype in ("bool", "uint8", "uint16"),
        stored_shape=data.shape[1:],
        remarks=("a stack of images: spacing as given, position and orientation unknown",),
    )


def _size(pixels: np.ndarray) -> str:
    return " x ".join(str(side) for side in (pixels.shape[1], pixels.shape[0], pixels.shape[2]))
