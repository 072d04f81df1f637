"""Scoring frames as they come: each with the past that belongs to it, whichever frames there is no time to score.

A model of motion sees a frame together with frames before it. Were frames dropped before that, the past would be
further back than in training and everything would seem to move faster. So every frame enters the past; what is dropped
when time is short is the *scoring* of some (see `Backlog`), and a frame's score does not depend on what was dropped.
"""

from __future__ import annotations

import threading
import time as clocks
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.anomaly.events import Box
from anodiff.data.video.beat import Beat
from anodiff.data.video.clip import Frame

if TYPE_CHECKING:
    from anodiff.anomaly.clips import ClipDetector

#: (past uint8 (N, K, H, W, C), oldest first, frames uint8 (N, H, W, C)) -> maps (N, h, w), scores (N,)
FrameFunction = Callable[[NDArray[np.uint8], NDArray[np.uint8]], tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class Scored:
    """One frame: index, time (s), score, map float32 (h, w) over the whole frame, box in native pixels or None."""

    index: int
    time: float
    score: float
    map: NDArray[np.float32]
    box: Box | None = None


@dataclass(frozen=True)
class Window:
    """A frame, and what the scorer needs to score it."""

    frame: Frame
    seen: Any


class ClipScorer(Protocol):
    """Frames in order -> their scores. `push` is all of it; `window` and `score` are its two halves."""

    #: frames that come before a frame that can be scored
    reach: int

    def push(self, frames: list[Frame]) -> list[Scored]:
        """Scores of those of the next frames that have enough past."""

    def window(self, frame: Frame) -> Window | None:
        """The next frame enters the past; what is needed to score it, None where that is not possible. Cheap."""

    def score(self, windows: Sequence[Window]) -> list[Scored]:
        """Scores of windows, whatever was left out between them. Another thread than `window`'s may call it."""

    def reset(self) -> None:
        """Forgets the past: the next frame does not follow the last one. After a gap `window` does so by itself."""


class _Pushing:
    """`push` from its two halves."""

    def push(self: Any, frames: list[Frame]) -> list[Scored]:
        """See `ClipScorer`."""
        windows = [window for frame in frames if (window := self.window(frame)) is not None]
        return self.score(windows) if windows else []


class WindowScorer(_Pushing):
    """Any function of frames and their past as a `ClipScorer`.

    Args:
        function: see `FrameFunction`.
        lags: how many frames back each past frame lies, e.g. (3, 2, 1); all at least 1. May be empty.
    """

    def __init__(self, function: FrameFunction, lags: Sequence[int] = (1,)) -> None:
        if any(lag < 1 for lag in lags):
            raise ValueError(f"expected lags of at least one frame, found {list(lags)}")
        self.function, self.lags, self.reach = function, tuple(lags), max(lags, default=0)
        self._past: deque[NDArray[np.uint8]] = deque(maxlen=self.reach + 1)
        self._beat = Beat()

    def window(self, frame: Frame) -> Window | None:
        """See `ClipScorer`; a frame of another size starts anew."""
        resized = bool(self._past) and self._past[-1].shape != frame.pixels.shape
        if self._beat.gap(frame.time) or resized:
            self._past.clear()
        self._past.append(frame.pixels)
        if len(self._past) <= self.reach:
            return None
        return Window(frame, tuple(self._past[-1 - lag] for lag in self.lags))

    def score(self, windows: Sequence[Window]) -> list[Scored]:
        """See `ClipScorer`."""
        frames = np.stack([window.frame.pixels for window in windows])
        past = [
            np.stack(window.seen) if window.seen else np.empty((0, *frames.shape[1:]), np.uint8) for window in windows
        ]
        maps, scores = self.function(np.stack(past), frames)
        values, numbers = np.asarray(maps, dtype=np.float32), np.asarray(scores, dtype=np.float64)
        return [
            Scored(window.frame.index, window.frame.time, float(score), one)
            for window, one, score in zip(windows, values, numbers, strict=True)
        ]

    def reset(self) -> None:
        """See `ClipScorer`."""
        self._past.clear()
        self._beat = Beat()


class DetectorScorer(_Pushing):
    """A `ClipDetector` as a `ClipScorer`: the same score for a frame as in a recorded clip.

    Frames that the recipe's frame rate leaves out have no score.
    """

    def __init__(self, detector: ClipDetector) -> None:
        self.detector = detector
        self.reach = detector.video.reach
        self._next: Frame | None = None
        self.reset()

    def window(self, frame: Frame) -> Window | None:
        """See `ClipScorer`. Raises InputError for a frame of another size than before."""
        self._next = frame
        found = next(self._windows)
        return None if found.seen is None else Window(frame, found.seen)

    def score(self, windows: Sequence[Window]) -> list[Scored]:
        """See `ClipScorer`."""
        import torch

        detector = self.detector
        maps = detector.see(torch.from_numpy(np.stack([np.stack(window.seen) for window in windows])))
        geometry = detector.prepare.geometry(windows[0].frame.pixels)
        scores, places = detector.scorer.frames(maps, geometry.box)
        top, left, height, width = geometry.box
        return [
            Scored(
                window.frame.index,
                window.frame.time,
                float(score),
                one[top : top + height, left : left + width].numpy(),
                detector.scorer.native(place, geometry),
            )
            for window, score, place, one in zip(windows, scores, places.tolist(), maps, strict=True)
        ]

    def reset(self) -> None:
        """See `ClipScorer`."""
        from anodiff.data.clip_input import windows

        self._windows = windows(self._feed(), self.detector.prepare, self.detector.video)

    def _feed(self) -> Iterator[Frame]:
        while self._next is not None:
            yield self._next


class Backlog:
    """Windows that wait to be scored: a bounded queue between the thread that reads and the one that scores.

    Where frames may be dropped (a live source) the oldest give way: those for which there is no room, and those that
    have waited longer than ``max_delay`` seconds when they would be taken. Else (a recorded source) the reader waits.

    Args:
        room: windows that wait at most.
        max_delay: seconds.
        drop: see above.
        now: a clock that never goes back.

    Attributes:
        dropped: windows that were not scored.
        longest: seconds that a window waited at most which was scored.
    """

    def __init__(
        self, room: int, max_delay: float, *, drop: bool = True, now: Callable[[], float] = clocks.monotonic
    ) -> None:
        self.room, self.max_delay, self.drop = max(1, room), max_delay, drop
        self.dropped, self.longest = 0, 0.0
        self._now = now
        self._waiting: deque[tuple[float, Any]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, entry: Any, *, keep: bool = False) -> None:
        """Adds an entry; one with ``keep`` is news, takes no room and is never dropped. Nothing after `close`."""
        with self._changed:
            if not keep:
                while self._full() and not self.drop and not self._closed:
                    self._changed.wait(0.5)
                if self.drop:
                    while self._full():
                        self._drop_oldest()
            if not self._closed:
                self._waiting.append((float("inf") if keep else self._now(), entry))
                self._changed.notify_all()

    def take(self, most: int, timeout: float) -> list[Any] | None:
        """Up to ``most`` entries in order, [] after ``timeout`` seconds without any, None when all is over."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait(timeout)
            taken: list[Any] = []
            while self._waiting and len(taken) < most:
                since, entry = self._waiting.popleft()
                waited = self._now() - since
                if self.drop and waited > self.max_delay:
                    self.dropped += 1
                    continue
                self.longest = max(self.longest, waited)
                taken.append(entry)
            self._changed.notify_all()
            return taken if taken or self._waiting or not self._closed else None

    def close(self) -> None:
        """No more entries come; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _full(self) -> bool:
        return sum(since != float("inf") for since, _ in self._waiting) >= self.room

    def _drop_oldest(self) -> None:
        for place, (since, _) in enumerate(self._waiting):
            if since != float("inf"):
                del self._waiting[place]
                self.dropped += 1
                return
