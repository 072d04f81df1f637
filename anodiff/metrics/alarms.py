"""Clips as an operator meets them: events found, how late, and false alarms an hour.

An event is a run of anomalous frames of one clip. An alarm is a run of frames whose score reaches the threshold; runs
less than ``merge_s`` apart are one. An alarm with an anomalous frame in it finds the events that it touches, any other
is false. Hours are those of *normal* frames with a score: elsewhere no alarm can be false. A lower threshold may give
fewer false alarms, where alarms grow together into one that touches an event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.metrics.arrays import BoolArray
from anodiff.metrics.bootstrap import bootstrap_intervals
from anodiff.metrics.frames import ClipScores, Floats

RECALLS = (0.5, 0.8, 0.9)
MERGE_S = 1.0


@dataclass(frozen=True)
class FoundEvent:
    """An event of the truth at one threshold.

    Attributes:
        clip: its id. start, end: seconds of its first frame and after its last one.
        peak: the highest score in it, -inf where no frame of it has one.
        delay: seconds from its start to the first of its frames that reaches the threshold; None = not found.
    """

    clip: str
    start: float
    end: float
    peak: float
    delay: float | None


def runs(flags: BoolArray) -> list[slice]:
    """The runs of True in (n,), in order."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    ends = zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True)
    return [slice(begin, end) for begin, end in ends]


def events_at(clips: Sequence[ClipScores], threshold: float) -> list[FoundEvent]:
    """Every event of the truth, and whether and how late scores >= ``threshold`` find it."""
    found = []
    for clip in clips:
        for event in runs(clip.truth):
            scores, times = np.nan_to_num(clip.scores[event], nan=-np.inf), clip.times[event]
            hit = scores >= threshold
            delay = float(times[hit.argmax()] - times[0]) if hit.any() else None
            found.append(FoundEvent(clip.id, float(times[0]), float(times[-1]) + clip.step, float(scores.max()), delay))
    return found


def alarms_at(clip: ClipScores, threshold: float, merge_s: float = MERGE_S) -> list[slice]:
    """The alarms of one clip as frames, in order; frames without a score raise none."""
    hot = runs(np.nan_to_num(clip.scores, nan=-np.inf) >= threshold)
    merged: list[slice] = []
    for run in hot:
        if merged and clip.times[run.start] - clip.times[merged[-1].stop - 1] < merge_s:
            run = slice(merged.pop().start, run.stop)
        merged.append(run)
    return merged


def false_alarms(clip: ClipScores, threshold: float, merge_s: float = MERGE_S) -> int:
    """How many alarms of a clip have no anomalous frame in them."""
    return sum(not clip.truth[alarm].any() for alarm in alarms_at(clip, threshold, merge_s))


def normal_hours(clip: ClipScores) -> float:
    """Hours that the normal frames of a clip stand for; those without a score, which raise no alarm, not counted."""
    return float((~clip.truth & ~np.isnan(clip.scores)).sum()) * clip.step / 3600


class AlarmPool:
    """False alarms an hour at a given recall, for the bootstrap; metrics are recalls as text, "0.9".

    The threshold is the highest at which the share of events found reaches the recall, so it is chosen on the test's
    labels, in every resample anew: these numbers compare detectors, and promise nothing.
    """

    def __init__(self, clips: Sequence[ClipScores], merge_s: float = MERGE_S) -> None:
        self.groups = tuple(sorted({clip.group or clip.id for clip in clips}))
        number = {name: i for i, name in enumerate(self.groups)}
        peaks = [(number[clip.group or clip.id], each.peak) for clip in clips for each in events_at([clip], math.inf)]
        group_of_event, peak = np.array([g for g, _ in peaks], dtype=np.int64), np.array([p for _, p in peaks])
        #: (K,) descending, and per threshold and group the events found and the false alarms, (K, n_groups)
        self.thresholds = np.unique(peak[np.isfinite(peak)])[::-1]
        shape = (len(self.thresholds), len(self.groups))
        self._found, self._false = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for k, threshold in enumerate(self.thresholds):
            self._found[k] = np.bincount(group_of_event[peak >= threshold], minlength=len(self.groups))
            for clip in clips:
                self._false[k, number[clip.group or clip.id]] += false_alarms(clip, float(threshold), merge_s)
        self._hours = np.zeros(len(self.groups))
        for clip in clips:
            self._hours[number[clip.group or clip.id]] += normal_hours(clip)
        self.group_positives = np.bincount(group_of_event, minlength=len(self.groups)).astype(np.int64)
        self.group_negatives = np.array([int(hours > 0) for hours in self._hours], dtype=np.int64)

    @property
    def hours(self) -> float:
        """Hours of normal frames."""
        return float(self._hours.sum())

    def threshold_at(self, recall: float) -> float | None:
        """The highest threshold at which the share of events found reaches ``recall``; None where none does."""
        found = self._found.sum(1)
        enough = np.flatnonzero(found >= _needed(recall, self.group_positives.sum()))
        return float(self.thresholds[enough[0]]) if enough.size and self.group_positives.any() else None

    def value(self, metric: str) -> float | None:
        """False alarms an hour at the recall ``metric``; None where undefined."""
        value = float(self.resampled((metric,), np.ones((1, len(self.groups))))[metric][0])
        return value if math.isfinite(value) else None

    def resampled(self, metrics: tuple[str, ...], weights: NDArray[Any]) -> dict[str, Floats]:
        """The rate, (n_boot,), when group g is drawn weights[b, g] times; NaN without events, hours, or such recall."""
        drawn = np.asarray(weights, dtype=np.float64)
        found, false = drawn @ self._found.T, drawn @ self._false.T
        events, hours = drawn @ self.group_positives, drawn @ self._hours
        out = {}
        for metric in metrics:
            enough = found >= _needed(float(metric), events)[:, None]
            first = enough.argmax(axis=1) if enough.shape[1] else np.zeros(len(drawn), dtype=np.int64)
            defined = enough.any(axis=1) & (events > 0) & (hours > 0)
            rates = np.full(len(drawn), np.nan)
            rows = np.flatnonzero(defined)
            rates[rows] = false[rows, first[rows]] / hours[rows]
            out[metric] = rates
        return out


