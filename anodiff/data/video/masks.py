"""Pixel truth of clips, one mask a frame: folders of pictures, NPY arrays (n, H, W) and MAT files of cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.readers import decode_image
from anodiff.data.video.clip import list_frames
from anodiff.data.video.matlab import cells, read_mat
from anodiff.errors import InputError

Mask = NDArray[np.bool_]
#: what the MAT files of Avenue call it
MAT_KEY = "volLabel"


def read_masks(path: str) -> Iterator[Mask]:
    """bool (H, W) of each frame in turn, True = anomalous: every value but 0 is.

    Raises InputError for a file that cannot be read or an array of another shape, DataError for a MAT file.
    """
    if path.lower().endswith(".npy"):
        return _of_array(path)
    if path.lower().endswith(".mat"):
        return (np.asarray(mask) != 0 for mask in cells(read_mat(Path(path), MAT_KEY)))
    return (decode_image(file).pixels.max(axis=2) != 0 for file in list_frames(path))


def frame_truth(path: str) -> NDArray[np.bool_]:
    """bool (n,): which frames have an anomalous pixel."""
    return np.array([bool(mask.any()) for mask in read_masks(path)], dtype=bool)


def _of_array(path: str) -> Iterator[Mask]:
    values = load_npy(path)
    if values.ndim != 3:
        shape = " x ".join(map(str, values.shape))
        raise InputError(f"{path}: expected masks (frames, height, width), found {shape}")
    return (np.asarray(frame) != 0 for frame in values)


def load_npy(path: str) -> np.ndarray:
    """An NPY array of numbers, mapped, not read. Raises InputError where it is none; pickles are never loaded."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: expected an NPY array of numbers, found another kind of file ({detail})") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise InputError(f"{path}: expected an NPY array of numbers, found another kind of file")
    return values
