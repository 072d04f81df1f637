"""Decoded frames to arrays: grey or RGB of 8 bits, turned and mirrored as their stream says they are displayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

DISPLAY_MATRIX = "DISPLAYMATRIX"

Matrix = tuple[int, int, int, int]


class Pixels:
    """Frames of one stream to arrays, as displayed.

    The display matrix is read with the first frame, and again where the angle changes: asking a frame for it makes the
    frame refer to itself, which keeps it in memory until the garbage collector comes.

    size: (H, W) to scale to, None = as stored; grey: whether to give grey, None = as each frame is.
    """

    def __init__(self, size: tuple[int, int] | None = None, *, grey: bool | None = None) -> None:
        self._size, self._grey = size, grey
        self._angle: int | None = None
        self._matrix: Matrix | None = None

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, 1) of a grey frame, (H, W, 3) RGB of any other."""
        if frame.rotation != self._angle:
            self._angle, self._matrix = frame.rotation, display_matrix(frame)
        return to_pixels(frame, self._matrix, self._size, grey=self._grey)


def to_pixels(
    frame: VideoFrame, turn: Matrix | None, size: tuple[int, int] | None = None, *, grey: bool | None = None
) -> np.ndarray:
    """uint8 (H, W, 1) or (H, W, 3) of one frame, turned by a display matrix; size and grey as in :class:`Pixels`."""
    from av.video.reformatter import Interpolation

    height, width = (None, None) if size is None else size[::-1] if _swaps(turn) else size
    grey = is_grey(frame) if grey is None else grey
    # Bit-exact and in one thread: faster ways round as the alignment of memory and the number of cores have it.
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    pixels = frame.to_ndarray(
        format="gray" if grey else "rgb24", width=width, height=height, interpolation=exact, threads=1
    )
    return np.ascontiguousarray(oriented(pixels.reshape(*pixels.shape[:2], 1 if grey else 3), turn))


def is_grey(frame: VideoFrame) -> bool:
    """Whether a frame has luma only, with or without opacity."""
    components = frame.format.components
    return frame.format.name.startswith(("gray", "ya", "mono")) and len(components) <= 2


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """(a, b, c, d) that take a stored pixel (x, y) to (a x + c y, b x + d y) on the screen; None = as stored."""
    data: Any = frame.side_data.get(DISPLAY_MATRIX)
    if data is None:
        return None
    values = np.frombuffer(bytes(data), dtype=np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def oriented(pixels: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Pixels (H, W, C) turned and mirrored by a display matrix; angles between quarter turns go to the nearest one."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    across, down = (c, b) if _swaps(matrix) else (a, d)
    if _swaps(matrix):
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _swaps(matrix: Matrix | None) -> bool:
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])
