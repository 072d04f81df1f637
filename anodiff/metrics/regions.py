"""Anomalous regions: the connected parts of a mask, touching corners included."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anodiff.metrics.arrays import IntArray, as_array


def label_regions(mask: Any) -> tuple[NDArray[np.int32], int]:
    """(labels of the mask's shape, 0 = background and 1 ... n the regions, n); mask bool or 0/1 of any rank.

    Pixels belong together when they share a side or a corner: 8 neighbours in 2-D, 26 in 3-D.
    """
    truth = as_array(mask).astype(bool)
    labels, count = ndimage.label(truth, structure=np.ones((3,) * truth.ndim, dtype=bool), output=np.int32)
    return labels, int(count)


def regions_of_pixels(mask: Any) -> tuple[IntArray, IntArray]:
    """(region 0 ... n-1 of each anomalous pixel in the order of `map[mask]`, pixels of each region (n,))."""
    truth = as_array(mask).astype(bool)
    labels, count = label_regions(truth)
    of_pixel = labels[truth].astype(np.int64) - 1
    return of_pixel, np.bincount(of_pixel, minlength=count).astype(np.int64)
