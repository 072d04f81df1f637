"""The p-value of a clip: at most as often small as it says, whatever the clip's length."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from anodiff.anomaly.clip_blocks import block_highest, choose_blocks, footage_seconds, p_value
from anodiff.anomaly.temporal import smooth_in_time

FPS = 10.0


def footage(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a normal clip: they hang together over time, and each clip has a level of its own."""
    scores = lfilter([0.8], [1, -0.6], rng.normal(size=count + 50))[50:]
    return np.arange(count) / FPS, scores + rng.normal(0, 0.3)


@pytest.mark.parametrize("frames", [15, 60, 61, 240])
def test_normal_clips_of_any_length_have_a_small_p_value_as_rarely_as_it_says(frames: int) -> None:
    rng, rate, rounds = np.random.default_rng(0), 0.1, 200
    found, naive = np.empty(rounds), np.empty(rounds)
    for k in range(rounds):
        known = [footage(rng, 60) for _ in range(19)]
        times, scores = footage(rng, frames)
        p, _ = p_value(known, float(scores.max()), footage_seconds(times), 0.0)
        found[k] = np.nan if p is None else p
        naive[k] = (1 + sum(one.max() >= scores.max() for _, one in known)) / 20
    error = 3 * np.sqrt(rate * (1 - rate) / rounds)
    assert (found <= rate).mean() <= rate + error
    if frames == 60:
        np.testing.assert_allclose(found, naive)
    if frames == 15:  # whole clips' highest are larger than a short one's: it could hardly ever stand out
        assert (naive <= rate).mean() < (found <= rate).mean() - 0.02
    if frames == 240:  # four times the chances to be high
        assert (naive <= rate).mean() > rate + error


def test_a_short_clip_is_compared_with_blocks_of_its_length_by_clips() -> None:
    times = np.arange(6) / FPS
    known = [(times, np.array([1.0, 9, 2, 3, 4, 5])), (times, np.array([0.0, 1, 0, 7, 0, 2]))]
    # blocks of two frames: highest 9, 3, 5 and 1, 7, 2
    assert block_highest(*known[0], 0.2, 0.0).tolist() == [9, 3, 5]
    assert p_value(known, 5.0, 0.2, 0.0)[0] == pytest.approx((1 + 2 / 3 + 1 / 3) / 3)
    assert p_value(known, 10.0, 0.2, 0.0)[0] == pytest.approx(1 / 3)
    assert p_value(known, 0.5, 0.2, 0.0)[0] == pytest.approx(1)
    # as long as the clips themselves: one block each
    assert p_value(known, 8.0, 0.6, 0.0)[0] == pytest.approx(2 / 3)


def test_a_long_clip_is_as_many_blocks_as_it_has_room_for() -> None:
    times = np.arange(10) / FPS
    known = [(times, np.full(10, float(level))) for level in range(9)]
    alike = p_value(known, 8.0, 1.0, 0.0)[0]
    assert alike == pytest.approx(2 / 10)
    found, chosen = p_value(known, 8.0, 2.5, 0.0)
    assert chosen.parts == 3
    assert found == pytest.approx(3 * 2 / 10)
    assert p_value(known, 9.0, 8.9, 0.0)[0] == pytest.approx(9 / 10)
    # nothing but 1 could come out
    assert p_value(known, 9.0, 9.1, 0.0)[0] is None
    assert p_value(known, 9.0, 3600.0, 0.0)[0] is None


def test_blocks_are_chosen_by_lengths_for_the_smallest_p_value() -> None:
    lengths = [1.0] * 3 + [10.0] * 16
    assert (choose_blocks(lengths, 0.5).parts, choose_blocks(lengths, 0.5).clips) == (1, 19)
    # a few short clips do not make many blocks of every long one
    chosen = choose_blocks(lengths, 10.0)
    assert (chosen.seconds, chosen.parts, chosen.clips) == (10.0, 1, 16)
    assert choose_blocks(lengths, 20.0).parts == 2
    assert choose_blocks([10.0, 10.0 - 1e-9], 10.0 + 1e-9).parts == 1
    assert choose_blocks([2.0], 0.0).least == 0.5


def test_blocks_are_smoothed_as_clips_of_their_length_are() -> None:
    times, scores = footage(np.random.default_rng(1), 40)
    expected = [smooth_in_time(times[k : k + 10], scores[k : k + 10], 0.3).max() for k in (0, 10, 20, 30)]
    assert block_highest(times, scores, 1.0, 0.3).tolist() == expected


def test_footage_leaves_gaps_out() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 60.0, 60.1])
    assert footage_seconds(times) == pytest.approx(0.6)
    assert footage_seconds(times[:1]) == 0.0
