"""events.csv and frames.csv: what was found in clips, for any other software."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anodiff.anomaly.events import ClipEvents, Event
from anodiff.files import write_csv

EVENT_COLUMNS = (
    "clip", "event", "start", "end", "peak_time", "peak_score", "p_value", "x", "y", "w", "h", "thumbnail",
)  # fmt: skip
FRAME_COLUMNS = ("clip", "frame", "time", "score", "smoothed", "anomalous")


def event_row(event: Event) -> dict[str, Any]:
    """One row of events.csv; the box is empty where there is none."""
    box = dict(zip("xywh", event.box or (None,) * 4, strict=True))
    return {
        "clip": event.clip,
        "event": event.number,
        "start": event.start,
        "end": event.end,
        "peak_time": event.peak_time,
        "peak_score": event.peak_score,
        "p_value": event.p_value,
        **box,
        "thumbnail": event.thumbnail,
    }


def frame_row(
    clip: str, frame: int, time: float, score: float, smoothed: float, anomalous: bool | None
) -> dict[str, Any]:
    """One row of frames.csv; scores are empty where a frame has none, anomalous where there is no threshold."""
    values = (clip, frame, time, score, smoothed, anomalous)
    return dict(zip(FRAME_COLUMNS, values, strict=True))


def frame_rows(
    clip: str, times: ArrayLike, scores: ArrayLike, found: ClipEvents, frames: Sequence[int] | None = None
) -> Iterable[dict[str, Any]]:
    """The rows of one clip, times and scores (n,)."""
    at, values = np.asarray(times, dtype=np.float64).tolist(), np.asarray(scores, dtype=np.float64).tolist()
    inside = [None] * len(at) if found.anomalous is None else found.anomalous.tolist()
    numbers = range(len(at)) if frames is None else frames
    for cells in zip(numbers, at, values, found.smoothed.tolist(), inside, strict=True):
        yield frame_row(clip, *cells)


def write_events_csv(path: str | os.PathLike[str], events: Iterable[Event]) -> Path:
    """Writes events.csv atomically. Raises StorageError."""
    return write_csv(path, EVENT_COLUMNS, map(event_row, events))


def write_frames_csv(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> Path:
    """Writes frames.csv atomically, of `frame_rows` of one or several clips. Raises StorageError."""
    return write_csv(path, FRAME_COLUMNS, rows)
