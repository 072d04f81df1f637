"""Frames that follow each other, and gaps between those that do not: a model of motion must not see across one."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: frames further apart than so many usual intervals do not follow each other: four missing are borne, five are a gap
GAP_INTERVALS = 5.0
#: the usual interval is the median of so many latest ones, gaps among them: a camera that slows down is followed
RECENT = 9


class Beat:
    """Tells a gap from the usual interval of frames: more than GAP_INTERVALS of it between two of them.

    The usual interval is the median of the RECENT latest ones, and at least 1 / ``fps`` where a rate is given. The
    first interval of a clip is never a gap without a rate: nothing is known yet.
    """

    def __init__(self, fps: float | None = None) -> None:
        self._least = 0.0 if fps is None else 1 / fps
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._last: float | None = None

    def gap(self, time: float) -> bool:
        """Whether the next frame, at ``time`` in seconds, comes after a gap."""
        last, self._last = self._last, time
        if last is None:
            return False
        usual = max(self._least, median(self._recent)) if self._recent else self._least
        self._recent.append(time - last)
        # The slack is for the rounding of times.
        return usual > 0 and time - last > GAP_INTERVALS * usual * (1 + 1e-6)


def after_gaps(times: ArrayLike, fps: float | None) -> NDArray[np.bool_]:
    """(n,): which of the frames at ``times`` (n,) come after a gap; see `Beat`."""
    beat = Beat(fps)
    return np.array([beat.gap(time) for time in np.asarray(times, dtype=np.float64).tolist()], dtype=bool)


def between_gaps(times: ArrayLike, fps: float | None, reach: int) -> list[slice]:
    """The pieces of (n,) between gaps in which a frame has ``reach`` frames before it."""
    found = after_gaps(times, fps)
    ends = pairwise([0, *np.flatnonzero(found).tolist(), len(found)])
    return [slice(begin, end) for begin, end in ends if end - begin > reach]
