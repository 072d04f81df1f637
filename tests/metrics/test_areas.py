"""The gains of AUPRO and AUPIMO are the integrals they claim to be, and their bounds hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from anodiff.metrics.areas import Gain, LinearGain, LogGain, area, area_error

GAINS: list[Gain] = [LinearGain(0.3), LinearGain(1.0), LogGain(1e-3, 1e-1), LogGain(0.2, 1.0)]
RATES = (0.0, 5e-4, 0.01, 0.1, 0.15, 0.3, 0.8, 1.0)


def _density(gain: Gain, rate: float) -> float:
    """g(F) by its definition: what is left of the range beyond F."""
    if isinstance(gain, LinearGain):
        return max(gain.limit - rate, 0.0) / gain.limit
    assert isinstance(gain, LogGain)
    clipped = min(max(rate, gain.low), gain.high)
    return float(np.log(gain.high / clipped) / np.log(gain.high / gain.low))


@pytest.mark.parametrize("gain", GAINS, ids=repr)
def test_a_ramp_gains_the_mean_of_g(gain: Gain) -> None:
    for i, before in enumerate(RATES):
        at = gain(np.array([before]), np.array([before]))[0]
        assert at == pytest.approx(_density(gain, before), abs=1e-12)
        for after in RATES[i + 1 :]:
            kinks = [x for x in (1e-3, 0.1, 0.2, 0.3) if before < x < after] or None
            expected = integrate.quad(lambda x: _density(gain, x), before, after, points=kinks)[0] / (after - before)
            assert gain(np.array([before]), np.array([after]))[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("gain", GAINS, ids=repr)
def test_a_narrow_ramp_is_a_point(gain: Gain) -> None:
    """One pixel of 1e9: subtracting nearly equal integrals must not lose the digits."""
    before = np.linspace(0, 0.9, 50)
    assert np.allclose(gain(before, before + 1e-9), gain(before, before), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8), st.integers(0, 3))
def test_any_order_inside_the_bins_stays_within_the_bound(bins: list[tuple[int, int]], which: int) -> None:
    """The two extreme orders of every bin: all anomalous pixels first, or all normal ones."""
    gain = GAINS[which]
    mass, normal = np.array(bins, dtype=float).T
    if not mass.sum() or not normal.sum():
        return
    after = np.cumsum(normal) / normal.sum()
    before = np.append(0.0, after[:-1])
    value = area(gain, before, after, mass)
    bound = area_error(gain, before, after, mass, np.zeros(len(bins), bool))
    extremes = [area(gain, rate, rate, mass) for rate in (before, after)]
    assert max(abs(value - extreme) for extreme in extremes) <= bound + 1e-12
    assert area_error(gain, before, after, mass, np.ones(len(bins), bool)) == 0


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.5])
def test_an_impossible_limit_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="limit"):
        LinearGain(limit)


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, 1.2)])
def test_impossible_bounds_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low < high"):
        LogGain(*bounds)
