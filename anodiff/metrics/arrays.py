"""What the metrics accept: numpy arrays, nested lists and torch tensors, checked once at the door."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import DataError

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def as_array(values: Any) -> NDArray[Any]:
    """A numpy array of anything array-like or of a torch tensor on any device; bfloat16 becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return np.asarray(values.float() if "bfloat16" in str(values.dtype) else values)
    return np.asarray(values)


def map_and_mask(values: Any, mask: Any | None, name: str) -> tuple[FloatArray, BoolArray | None]:
    """(map float32 or float64, mask bool or None) of one image, checked.

    Args:
        values: the map, any shape, higher = more anomalous.
        mask: bool or 0/1 of the map's shape, non-zero = anomalous, or None.
        name: what an error calls the image.

    Raises:
        DataError: the mask has another shape, or the map holds NaN.
    """
    pixels = as_array(values)
    if pixels.dtype not in (np.float32, np.float64):
        pixels = pixels.astype(np.float32 if pixels.dtype == np.float16 else np.float64)
    truth = None if mask is None else as_array(mask).astype(bool)
    if truth is not None and truth.shape != pixels.shape:
        raise DataError(f"The mask of {name} must have the shape of its map, {pixels.shape}, found {truth.shape}.")
    if np.isnan(pixels).any():
        raise DataError(f"The map of {name} holds {int(np.isnan(pixels).sum())} NaN pixels; a map must be finite.")
    return pixels, truth
