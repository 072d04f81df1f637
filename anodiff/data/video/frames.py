"""A folder of frames as a clip: PNG, JPEG, BMP, TIFF or NPY files in natural order, at a rate that the user states.

Where the names count the frames, a number that is missing is a frame that is missing: the next one is later.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from anodiff.data.layouts.folder import natural_key
from anodiff.data.readers import RawImage, decode_image
from anodiff.data.video.clip import MIN_FRAMES, Clip, ClipInfo, Frame, clips_below, list_frames
from anodiff.errors import InputError

#: frames a second of a folder, where no one says
DEFAULT_FPS = 25.0


class FrameFolder(Clip):
    """The images that lie directly in a folder.

    folder: of the frames; fps: frames a second, None = 25; max_pixels: of one frame.
    """

    def __init__(self, folder: str, fps: float | None, max_pixels: int) -> None:
        self._folder, self._fps, self._max_pixels = folder, fps or DEFAULT_FPS, max_pixels
        self._info: ClipInfo | None = None

    @property
    def info(self) -> ClipInfo:
        if self._info is None:
            self._files = list_frames(self._folder)
            if len(self._files) < MIN_FRAMES:
                raise InputError(
                    f"{self._folder}: expected a folder of at least {MIN_FRAMES} frames, found {len(self._files)}"
                    f"{hint(self._folder)}"
                )
            height, width, channels = frame_pixels(self._files[0], self._max_pixels).shape
            self._places = frame_places([os.path.basename(file) for file in self._files])
            self._info = ClipInfo(self._folder, height, width, channels, len(self._files), self._fps)
        return self._info

    def close(self) -> None:
        """Nothing stays open between frames."""

    def _frames(self) -> Iterator[Frame]:
        info = self.info
        shape = (info.height, info.width, info.channels)
        for index, (file, place) in enumerate(zip(self._files, self._places, strict=True)):
            time = place / self._fps
            try:
                pixels = frame_pixels(file, self._max_pixels)
                if pixels.shape != shape:
                    raise InputError(
                        f"{file}: expected a frame of {_size(shape)} like the first one, found {_size(pixels.shape)}"
                    )
            except InputError as error:
                self.broken = f"{self._folder}: broke off after {index} frames, at {time:.2f} s: {error}"
                return
            yield Frame(index, time, pixels)


def hint(folder: str) -> str:
    """Where the clips are that lie below a folder without frames; nothing where there are none."""
    below = sorted(clips_below(folder), key=natural_key)
    more = f" and {len(below) - 1} more" if len(below) > 1 else ""
    return f"; below it {'lie the clips' if more else 'lies the clip'} {below[0]}{more}" if below else ""


def frame_places(names: Sequence[str]) -> list[float]:
    """Where each frame stands in its clip, counted in frames from the first one (0), by the numbers in the names.

    Numbers count where they rise from name to name, all else in the names is alike, and more than half of the steps
    are of one size, which is one frame (1, or 5 where every fifth frame was kept). Else names are only an order.
    """
    numbers = _counted([os.path.splitext(name)[0] for name in names])
    order = [float(place) for place in range(len(names))]
    if numbers is None:
        return order
    steps = [after - before for before, after in pairwise(numbers)]
    (step, count), *_ = Counter(steps).most_common(1) or [(0, 0)]
    if min(steps, default=0) <= 0 or 2 * count <= len(steps):
        return order
    return [(number - numbers[0]) / step for number in numbers]


def places_in(folder: str) -> list[float]:
    """`frame_places` of the images in a folder. Raises InputError where it cannot be listed."""
    return frame_places([os.path.basename(file) for file in list_frames(folder)])


def _counted(stems: Sequence[str]) -> list[int] | None:
    """The one number in which the stems differ, or None."""
    parts = [re.split(r"([0-9]+)", stem) for stem in stems]
    if len({len(each) for each in parts}) != 1:
        return None
    columns = list(zip(*parts, strict=True))
    words, numbers = columns[::2], [[int(cell) for cell in column] for column in columns[1::2]]
    differ = [column for column in numbers if len(set(column)) > 1]
    return differ[0] if len(differ) == 1 and all(len(set(word)) == 1 for word in words) else None


def frame_pixels(file: str, max_pixels: int) -> np.ndarray:
    """uint8 (H, W, 1 or 3) of an image of 8 or 16 bits; 16 bits are scaled by their full range, alike in every frame.

    Raises InputError: unreadable, of another type (a float image has no range that all frames share), 2 or over 3
    channels.
    """
    image = decode_image(file, max_pixels=max_pixels)
    if image.pixels.shape[2] not in (1, 3):
        raise InputError(f"{file}: expected a grey or RGB frame, found {image.pixels.shape[2]} channels")
    return _to_bytes(image)


def _to_bytes(image: RawImage) -> np.ndarray:
    if image.dtype == "uint8":
        return image.pixels.astype(np.uint8)
    if image.dtype not in ("bool", "uint16"):
        raise InputError(f"{image.path}: expected a frame of 8 or 16 bits a sample, found the type {image.dtype}")
    return np.rint(image.pixels * (255 / image.high)).astype(np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} with {shape[2]} channel{'s' if shape[2] > 1 else ''}"
