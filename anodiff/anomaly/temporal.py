"""Scores over time: Gaussian smoothing inside one clip, at the frames' true times, looking both ways or only back."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: reach of the Gaussian in standard deviations, as in `anomaly.smoothing`; the slack keeps frames of a steady rate that
#: lie just there from coming and going with the rounding of their times
TRUNCATE = 4.0 * (1 + 1e-9)


def stretches(times: ArrayLike, max_gap_s: float) -> list[slice]:
    """The pieces of (n,) ascending times in seconds between which more than ``max_gap_s`` is missing.

    Raises:
        ValueError: times that fall, or are not finite.
    """
    at = _times(times)
    cuts = [0, *(np.flatnonzero(np.diff(at) > max_gap_s) + 1).tolist(), at.size]
    return [slice(begin, end) for begin, end in pairwise(cuts) if end > begin]


def smooth_in_time(times: ArrayLike, values: ArrayLike, width_s: float, *, causal: bool = False) -> Floats:
    """Weighted mean of the values (n,) within +-4 widths, weights exp(-(t_i - t_j)^2 / (2 width^2)) -> (n,).

    It is an estimate by kernel regression (Nadaraya 1964): no frame rate is assumed, and at the ends the weights that
    are left count in full, so nothing is mirrored. A value of nan is a frame without a score: it has no weight and
    stays nan.

    Args:
        times: (n,) seconds, not falling.
        values: (n,), one clip; nothing but these frames is used.
        width_s: standard deviation in seconds; 0 = none.
        causal: only this frame and earlier ones have weight, as in live use.

    Raises:
        ValueError: see `stretches`.
    """
    at, x = _times(times), np.asarray(values, dtype=np.float64)
    if width_s <= 0 or at.size == 0:
        return x.copy()
    there = np.isfinite(x)
    filled = np.where(there, x, 0.0)
    total, weight = filled.copy(), there.astype(np.float64)
    for lag in range(1, at.size):
        apart = at[lag:] - at[:-lag]
        if apart.min() > TRUNCATE * width_s:
            break
        w = np.where(apart <= TRUNCATE * width_s, np.exp(-0.5 * (apart / width_s) ** 2), 0.0)
        total[lag:] += w * filled[:-lag]
        weight[lag:] += w * there[:-lag]
        if not causal:
            total[:-lag] += w * filled[lag:]
            weight[:-lag] += w * there[lag:]
    return np.where(there, total / np.where(there, weight, 1.0), np.nan)


class CausalSmoother:
    """`smooth_in_time(causal=True)` one frame at a time, remembering four widths of the past and no more."""

    def __init__(self, width_s: float) -> None:
        self.width_s = width_s
        self._past: deque[tuple[float, float]] = deque()

    def push(self, time: float, value: float) -> float:
        """The smoothed value of the next frame; nan for nan."""
        if self.width_s <= 0 or not math.isfinite(value):
            return value
        while self._past and time - self._past[0][0] > TRUNCATE * self.width_s:
            self._past.popleft()
        total, weight = value, 1.0
        for then, before in reversed(self._past):
            w = math.exp(-0.5 * ((time - then) / self.width_s) ** 2)
            total, weight = total + w * before, weight + w
        self._past.append((time, value))
        return total / weight

    def reset(self) -> None:
        """Forgets the past: what follows is another stretch."""
        self._past.clear()


def _times(times: ArrayLike) -> Floats:
    at = np.asarray(times, dtype=np.float64)
    if not np.isfinite(at).all() or (np.diff(at) < 0).any():
        raise ValueError("expected finite times of frames that do not fall")
    return at
