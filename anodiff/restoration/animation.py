"""The way of generated images from noise to the image, as frames and as an animated GIF."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anodiff.diffusion.samplers import StepState
from anodiff.files import atomic_write, make_folder
from anodiff.visualize.heatmap import display_image

FRAME_MS, LAST_MS = 80, 1500


class Frames:
    """Keeps what images are after every step; to be given to ``Restorer.generate`` as ``on_state``.

    A frame is x / sqrt(1 + sigma^2), which from noise to image keeps about one spread, in [-1, 1] from black to white.

    Attributes:
        shown: of each of ``count`` images the frames so far, uint8 (h, w) or (h, w, 3).
    """

    def __init__(self, count: int) -> None:
        self.shown: list[list[NDArray[np.uint8]]] = [[] for _ in range(count)]

    def __call__(self, image: Tensor, state: StepState) -> None:
        """Adds a frame to each image of the rows; of copies of an image, one."""
        x = (state.x / math.sqrt(1 + state.sigma_next**2)).permute(0, 2, 3, 1).float().cpu().numpy()
        for row, number in enumerate(image.tolist()):
            if len(self.shown[number]) == state.i:
                self.shown[number].append(display_image(x[row], -1.0, 1.0))


def write_animation(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    """Writes frames as a GIF that repeats, atomically; the last one stays longer. Raises StorageError."""
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    durations = [*[FRAME_MS] * len(rest), LAST_MS]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    make_folder(path.parent)
    atomic_write(path, buffer.getvalue())
