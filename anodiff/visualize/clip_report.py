"""The report of a run over clips: a timeline a clip that one can click, in one HTML file that opens offline.

Safety is that of `visualize.report`: all text is escaped, and a content security policy names the file's only script
and style by their hashes. All timelines share one scale of scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.errors import AnodiffError
from anodiff.files import atomic_write
from anodiff.visualize import pictures
from anodiff.visualize.charts import score_histogram
from anodiff.visualize.clips import ScoreAxis, clock, column_maxima
from anodiff.visualize.heatmap import HeatScale, Pixels, format_value
from anodiff.visualize.report import _flat, _hash, _number, printable

if TYPE_CHECKING:
    from anodiff.anomaly.events import Event

#: a timeline in the units of its view box; at most so many points of its curve
WIDTH, HEIGHT, COLUMNS = 1000, 60, 500
#: frame scores in the histogram, at most; more are thinned evenly
HISTOGRAM_FRAMES = 200_000


@dataclass(frozen=True)
class ClipEntry:
    """One clip of the run.

    Attributes:
        id, path: as in scores.csv.
        times, smoothed: (n,) seconds and smoothed scores, nan where a frame has none.
        events: of the clip.
        thumbnails: by event number, uint8 (H, W) or (H, W, 3), or a function that reads it when it is needed.
        labels: (n,) bool, frames that are truly anomalous; None unknown.
        status: "ok", "failed" or "skipped".
        error: the sentence of a failed clip, or where a clip broke off.
    """

    id: str
    path: str
    times: ArrayLike = ()
    smoothed: ArrayLike = ()
    events: Sequence[Event] = ()
    thumbnails: Mapping[int, Pixels | Callable[[], Pixels]] = field(default_factory=dict, repr=False)
    labels: ArrayLike | None = None
    status: str = "ok"
    error: str = ""


@dataclass(frozen=True)
class ClipReport:
    """Everything on the page.

    Attributes:
        title: of the page.
        settings: nested or flat, shown as dotted names.
        summary: facts of the run, listed.
        clips: in the order of the page.
        axis: of the scores, one for all timelines; its threshold is drawn where there is one.
        false_alarms: sentences on what the threshold promises and what it did on normals.
        metrics: numbers by name, `<name>_ci95` their intervals, "reasons" why one is None; or None.
        scale: of the heatmaps in the thumbnails.
        notes: sentences shown under the figures.
    """

    title: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    clips: Sequence[ClipEntry]
    axis: ScoreAxis
    false_alarms: Sequence[str] = ()
    metrics: Mapping[str, Any] | None = None
    scale: HeatScale | None = None
    notes: Sequence[str] = ()


def write_clip_report(path: str | os.PathLike[str], report: ClipReport, *, max_thumbnails: int = 400) -> None:
    """Writes the page, under a temporary name first; thumbnails are embedded for so many of the highest events.

    Raises:
        StorageError: it cannot be written.
    """
    atomic_write(path, render_clip_report(report, max_thumbnails=max_thumbnails))


def render_clip_report(report: ClipReport, *, max_thumbnails: int = 400) -> str:
    """The HTML text of `write_clip_report`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def asset(name: str) -> str:
        return files("anodiff.visualize").joinpath("templates", name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    script = asset("common.js") + asset("clips.js")
    style = asset("report.css") + asset("clips.css")
    clips = [_clip_view(number, clip, report.axis) for number, clip in enumerate(report.clips)]
    events = _event_views(report, max_thumbnails)
    return environment.get_template("clips.html.j2").render(
        report=report,
        script=Markup(script),
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        clips=clips,
        events=events,
        counts={
            "all": len(clips),
            "scored": sum(clip.status == "ok" for clip in report.clips),
            "failed": sum(clip.status == "failed" for clip in report.clips),
            "eventful": sum(bool(clip.events) for clip in report.clips),
        },
        seconds=sum(view["seconds"] for view in clips),
        left_out=_left_out(events, max_thumbnails),
        width=WIDTH,
        height=HEIGHT,
        threshold=None if report.axis.threshold is None else _y(report.axis, [report.axis.threshold])[0],
        metrics=_metric_views(report.metrics),
        histogram=_histogram(report),
        run=[(key.replace("_", " "), _number(value)) for key, value in report.summary.items()],
        settings=[(key, _number(value)) for key, value in _flat(report.settings)],
        scale_image=None if report.scale is None else pictures.scale_uri(),
        fmt=format_value,
        clock=clock,
    )


def timeline_points(axis: ScoreAxis, times: ArrayLike, smoothed: ArrayLike) -> str:
    """SVG polyline points of a curve: the highest score of each column, so that no peak is lost by thinning."""
    at, values = np.asarray(times, dtype=np.float64), np.asarray(smoothed, dtype=np.float64)
    if not at.size:
        return ""
    x = _x(at, at)
    columns, highest = column_maxima(np.floor(x * (COLUMNS - 1) / WIDTH).astype(np.int64), values)
    pairs = zip(columns * (WIDTH / (COLUMNS - 1)), _y(axis, highest), strict=True)
    return " ".join(f"{a:.4g},{b:.3g}" for a, b in pairs)


def _x(times: ArrayLike, all_times: NDArray[np.float64]) -> NDArray[np.float64]:
    start, length = all_times[0], (all_times[-1] - all_times[0]) or 1.0
    return np.clip((np.asarray(times, dtype=np.float64) - start) / length, 0.0, 1.0) * WIDTH


def _y(axis: ScoreAxis, values: ArrayLike) -> NDArray[np.float64]:
    return 2 + (1 - axis.position(values)) * (HEIGHT - 4)


def _clip_view(number: int, clip: ClipEntry, axis: ScoreAxis) -> dict[str, Any]:
    at = np.asarray(clip.times, dtype=np.float64)
    return {
        "clip": clip,
        "points": timeline_points(axis, at, clip.smoothed),
        "bands": [_band(number, event, at) for event in clip.events] if at.size else [],
        "truth": [] if clip.labels is None or not at.size else _truth(np.asarray(clip.labels, dtype=bool), at),
        "seconds": float(at[-1] - at[0]) if at.size else 0.0,
        "start": clock(at[0]) if at.size else "",
        "end": clock(at[-1]) if at.size else "",
    }


def _band(number: int, event: Event, times: NDArray[np.float64]) -> dict[str, Any]:
    left, right, peak = (float(value) for value in _x([event.start, event.end, event.peak_time], times))
    # a short event in a long clip is still wide enough to be seen and hit
    left = min(left, WIDTH - 6.0)
    return {"key": f"{number}-{event.number}", "event": event, "x": left, "width": max(right - left, 6.0), "peak": peak}


def _truth(labels: NDArray[np.bool_], times: NDArray[np.float64]) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.pad(labels.astype(np.int8), 1)))
    spans = [(times[a], times[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [(float(a), max(float(b - a), 1.0)) for a, b in (_x(span, times) for span in spans)]


def _event_views(report: ClipReport, most: int) -> list[dict[str, Any]]:
    """Rows of the table, the highest peak first."""
    found = [(number, clip, event) for number, clip in enumerate(report.clips) for event in clip.events]
    found.sort(key=lambda each: each[2].peak_score, reverse=True)
    views, shown = [], 0
    for number, clip, event in found:
        picture = _picture(clip.thumbnails.get(event.number)) if shown < most else None
        shown += picture is not None
        pictured = event.number in clip.thumbnails
        views.append(
            {"key": f"{number}-{event.number}", "clip": clip, "event": event, "uri": picture, "pictured": pictured}
        )
    return views


def _picture(thumbnail: Pixels | Callable[[], Pixels] | None) -> str | None:
    """A data URI; None where there is no picture, or it can no longer be read."""
    if thumbnail is None:
        return None
    try:
        return pictures.image_uri(thumbnail() if callable(thumbnail) else thumbnail, 320)
    except (AnodiffError, OSError):
        return None


def _left_out(events: Sequence[Mapping[str, Any]], most: int) -> str | None:
    if sum(view["pictured"] for view in events) <= most:
        return None
    return (
        f"Pictures are embedded for the {most:,} events with the highest peaks only, to keep this file small; all "
        f"{len(events):,} events are listed."
    )


def _metric_views(metrics: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Those that are numbers, or None with a reason."""
    views = []
    for key, value in (metrics or {}).items():
        real = isinstance(value, float | np.floating) and not isinstance(value, bool)
        reason = (metrics or {}).get("reasons", {}).get(key)
        if key.endswith("_ci95") or not (real or (value is None and reason)):
            continue
        interval = (metrics or {}).get(f"{key}_ci95")
        shares = interval is not None and all(0 <= end <= 1 for end in interval)
        value = None if value is None or not math.isfinite(value) else float(value)
        views.append({"name": key.replace("_", " "), "value": value, "ci": interval, "bar": shares, "why": reason})
    return views


def _histogram(report: ClipReport) -> Any:
    """Of the frames' smoothed scores."""
    scored = [clip for clip in report.clips if np.size(clip.smoothed)]
    scores = np.concatenate([*(np.asarray(clip.smoothed, dtype=np.float64) for clip in scored), np.empty(0)])
    labels = np.concatenate(
        [
            *(
                np.full(np.size(c.smoothed), -1) if c.labels is None else np.asarray(c.labels, dtype=int)
                for c in scored
            ),
            [],
        ]
    )
    step = max(1, -(-scores.size // HISTOGRAM_FRAMES))
    known = [None if label < 0 else int(label) for label in labels[::step].tolist()]
    return score_histogram(scores[::step].tolist(), known, report.axis.threshold, 1260, 170)
