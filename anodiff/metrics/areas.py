"""AUPRO and AUPIMO as means over anomalous pixels.

Lower the threshold: a curve of overlap against the false-positive rate F rises by an anomalous pixel's weight w at the
rate F where the pixel is passed, and keeps that height to the end. So the area is not a sum over thresholds but

    area = sum_pixels w g(F) / sum_pixels w,    g(F) = the part of the integration range that lies beyond F.

A pixel tied with normal ones enters along a straight ramp from the rate before the tie to the rate after it; it gets
the mean of g over the ramp. The same sum over histogram bins, a bin being one tie, is the streaming and the bootstrap
form; as g falls, a pixel's true share lies between g at the bin's two ends, which gives the error bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]


class Gain(Protocol):
    """Mean of g over [before, after], two arrays of rates with 0 <= before <= after <= 1 -> values in [0, 1]."""

    def __call__(self, before: Rates, after: Rates) -> Rates: ...


@dataclass(frozen=True)
class LinearGain:
    """g(F) = max(L - F, 0) / L, the area below a curve over F in [0, L] (AUPRO; Bergmann et al. 2020).

    Raises:
        ValueError: L is not in (0, 1].
    """

    limit: float

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            raise ValueError(f"the limit of the false-positive rate must lie in (0, 1], found {self.limit}")

    def __call__(self, before: Rates, after: Rates) -> Rates:
        """See `Gain`; the curve is interpolated at the limit."""
        start, end = np.minimum(before, self.limit), np.minimum(after, self.limit)
        left = self.limit - (start + end) / 2
        # A ramp that the limit cuts is only partly inside; one of length zero is a single rate.
        inside = np.divide(end - start, after - before, out=np.ones_like(left), where=after > before)
        return inside * left / self.limit


@dataclass(frozen=True)
class LogGain:
    """g(F) = ln(U / clip(F, L, U)) / ln(U / L): the area over ln F between L and U (AUPIMO; Bertoldo et al. 2024).

    Raises:
        ValueError: not 0 < L < U <= 1.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"the false-positive rates must be 0 < low < high <= 1, found {self.low}, {self.high}")

    def __call__(self, before: Rates, after: Rates) -> Rates:
        """See `Gain`; ties enter evenly over F, as they would in random order."""
        length = after - before
        mean = np.divide(
            self._integral(after) - self._integral(before), length, out=np.empty_like(length), where=length > 0
        )
        whole = np.log(self.high / self.low)
        at = np.log(self.high / np.clip(before, self.low, self.high)) / whole
        return np.clip(np.where(length > 0, mean / whole, at), 0.0, 1.0)

    def _integral(self, rate: Rates) -> Rates:
        """Integral of ln(U / clip(x, L, U)) over [0, rate]."""
        inside = np.clip(rate, self.low, self.high)
        below = np.minimum(rate, self.low) * np.log(self.high / self.low)
        upper, lower = (x * np.log(self.high / x) + x for x in (inside, np.full_like(inside, self.low)))
        return below + upper - lower


def area(gain: Gain, before: Rates, after: Rates, mass: Rates) -> Rates:
    """sum mass x gain / sum mass over the last axis, in [0, 1]; NaN where there is no mass.

    Args:
        gain: g.
        before, after: (..., K) false-positive rates just before and just after each score or bin.
        mass: (..., K) weight of the anomalous pixels there.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.minimum((mass * gain(before, after)).sum(-1) / mass.sum(-1), 1.0)


def area_error(gain: Gain, before: Rates, after: Rates, mass: Rates, single: NDArray[np.bool_]) -> Rates:
    """A strict bound on |area of the bins - exact area|: sum mass x max(g(before) - g, g - g(after)) / sum mass.

    Bins that hold one distinct value (`single`, (K,)) add nothing: their pixels are truly tied.
    """
    here = gain(before, after)
    off = np.maximum(gain(before, before) - here, here - gain(after, after)) * ~single
    with np.errstate(invalid="ignore", divide="ignore"):
        return (mass * off).sum(-1) / mass.sum(-1)
