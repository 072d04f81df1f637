"""Trivial baselines of every video table: frames of a clip in, one score a frame out; almost nothing is learnt.

They look at one clip at a time, in constant memory, and each score depends on this frame and earlier ones only; the
first frame, which has none before it, is given the score of the second. Smoothing over time is not part of them:
it is applied to all methods alike (:mod:`anodiff.anomaly.temporal`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anodiff.errors import DataError

Floats = NDArray[np.floating]
Frames = Iterable[np.ndarray]
FlowMethod = Literal["ilk", "tvl1"]


class VideoBaseline(ABC):
    """fit(normal clips), then scores(clip), where a clip is frames uint8 (H, W, C) in order.

    Attributes:
        name: of its row in a table.
    """

    name: str

    def fit(self, clips: Iterable[Frames]) -> Self:
        """Learn from normal clips. There is nothing to learn unless a baseline says so."""
        return self

    @abstractmethod
    def scores(self, frames: Frames) -> NDArray[np.float64]:
        """(n,) one score a frame, higher = more anomalous."""


class RandomScore(VideoBaseline):
    """Uniform numbers in [0, 1), a function of the clip's first frame and ``seed``: what chance reaches."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, frames: Frames) -> NDArray[np.float64]:
        count, key = 0, b""
        for frame in frames:
            key = key or hashlib.blake2b(np.ascontiguousarray(frame).tobytes(), digest_size=8).digest()
            count += 1
        return np.random.default_rng([self.seed, int.from_bytes(key, "little")]).random(count)


class FrameNumber(VideoBaseline):
    """The frame's number: what a set gives away whose anomalies come late in a clip (0.74 on Ped2)."""

    name = "frame number"

    def scores(self, frames: Frames) -> NDArray[np.float64]:
        return np.arange(sum(1 for _ in frames), dtype=np.float64)


class FrameDifference(VideoBaseline):
    """Mean absolute difference from the frame before in a square window, the largest window of the frame.

    Args:
        window_px: side of the window, px of ``size``, at most the frame's smaller side.
        size: (height, width) that frames are reduced to first, None = their own.
    """

    name = "frame difference"

    def __init__(self, window_px: int = 16, size: tuple[int, int] | None = None) -> None:
        self.window_px, self.size = window_px, size

    def scores(self, frames: Frames) -> NDArray[np.float64]:
        pairs = _pairs(grey_frames(frames, self.size))
        return _with_first([float(window_means(np.abs(now - past), self.window_px).max()) for past, now in pairs])


class FlowMagnitude(VideoBaseline):
    """Length of the optical flow from the frame before, in windows, as z-score on normals; the largest window.

    One mean and one standard deviation for all places: most pixels of normal clips never move, which ruins a z-score
    per pixel, and bands of rows were no better than the whole frame on Ped2.

    Args:
        window_px: side of the window, px of ``size``.
        size: (height, width) that frames are reduced to, None = their own.
        method: "tvl1" (Zach, Pock and Bischof 2007) or "ilk", iterative Lucas and Kanade (Le Besnerais and Champagnat
            2005), both by scikit-image; the second one makes flow out of noise where nothing has texture.
    """

    name = "optical flow"

    def __init__(
        self, window_px: int = 8, size: tuple[int, int] | None = (80, 120), *, method: FlowMethod = "tvl1"
    ) -> None:
        self.window_px, self.size, self.method = window_px, size, method

    def fit(self, clips: Iterable[Frames]) -> Self:
        """Mean and standard deviation of windowed flow over normal clips.

        Raises:
            DataError: no clip has two frames, or nothing moves in any.
        """
        count, total, squares = 0, 0.0, 0.0
        for clip in clips:
            for lengths in islice(self._lengths(clip), 1, None):
                count += lengths.size
                total += float(lengths.sum())
                squares += float(np.square(lengths).sum())
        self.mean_ = total / max(count, 1)
        self.std_ = float(np.sqrt(max(squares / max(count, 1) - self.mean_**2, 0)))
        if not self.std_ > 0:
            raise DataError(f"{self.name}: expected normal clips in which something moves, found none")
        return self

    def scores(self, frames: Frames) -> NDArray[np.float64]:
        return (_with_first([float(lengths.max()) for lengths in self._lengths(frames)]) - self.mean_) / self.std_

    def _lengths(self, frames: Frames) -> Iterator[Floats]:
        """Windowed flow in px a frame; nothing moves in the first one."""
        for past, now in _pairs(grey_frames(frames, self.size)):
            yield window_means(flow_lengths(past / 255, now / 255, self.method), self.window_px)


def standard_video_baselines(seed: int = 0) -> list[VideoBaseline]:
    """The four of every video table, unfitted."""
    return [RandomScore(seed), FrameNumber(), FrameDifference(), FlowMagnitude()]


def flow_lengths(past: Floats, now: Floats, method: FlowMethod = "tvl1") -> Floats:
    """Length (H, W) in px of the optical flow between two grey frames in [0, 1]."""
    from skimage.registration import optical_flow_ilk, optical_flow_tvl1

    solve = optical_flow_tvl1 if method == "tvl1" else optical_flow_ilk
    rows, columns = solve(past, now, dtype=np.float32)
    return np.asarray(np.hypot(rows, columns))


def window_means(values: Floats, side: int) -> Floats:
    """Means over all square windows of ``side`` px that lie inside values (H, W) -> (H - side + 1, W - side + 1).

    A side beyond that of the values is taken as theirs.
    """
    height, width = (min(side, length) for length in values.shape)
    sums = np.pad(values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1), ((1, 0), (1, 0)))
    total = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    return np.asarray(total / (height * width))


def grey_frames(frames: Frames, size: tuple[int, int] | None = None) -> Iterator[Floats]:
    """float32 (H, W) in 0 ... 255 of frames uint8 (H, W, C), reduced to ``size`` (height, width) by area."""
    for frame in frames:
        grey = frame.astype(np.float32).mean(axis=2)
        if size is not None and grey.shape != tuple(size):
            grey = np.asarray(Image.fromarray(grey).resize((size[1], size[0]), Image.Resampling.BOX))
        yield grey


def _pairs(frames: Iterator[Floats]) -> Iterator[tuple[Floats, Floats]]:
    """(frame before, frame) of every frame; the first one is its own."""
    past: Floats | None = None
    for now in frames:
        yield now if past is None else past, now
        past = now


def _with_first(values: list[float]) -> NDArray[np.float64]:
    """The first frame, which nothing comes before, with the score of the second."""
    return np.array(values[1:2] + values[1:] if len(values) > 1 else values, dtype=np.float64)