def evaluate_alarms(
    clips: Sequence[ClipScores],
    recalls: Sequence[float] = RECALLS,
    *,
    merge_s: float = MERGE_S,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """False alarms an hour of normal footage at the thresholds that find these shares of the events.

    Returns:
        With `_ci95` over clips: false_alarms_per_hour_at_recall_<recall>. Without: oracle_threshold_at_recall_<recall>,
        n_events, normal_hours, merge_s; reasons {key: sentence} for what is None.

    Raises:
        ValueError: a recall outside (0, 1].
    """
    if any(not 0 < recall <= 1 for recall in recalls):
        raise ValueError(f"expected recalls in (0, 1], found {list(recalls)}")
    pool = AlarmPool(clips, merge_s)
    names = {f"{recall:g}": f"false_alarms_per_hour_at_recall_{recall:g}" for recall in recalls}
    intervals = bootstrap_intervals(pool, tuple(names), n_boot, seed)
    out: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for recall, name in names.items():
        value, interval = pool.value(recall), intervals[recall]
        out |= {name: value, f"{name}_ci95": None if value is None else interval.as_list()}
        out[f"oracle_threshold_at_recall_{recall}"] = pool.threshold_at(float(recall))
        if value is None:
            reasons[name] = reasons[f"{name}_ci95"] = _why(pool)
        elif interval.reason is not None:
            reasons[f"{name}_ci95"] = interval.reason
    n_events = int(pool.group_positives.sum())
    return out | {"n_events": n_events, "normal_hours": pool.hours, "merge_s": merge_s, "reasons": reasons}


def evaluate_events(
    clips: Sequence[ClipScores], reported: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, Any]:
    """Reported events against the truth: what a threshold that was set beforehand has reached, nothing chosen here.

    Args:
        clips: the test set, of which only truth, times and which frames have a score are looked at.
        reported: (start, end) in seconds, both included, of what was reported in each clip by id; a clip may lack.

    Returns:
        event_recall (share of the truth's events with a frame in a reported one), event_delay_s (mean over those, from
        the event's start to its first such frame), event_false_alarms_per_hour of normal frames with the exact 95 %
        interval of a Poisson rate as `_ci95`; n_events, n_events_found, n_reported, n_false_alarms, normal_hours;
        reasons {key: sentence} for what is None.
    """
    from scipy.stats import chi2

    delays: list[float] = []
    n_events = n_reported = false = 0
    hours = sum(normal_hours(clip) for clip in clips)
    for clip in clips:
        inside = np.zeros(len(clip.times), dtype=bool)
        for start, end in reported.get(clip.id, ()):
            covered = (clip.times >= start) & (clip.times <= end)
            inside |= covered
            n_reported += 1
            false += not clip.truth[covered].any()
        for event in runs(clip.truth):
            n_events += 1
            if inside[event].any():
                delays.append(float(clip.times[event][inside[event].argmax()] - clip.times[event.start]))
    reasons = {} if n_events else {"event_recall": "no event in the truth"}
    reasons |= {} if delays else {"event_delay_s": "no event of the truth was found"}
    name = "event_false_alarms_per_hour"
    rate, interval = None, None
    if hours > 0:
        low = float(chi2.ppf(0.025, 2 * false)) / 2 if false else 0.0
        rate, interval = false / hours, [low / hours, float(chi2.ppf(0.975, 2 * false + 2)) / 2 / hours]
    else:
        reasons |= dict.fromkeys((name, f"{name}_ci95"), "no normal frame")
    return {
        "event_recall": len(delays) / n_events if n_events else None,
        "event_delay_s": float(np.mean(delays)) if delays else None,
        name: rate,
        f"{name}_ci95": interval,
        "n_events": n_events,
        "n_events_found": len(delays),
        "n_reported": n_reported,
        "n_false_alarms": false,
        "normal_hours": hours,
        "reasons": reasons,
    }


def _needed(recall: float, events: Any) -> Any:
    # 0.1 of 10 events is one event, whatever the last bit of the product says.
    return np.ceil(np.asarray(events) * recall - 1e-9)


def _why(pool: AlarmPool) -> str:
    if not pool.group_positives.any():
        return "no event in the truth"
    return "no normal frame" if not pool.hours else "events without any scored frame keep the recall lower"
