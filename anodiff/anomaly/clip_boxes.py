"""Boxes of what stands out in the frames of a clip, for RBDC and TBDC: parts of the anomaly map above one level."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.data.preprocess import Geometry
from anodiff.metrics.tracks import Boxes, boxes_of, boxes_of_maps

Floats = NDArray[np.float64]


def native_boxes(values: ArrayLike, level: float, geometry: Geometry) -> Floats:
    """(n, 5): x first, y first, x last, y last in native pixels, and the highest value inside.

    A box is an 8-connected part of the map (h, w) on the model's grid at or above ``level``, where the frame fills it.
    """
    top, left, height, width = geometry.box
    inside = np.asarray(values)[top : top + height, left : left + width]
    found = boxes_of_maps([inside], [level])
    scale = np.array([geometry.native[1] / width, geometry.native[0] / height])
    first = np.floor(found.boxes[:, :2] * scale)
    last = np.maximum(np.ceil((found.boxes[:, 2:] + 1) * scale) - 1, first)
    return np.column_stack([first, last, found.values])


class BoxList:
    """Boxes of a clip, frame by frame; a few numbers each."""

    def __init__(self) -> None:
        self._frames: list[int] = []
        self._rows: list[Floats] = []

    def append(self, frame: int, boxes: Floats) -> None:
        """The boxes (n, 5) of one frame."""
        self._frames += [frame] * len(boxes)
        self._rows.append(boxes)

    def boxes(self) -> Boxes:
        """All of them; values are their scores."""
        rows = np.concatenate([np.zeros((0, 5)), *self._rows])
        return boxes_of(self._frames, rows[:, :4], rows[:, 4])
