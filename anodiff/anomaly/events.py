"""Scores over time to events; the levels and what they promise are in `anomaly.event_rule`.

Live and recorded footage go through the same tracker; they differ in the smoothing, hence each has a rule of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.anomaly.event_rule import EventRule, EventSettings, HourlyRate
from anodiff.anomaly.temporal import CausalSmoother, Floats, smooth_in_time, stretches
from anodiff.errors import ConfigError, DataError

#: x, y, width, height in native pixels
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Series:
    """Frame scores of one clip: times (n,) seconds, scores (n,), nan where a frame has none."""

    clip: str
    times: Floats
    scores: Floats


@dataclass(frozen=True)
class Sample:
    """One frame for the tracker; box as `map_box` gives it."""

    frame: int
    time: float
    score: float
    smoothed: float
    box: Box | None = None


@dataclass(frozen=True)
class Event:
    """Something else happened.

    Attributes:
        clip, number: where, and which one there, from 1.
        start, end: times of its first and last frame, seconds.
        start_frame, end_frame, peak_frame: indices of frames.
        peak_time, peak_score: where the smoothed score is highest, and that score.
        mean_score: mean of the unsmoothed scores of its frames.
        p_value: share of normal excursions, this one counted in, with a peak as high.
        false_alarms_per_hour: how many normal excursions with a peak as high an hour is expected to have.
        alarm: True; None where the rule has no threshold and this is only an excursion with its p-value.
        box: of the peak frame, or where that has none, of the event's highest frame that has one.
        thumbnail: file name, empty without one.
    """

    clip: str
    number: int
    start: float
    end: float
    start_frame: int
    end_frame: int
    peak_frame: int
    peak_time: float
    peak_score: float
    mean_score: float
    p_value: float
    false_alarms_per_hour: float
    alarm: bool | None = True
    box: Box | None = None
    thumbnail: str = ""

    @property
    def duration(self) -> float:
        """Seconds from its first to its last frame."""
        return self.end - self.start


Change = tuple[Literal["begin", "update", "end"], Event]


class EventTracker:
    """Frames of one clip in order -> events as they begin, go on and end.

    Args:
        rule: the thresholds.
        clip: name in the events.
        update_s: while an event goes on, at most one update in so many seconds of the clip.
        number: of the last event before these.
    """

    def __init__(self, rule: EventRule, clip: str = "", *, update_s: float = math.inf, number: int = 0) -> None:
        self.rule, self.clip, self.update_s, self.number = rule, clip, update_s, number
        self._run: _Excursion | None = None

    @property
    def current(self) -> Event | None:
        """The event that goes on, if one does."""
        run = self._run
        return None if run is None or not run.begun else self._event(run)

    @property
    def peak_frame(self) -> int | None:
        """Index of the highest frame of what goes on above ``low``, event or not yet."""
        return None if self._run is None else self._run.peak.frame

    def push(self, sample: Sample) -> list[Change]:
        """What changes with this frame; a frame without a smoothed score changes nothing."""
        if math.isnan(sample.smoothed):
            return []
        changes: list[Change] = []
        run, settings = self._run, self.rule.settings
        above = sample.smoothed > self.rule.low
        if run is not None:
            pause = sample.time - run.end > settings.close_gap_s and (run.paused or not above)
            if pause or sample.time - run.seen > settings.max_gap_s:
                changes += self.finish()
                run = None
            else:
                run.paused, run.seen = not above, sample.time
        if not above:
            return changes
        if run is None:
            run = self._run = _Excursion(sample)
        else:
            run.add(sample)
        listed = run.peak.smoothed > self.rule.enter and run.end - run.start.time >= settings.min_duration_s
        if listed and not run.begun:
            self.number += 1
            run.begun, run.told = True, sample.time
            changes.append(("begin", self._event(run)))
        elif listed and sample.time - run.told >= self.update_s:
            run.told = sample.time
            changes.append(("update", self._event(run)))
        return changes

    def finish(self) -> list[Change]:
        """Ends what goes on: the clip is over, or a part of it is missing."""
        run, self._run = self._run, None
        return [("end", self._event(run))] if run is not None and run.begun else []

    def _event(self, run: _Excursion) -> Event:
        peak = run.peak.smoothed
        return Event(
            clip=self.clip,
            number=self.number,
            start=run.start.time,
            end=run.end,
            start_frame=run.start.frame,
            end_frame=run.end_frame,
            peak_frame=run.peak.frame,
            peak_time=run.peak.time,
            peak_score=peak,
            mean_score=run.total / run.count,
            p_value=self.rule.p_value(peak),
            false_alarms_per_hour=self.rule.false_alarms_per_hour(peak),
            alarm=None if self.rule.high is None else True,
            box=run.peak.box if run.peak.box is not None or run.boxed is None else run.boxed.box,
        )


class _Excursion:
    """A stretch above ``low`` so far."""

    def __init__(self, sample: Sample) -> None:
        self.start = self.peak = sample
        self.boxed: Sample | None = None
        self.end = self.seen = self.told = sample.time
        self.end_frame = sample.frame
        self.total, self.count = 0.0, 0
        self.begun = self.paused = False
        self.add(sample)

    def add(self, sample: Sample) -> None:
        """One more frame above."""
        self.end, self.end_frame = sample.time, sample.frame
        self.total, self.count = self.total + sample.score, self.count + 1
        if sample.smoothed > self.peak.smoothed:
            self.peak = sample
        if sample.box is not None and (self.boxed is None or sample.score > self.boxed.score):
            self.boxed = sample


@dataclass(frozen=True)
class ClipEvents:
    """One clip: smoothed (n,), anomalous (n,) bool (inside an event; None without a threshold), its events."""

    smoothed: Floats
    anomalous: NDArray[np.bool_] | None
    events: list[Event]


def smooth_series(times: ArrayLike, scores: ArrayLike, settings: EventSettings) -> Floats:
    """Scores (n,) of one clip smoothed inside each of its stretches -> (n,)."""
    at, values = np.asarray(times, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    pieces = [
        smooth_in_time(at[piece], values[piece], settings.smooth_s, causal=settings.causal)
        for piece in stretches(at, settings.max_gap_s)
    ]
    return np.concatenate(pieces) if pieces else values.copy()


def find_events(
    rule: EventRule,
    times: ArrayLike,
    scores: ArrayLike,
    *,
    clip: str = "",
    frames: Sequence[int] | None = None,
    boxes: Sequence[Box | None] | None = None,
) -> ClipEvents:
    """The events of one recorded clip.

    Args:
        rule: from `fit_rule`.
        times, scores: (n,), see `Series`.
        clip: its name.
        frames: indices of the frames, by default 0, 1, ...
        boxes: one a frame, see `map_box`.

    Raises:
        ValueError: times that fall, or lengths that differ.
    """
    at = np.asarray(times, dtype=np.float64)
    smoothed = smooth_series(at, scores, rule.settings)
    samples = _samples(at, scores, smoothed, frames, boxes)
    tracker = EventTracker(rule, clip)
    changes = [change for sample in samples for change in tracker.push(sample)] + tracker.finish()
    events = [event for kind, event in changes if kind == "end"]
    if rule.high is None:
        return ClipEvents(smoothed, None, events)
    inside = np.zeros(at.size, dtype=bool)
    for event in events:
        inside |= (at >= event.start) & (at <= event.end)
    return ClipEvents(smoothed, inside, events)


def fit_rule(normals: Sequence[Series], settings: EventSettings, rate: float) -> EventRule:
    """Both levels from clips of normal footage, at a stated number of false alarms an hour.

    Raises:
        DataError: no scored frame, no time, or scores that are infinite.
        ConfigError: a rate that is not above 0.
    """
    smoothed = [smooth_series(clip.times, clip.scores, settings) for clip in normals]
    pooled = np.concatenate([*smoothed, np.empty(0)])
    pooled = pooled[~np.isnan(pooled)]
    hours = sum(seconds_covered(clip.times, settings.max_gap_s) for clip in normals) / 3600
    if pooled.size == 0 or hours <= 0:
        raise DataError(
            f"event threshold: expected clips of normal footage with scores, found {pooled.size} scored frames in "
            f"{len(normals)} clips"
        )
    if not np.isfinite(pooled).all():
        raise DataError("event threshold: expected finite scores of normal frames, found infinite ones")
    low = float(np.quantile(pooled, 1 - settings.low_share, method="higher"))
    bare = EventRule(settings, rate, low, None, hours, np.empty(0))
    peaks: list[float] = []
    for clip, values in zip(normals, smoothed, strict=True):
        tracker = EventTracker(bare)
        changes = [change for sample in _samples(clip.times, clip.scores, values) for change in tracker.push(sample)]
        peaks += [event.peak_score for kind, event in changes + tracker.finish() if kind == "end"]
    return dataclasses.replace(bare, peaks=np.sort(np.asarray(peaks, dtype=np.float64))).at_rate(rate)


def alarms_on(normals: Sequence[Series], rule: EventRule) -> HourlyRate:
    """Events an hour that the rule finds in other normal footage. Raises ValueError where that has no length."""
    count = sum(len(find_events(rule, clip.times, clip.scores).events) for clip in normals)
    return HourlyRate.of(count, sum(seconds_covered(clip.times, rule.settings.max_gap_s) for clip in normals) / 3600)


def seconds_covered(times: ArrayLike, max_gap_s: float) -> float:
    """Seconds of footage: each stretch from its first frame to its last and one usual frame more."""
    at = np.asarray(times, dtype=np.float64)
    parts = [at[piece] for piece in stretches(at, max_gap_s)]
    return float(sum(part[-1] - part[0] + float(np.median(np.diff(part))) for part in parts if part.size > 1))


def live_smoother(rule: EventRule) -> CausalSmoother:
    """The smoothing of a rule, one frame at a time. Raises ConfigError for a rule that looks ahead."""
    if not rule.settings.causal and rule.settings.smooth_s > 0:
        raise ConfigError(
            "live use needs an event rule that smooths with the past alone (causal), found one that does not"
        )
    return CausalSmoother(rule.settings.smooth_s)


def map_box(anomaly_map: ArrayLike, threshold: float, size: tuple[int, int] | None = None) -> Box | None:
    """Around the pixels above ``threshold`` that hang together (8 neighbours) with the map's highest; None without.

    Args:
        anomaly_map: (h, w); nan counts as normal.
        threshold: of pixels.
        size: native (H, W), where the map is on another grid: the box then covers its pixels there.
    """
    from scipy.ndimage import label

    values = np.nan_to_num(np.asarray(anomaly_map, dtype=np.float64), nan=-np.inf)
    hot = values > threshold
    if not hot.any():
        return None
    parts, _ = label(hot, structure=np.ones((3, 3)))
    rows, columns = np.nonzero(parts == parts.flat[int(values.argmax())])
    (height, width), (tall, wide) = values.shape, size or values.shape
    top, left = rows.min() * tall // height, columns.min() * wide // width
    bottom, right = -(-(rows.max() + 1) * tall // height), -(-(columns.max() + 1) * wide // width)
    return int(left), int(top), int(right - left), int(bottom - top)


def _samples(
    times: ArrayLike,
    scores: ArrayLike,
    smoothed: Floats,
    frames: Sequence[int] | None = None,
    boxes: Sequence[Box | None] | None = None,
) -> Iterator[Sample]:
    at, raw = np.asarray(times, dtype=np.float64).tolist(), np.asarray(scores, dtype=np.float64).tolist()
    indices = range(len(at)) if frames is None else frames
    around = [None] * len(at) if boxes is None else boxes
    for row in zip(indices, at, raw, smoothed.tolist(), around, strict=True):
        yield Sample(*row)
