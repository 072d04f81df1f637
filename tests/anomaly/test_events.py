"""Events against brute force: every pair of frames, every label of scipy, every count by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import ndimage, stats

from anodiff.anomaly.event_rule import EventRule, EventSettings, HourlyRate, footage
from anodiff.anomaly.events import (
    EventTracker,
    Sample,
    Series,
    alarms_on,
    find_events,
    fit_rule,
    live_smoother,
    map_box,
    seconds_covered,
    smooth_series,
)
from anodiff.anomaly.temporal import CausalSmoother, smooth_in_time, stretches
from anodiff.errors import ConfigError, DataError


def _times(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.cumsum(rng.uniform(0.02, 0.5, count))


def _series(seed: int, seconds: float = 1800.0, fps: float = 4.0) -> Series:
    """Noise with a memory, so that excursions last."""
    rng = np.random.default_rng(seed)
    count = round(seconds * fps)
    values = ndimage.gaussian_filter1d(rng.normal(size=count), 2.0)
    return Series(f"clip {seed}", np.arange(count) / fps, values)


def _rule(**changes: object) -> EventRule:
    settings = EventSettings(smooth_s=0.0, close_gap_s=0.0)
    given: dict[str, object] = {"settings": settings, "rate": 1.0, "low": 1.0, "high": 2.0, "hours": 1.0}
    return EventRule(**{**given, "peaks": np.array([1.2, 1.5, 2.0]), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_smoothing_is_the_weighted_mean_over_all_pairs_of_frames(causal: bool) -> None:
    rng = np.random.default_rng(1)
    times, values, width = _times(rng, 60), rng.normal(size=60), 0.7
    values[[3, 4, 30]] = np.nan
    expected = []
    for i, time in enumerate(times):
        reach = [
            j
            for j in range(60)
            if abs(time - times[j]) <= 4 * width and not math.isnan(values[j]) and (j <= i or not causal)
        ]
        w = [math.exp(-0.5 * ((time - times[j]) / width) ** 2) for j in reach]
        expected.append(math.nan if math.isnan(values[i]) else np.dot(w, values[reach]) / sum(w))
    np.testing.assert_allclose(smooth_in_time(times, values, width, causal=causal), expected, rtol=1e-12)


def test_far_from_the_ends_of_a_steady_clip_it_is_scipys_gaussian() -> None:
    values = np.random.default_rng(2).normal(size=200)
    ours = smooth_in_time(np.arange(200) / 10, values, 0.5)
    np.testing.assert_allclose(ours[20:-20], ndimage.gaussian_filter1d(values, 5.0)[20:-20], rtol=1e-10)
    assert abs(ours[0] - ndimage.gaussian_filter1d(values, 5.0)[0]) > 1e-6


def test_one_frame_at_a_time_is_the_causal_smoothing_of_the_series() -> None:
    rng = np.random.default_rng(3)
    times, values = _times(rng, 80), rng.normal(size=80)
    values[10] = np.nan
    smoother = CausalSmoother(0.6)
    pushed = [smoother.push(time, value) for time, value in zip(times, values, strict=True)]
    np.testing.assert_allclose(pushed, smooth_in_time(times, values, 0.6, causal=True), rtol=1e-12)
    smoother.reset()
    assert smoother.push(times[-1] + 0.1, 7.0) == 7.0


def test_nothing_leaks_across_a_gap_or_from_another_clip() -> None:
    rng = np.random.default_rng(4)
    times, values = np.arange(40) / 10, rng.normal(size=40)
    gapped = np.where(np.arange(40) < 20, times, times + 5.0)
    settings = EventSettings(smooth_s=1.0, max_gap_s=2.0)
    whole = smooth_series(gapped, values, settings)
    np.testing.assert_array_equal(whole[:20], smooth_in_time(times[:20], values[:20], 1.0))
    np.testing.assert_array_equal(whole[20:], smooth_in_time(gapped[20:], values[20:], 1.0))
    assert [(piece.start, piece.stop) for piece in stretches(gapped, 2.0)] == [(0, 20), (20, 40)]
    assert stretches([], 1.0) == []
    with pytest.raises(ValueError, match="do not fall"):
        stretches([0.0, 2.0, 1.0], 1.0)


def _brute_events(times: np.ndarray, smoothed: np.ndarray, rule: EventRule) -> list[tuple[float, float, float]]:
    """(start, end, peak) by labelling: above low, close pauses, then keep those that are high and long enough."""
    s = rule.settings
    runs = [[times[k][0], times[k][-1], smoothed[k].max()] for k in _labelled(smoothed > rule.low)]
    merged: list[list[float]] = []
    for run in runs:
        if merged and run[0] - merged[-1][1] <= s.close_gap_s:
            merged[-1] = [merged[-1][0], run[1], max(merged[-1][2], run[2])]
        else:
            merged.append(run)
    return [(a, b, peak) for a, b, peak in merged if peak > rule.enter and b - a >= s.min_duration_s]


def _labelled(above: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(above)
    return [np.flatnonzero(labels == k + 1) for k in range(count)]


@pytest.mark.parametrize(("close", "shortest"), [(0.0, 0.0), (0.8, 0.0), (0.0, 0.6), (0.8, 1.0), (3.0, 0.25)])
@pytest.mark.parametrize("seed", range(6))
def test_events_are_those_of_labelling_the_whole_series(seed: int, close: float, shortest: float) -> None:
    rng = np.random.default_rng(seed)
    times = _times(rng, 400)
    scores = ndimage.gaussian_filter1d(rng.normal(size=400), 2.0) * 4
    settings = EventSettings(smooth_s=0.3, min_duration_s=shortest, close_gap_s=close)
    rule = _rule(settings=settings, low=0.4, high=1.5)
    found = find_events(rule, times, scores, clip="c", frames=range(100, 500))
    expected = _brute_events(times, found.smoothed, rule)
    assert len(expected) > 2
    assert [(e.start, e.end, e.peak_score) for e in found.events] == expected
    assert [e.number for e in found.events] == list(range(1, len(expected) + 1))
    inside = np.array([any(a <= t <= b for a, b, _ in expected) for t in times])
    np.testing.assert_array_equal(found.anomalous, inside)
    for event in found.events:
        rows = np.flatnonzero((times >= event.start) & (times <= event.end))
        assert (event.start_frame, event.end_frame) == (100 + rows[0], 100 + rows[-1])
        assert event.peak_time == times[event.peak_frame - 100]
        above = rows[found.smoothed[rows] > rule.low]
        assert event.mean_score == pytest.approx(scores[above].mean())


def test_an_event_ends_where_frames_are_missing() -> None:
    times = np.array([0.0, 0.5, 1.0, 9.0, 9.5, 10.0])
    found = find_events(_rule(), times, np.full(6, 3.0))
    assert [(event.start, event.end) for event in found.events] == [(0.0, 1.0), (9.0, 10.0)]


def test_frames_without_a_score_change_nothing() -> None:
    scores = np.array([0.0, 3.0, math.nan, 3.0, 0.0])
    found = find_events(_rule(), np.arange(5) / 4, scores)
    assert [(event.start, event.end) for event in found.events] == [(0.25, 0.75)]
    assert found.events[0].mean_score == 3.0
    assert find_events(_rule(), [], []).events == []


def test_a_live_event_begins_when_it_is_high_is_told_of_and_ends() -> None:
    tracker = EventTracker(_rule(), "cam", update_s=1.0, number=6)
    scores = [0, 1.5, 1.5, 2.5, 2.2, 2.1, 2.6, 1.4, 1.2, 0, 0]
    told = [
        (i, kind, event)
        for i, score in enumerate(scores)
        for kind, event in tracker.push(Sample(i, i * 0.4, score, score))
    ]
    assert [(i, kind) for i, kind, _ in told] == [(3, "begin"), (6, "update"), (9, "end")]
    assert [event.number for *_, event in told] == [7, 7, 7]
    begin, update, end = (event for *_, event in told)
    assert (begin.start, begin.peak_score, update.peak_score) == (0.4, 2.5, 2.6)
    assert (end.start, end.end, end.peak_frame) == (0.4, 3.2, 6)
    assert tracker.current is None
    assert tracker.finish() == []


def test_the_box_is_that_of_the_peak_or_of_the_highest_frame_that_has_one() -> None:
    boxes = [None, (0, 0, 1, 1), (1, 1, 2, 2), (3, 3, 4, 4), None]
    (event,) = find_events(_rule(), range(5), [1.5, 2.5, 2.2, 1.1, 1.1], boxes=boxes).events
    assert event.box == (0, 0, 1, 1)
    (event,) = find_events(_rule(), range(5), [3.0, 1.2, 2.2, 1.1, 1.1], boxes=boxes).events
    assert event.box == (1, 1, 2, 2)


@pytest.mark.parametrize("rate", [2.0, 5.0, 11.0, 40.0])
def test_normals_keep_the_stated_rate_and_the_threshold_is_the_lowest_peak_that_does(rate: float) -> None:
    normals = [_series(seed) for seed in range(4)]
    rule = fit_rule(normals, EventSettings(), rate)
    assert rule.high is not None
    assert rule.hours == pytest.approx(2.0)
    peaks = rule.peaks
    # brute force over all peaks: those an hour is expected to exceed at most `rate` times, this one counted in
    kept = [p for p in [rule.low, *peaks] if (1 + np.count_nonzero(peaks > p)) / rule.hours <= rate]
    assert rule.high == min(kept)
    assert rule.on_normals.count == alarms_on(normals, rule).count == np.count_nonzero(peaks > rule.high)
    for value in np.linspace(peaks[0], peaks[-1] * 1.1, 50):
        assert (value > rule.high) == (rule.false_alarms_per_hour(value) <= rate)
        assert rule.p_value(value) == (1 + sum(p >= value for p in peaks)) / (len(peaks) + 1)


def test_on_new_normals_false_alarms_come_about_as_often_as_stated() -> None:
    rate, found, hours = 6.0, 0, 0.0
    for seed in range(8):
        rule = fit_rule([_series(100 + 10 * seed + k, 3600) for k in range(2)], EventSettings(), rate)
        new = alarms_on([_series(200 + seed, 3600)], rule)
        found, hours = found + new.count, hours + new.hours
    assert hours == pytest.approx(8.0)
    # 8 hours at 6 an hour, thresholds from 2 hours each: sd of the mean rate is about sqrt(6 / 8 + 6 / 2 / 8)
    assert abs(found / hours - rate) < 4 * math.sqrt(6 / 8 + 6 / 16)


def test_low_is_exceeded_by_the_stated_share_of_normal_frames() -> None:
    normals = [_series(seed) for seed in range(2)]
    rule = fit_rule(normals, EventSettings(low_share=0.1), 5.0)
    smoothed = np.concatenate([smooth_series(clip.times, clip.scores, rule.settings) for clip in normals])
    assert (smoothed > rule.low).mean() == pytest.approx(0.1, abs=1e-3)


def test_too_few_hours_give_p_values_and_a_sentence_and_no_threshold() -> None:
    clip = _series(1, seconds=360)
    rule = fit_rule([clip], EventSettings(), 2.0)
    assert rule.high is None
    assert rule.message is not None
    assert "at least 30 min of normal footage" in rule.message
    assert "found 6 min" in rule.message
    assert rule.at_rate(10.0 * (1 + 1e-6)).high is not None
    found = find_events(rule, clip.times, clip.scores)
    assert found.anomalous is None
    assert len(found.events) == rule.peaks.size > 0
    assert {event.alarm for event in found.events} == {None}
    assert min(event.p_value for event in found.events) == 2 / (rule.peaks.size + 1)


@pytest.mark.parametrize("hours", [0.1, 31.8 / 3600, 1 / 7, 12.3, 0.25])
def test_the_lowest_rate_that_is_named_can_be_asked_for_and_hardly_a_lower_one(hours: float) -> None:
    rule = _rule(hours=hours, high=None)
    assert rule.at_rate(float(f"{rule.lowest_rate:g}")).high is not None
    assert 1 / hours <= rule.lowest_rate * (1 + 1e-9) < 1.01 * (1 + 1e-9) / hours
    message = rule.at_rate(0.98 / hours).message
    assert message is not None
    assert f"--set video.false_alarms_per_hour={rule.lowest_rate:g}" in message


def test_a_count_in_less_than_a_minute_is_told_without_a_rate() -> None:
    assert HourlyRate.of(2, 31.8 / 3600).sentence() == "2 in 31.8 s"
    assert HourlyRate.of(2, 0.5).sentence().startswith("2 in 30 min, 4 an hour (95 % interval 0.484 to ")
    assert [footage(hours) for hours in (2.5, 1 / 60, 0.000361)] == ["2.5 h", "1 min", "1.3 s"]


def test_a_rate_that_all_excursions_may_have_lists_all_of_them() -> None:
    clip = _series(1, seconds=360)
    rule = fit_rule([clip], EventSettings(), 1e6)
    assert rule.high == rule.low


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_interval_of_a_rate_is_garwoods(count: int) -> None:
    rate = HourlyRate.of(count, 4.0)
    assert rate.per_hour == count / 4
    # exact: at the upper end so few events have a chance of 2.5 %, at the lower end so many
    assert stats.poisson.cdf(count, rate.high * 4) == pytest.approx(0.025)
    assert rate.low == 0 if count == 0 else stats.poisson.sf(count - 1, rate.low * 4) == pytest.approx(0.025)


def test_a_rule_survives_json_to_the_bit() -> None:
    rule = fit_rule([_series(0)], EventSettings(causal=True), 7.0)
    back = EventRule.from_json(json.loads(json.dumps(rule.to_json())))
    assert (back.settings, back.low, back.high, back.hours) == (rule.settings, rule.low, rule.high, rule.hours)
    np.testing.assert_array_equal(back.peaks, rule.peaks)


def test_hours_are_those_with_frames() -> None:
    times = np.concatenate([np.arange(100) / 10, 50 + np.arange(50) / 10])
    assert seconds_covered(times, 2.0) == pytest.approx(15.0)
    assert seconds_covered([3.0], 2.0) == 0.0


def test_the_box_holds_what_hangs_together_with_the_highest_pixel() -> None:
    values = np.zeros((8, 12))
    values[1:3, 2:6] = 2.0
    values[3, 6] = 3.0  # touches by a corner
    values[6:, 9:] = 2.5
    values[0, 0] = np.nan
    assert map_box(values, 1.0) == (2, 1, 5, 3)
    assert map_box(values, 2.2) == (6, 3, 1, 1)
    assert map_box(values, 3.0) is None
    assert map_box(values, 1.0, (16, 24)) == (4, 2, 10, 6)
    # native pixels that a map's pixel covers only in part are in
    assert map_box(values, 2.6, (4, 6)) == (3, 1, 1, 1)


def test_settings_and_normals_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ConfigError, match=r"smooth_s.*-1"):
        EventSettings(smooth_s=-1)
    with pytest.raises(ConfigError, match="low_share"):
        EventSettings(low_share=1.0)
    with pytest.raises(ConfigError, match="max_gap_s"):
        EventSettings(max_gap_s=0.0)
    with pytest.raises(DataError, match="found 0 scored frames in 1 clips"):
        fit_rule([Series("a", np.arange(3.0), np.full(3, np.nan))], EventSettings(), 1.0)
    with pytest.raises(DataError, match="infinite"):
        fit_rule([Series("a", np.arange(3.0), np.array([1.0, np.inf, 1.0]))], EventSettings(smooth_s=0.0), 1.0)
    with pytest.raises(ConfigError, match="above 0, found 0"):
        fit_rule([_series(0)], EventSettings(), 0.0)
    with pytest.raises(ConfigError, match="causal"):
        live_smoother(_rule(settings=EventSettings()))
