"""From the frames of a clip to what a model of clips sees: frames at its size, what is denoised, what is given."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.preprocess import Geometry, Preprocessor, resize
from anodiff.data.video.beat import Beat
from anodiff.errors import InputError

if TYPE_CHECKING:
    from anodiff.config import AnodiffConfig, VideoConfig
    from anodiff.data.video.clip import Frame

Pixels = NDArray[np.uint8]

#: a frame that comes this share of a period early is not left out when a clip is thinned
EARLY = 0.25
#: frames behind a background, at most: more do not change a median that anybody could see
BACKGROUND_FRAMES = 500


class FramePreprocessor:
    """Frames uint8 (H, W, 1 or 3) -> uint8 (C, h, w) on the model's grid; colours become grey for a model of 1 channel.

    Learning and scoring see the same 8 bits. Resizing and padding as in :class:`Preprocessor`, whose ``back`` is the
    way home.
    """

    def __init__(self, config: AnodiffConfig) -> None:
        self.channels, self.channel = config.preprocess.channels, config.preprocess.channel
        self.plain = Preprocessor(config.preprocess)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Raises InputError for a frame without the channel that the recipe picks."""
        geometry = self.geometry(pixels)
        top, left, height, width = geometry.box
        planes = np.moveaxis(self._channels(pixels), 2, 0)
        small = np.stack([resize(plane.astype(np.float32), (height, width)) for plane in planes])
        margin = ((top, geometry.model[0] - top - height), (left, geometry.model[1] - left - width))
        return np.pad(np.rint(small).clip(0, 255).astype(np.uint8), ((0, 0), *margin), mode="edge")

    def geometry(self, pixels: Pixels) -> Geometry:
        """Where the frame lies on the model's grid."""
        return self.plain.geometry((pixels.shape[0], pixels.shape[1]))

    def _channels(self, pixels: Pixels) -> NDArray[np.generic]:
        found = pixels.shape[2]
        if self.channel is not None:
            if self.channel >= found:
                raise InputError(f"frame: expected a channel number {self.channel} (from 0), found {found} channel(s)")
            pixels, found = pixels[:, :, self.channel : self.channel + 1], 1
        if found == self.channels:
            return pixels
        if found == 1 and self.channels == 3:
            return np.repeat(pixels, 3, axis=2)
        if found == 3 and self.channels == 1:  # luma of ITU-R BT.601, as readers of images have it
            return pixels @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
        raise InputError(f"frame: expected {self.channels} channel(s), found {found}")


class ClipInput:
    """What the denoiser denoises, and what it is given, made of a frame and those before it.

    background: (C, h, w) in [-1, 1], taken off every frame, or None.
    """

    def __init__(self, video: VideoConfig, background: Tensor | None = None) -> None:
        self.video, self.background = video, background

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (N, F, C, h, w), the current frame first, then those before it (``video.offsets``) ->

        clean (N, K, h, w) and context (N, K', h, w) or None, float32 on the device of the frames.
        """
        plain = frames.float() * (2 / 255) - 1
        if self.background is not None:
            plain = plain - self.background.to(plain.device)
        plain = plain * self.video.gain
        now, past = plain[:, 0], plain[:, 1:]
        if self.video.mode in ("joint", "space-time"):
            return plain.flatten(1, 2), None
        if self.video.mode == "difference":
            return torch.cat([now, now - past[:, 0]], dim=1), None
        return (now - past[:, 0] if self.video.target == "change" else now), past.flatten(1, 2)


def median_background(frames: Tensor) -> Tensor:
    """What stands still: the median of uint8 frames (M, C, h, w), at most BACKGROUND_FRAMES of them, in [-1, 1]."""
    chosen = torch.linspace(0, len(frames) - 1, min(len(frames), BACKGROUND_FRAMES)).round().long()
    return torch.quantile(frames[chosen].float(), 0.5, dim=0) * (2 / 255) - 1


@dataclass(frozen=True)
class Window:
    """A frame, and what the model sees with it: uint8 (C, h, w) each, the frame itself first, then older ones.

    seen is None where too little came before, and where the frame is left out (``kept`` False) to thin the clip.
    fresh: the first one after a gap, see `Beat`.
    """

    frame: Frame
    kept: bool
    seen: tuple[Pixels, ...] | None
    fresh: bool = False


def thinned(frames: Iterable[Frame], fps: float | None) -> Iterator[tuple[Frame, bool]]:
    """Every frame of a clip, and whether it is one of ``fps`` a second (by its time; None keeps all).

    Raises InputError where the size of the frames changes.
    """
    due, shape = -math.inf, None
    for frame in frames:
        if shape is not None and frame.pixels.shape != shape:
            raise InputError(
                f"frame {frame.index}: expected the size {shape[1]}x{shape[0]} of the frames before, "
                f"found {frame.pixels.shape[1]}x{frame.pixels.shape[0]}"
            )
        shape = frame.pixels.shape
        kept = fps is None or frame.time >= due - EARLY / fps
        if kept and fps is not None:
            # After a gap the beat starts anew; else it goes on, so that 25 become 10 and not 12.5.
            due = frame.time + 1 / fps if frame.time > due + 1 / fps else due + 1 / fps
        yield frame, kept


def windows(
    frames: Iterable[Frame], prepare: Callable[[Pixels], Pixels], video: VideoConfig
) -> Generator[Window, None, None]:
    """Every frame of a clip with the past that the model sees, in constant memory; after a gap the past begins anew.

    prepare: what a `FramePreprocessor` does, or less. Raises InputError as `thinned`.
    """
    past: deque[Pixels] = deque(maxlen=video.reach + 1)
    beat = Beat(video.fps)
    for frame, kept in thinned(frames, video.fps):
        fresh = kept and beat.gap(frame.time)
        if fresh:
            past.clear()
        if kept:
            past.append(prepare(frame.pixels))
        complete = kept and len(past) > video.reach
        yield Window(frame, kept, tuple(past[-1 - back] for back in video.offsets) if complete else None, fresh)
