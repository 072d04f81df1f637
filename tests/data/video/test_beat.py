"""What is a gap between frames, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from anodiff.data.video.beat import GAP_INTERVALS, RECENT, after_gaps


def gaps(times: list[float], fps: float | None = None) -> list[int]:
    return np.flatnonzero(after_gaps(times, fps)).tolist()


@pytest.mark.parametrize("fps", [None, 10.0])
def test_more_than_five_usual_intervals_are_a_gap(fps: float | None) -> None:
    steady = [n / 10 for n in range(20)]
    assert gaps(steady, fps) == []
    for missing, found in ((4, []), (5, [8])):
        times = [n / 10 for n in range(30) if not 8 <= n < 8 + missing]
        assert gaps(times, fps) == found
    assert GAP_INTERVALS == 5


def test_rates_that_waver_or_change_are_followed() -> None:
    wavering = np.cumsum([0.04, 0.12, 0.04, 0.16, 0.08, 0.04, 0.12] * 5).tolist()
    assert gaps(wavering) == []
    # 25 a second become 2: each is a gap until the new rate is the usual one
    slower = [n / 25 for n in range(20)] + [0.8 + n / 2 for n in range(1, 20)]
    found = gaps(slower)
    assert found == list(range(20, 20 + RECENT // 2 + 1))
    # and a source that is slower than the model wants to see it is not all gaps: only its first interval surprises
    assert gaps([n / 1.5 for n in range(20)], 10.0) == [1]


def test_a_rate_says_what_is_usual_from_the_first_frame_on() -> None:
    assert gaps([0.0, 3.0, 3.1], 10.0) == [1]
    assert gaps([0.0, 3.0, 3.1]) == []
    assert gaps([]) == gaps([0.0]) == []
