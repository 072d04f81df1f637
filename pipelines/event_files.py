"""events.csv and frames.csv: what was found in clips, for any other software."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from anodiff.anomaly.events import Event
from anodiff.files import atomic_write, csv_text, write_csv

EVENT_COLUMNS = (
    "clip", "event", "start", "end", "peak_time", "peak_score", "p_value", "x", "y", "w", "h", "thumbnail",
)  # fmt: skip
FRAME_COLUMNS = ("clip", "frame", "time", "score", "smoothed", "anomalous")
#: rows of frames.csv that are text in memory at once
ROWS_AT_ONCE = 10_000

#: (start, end) of an event in seconds, both included
Span = tuple[float, float]


def event_row(event: Event) -> dict[str, Any]:
    """One row of events.csv; the box is empty where there is none."""
    box = dict(zip("xywh", event.box or (None,) * 4, strict=True))
    return {
        "clip": event.clip,
        "event": event.number,
        "start": event.start,
        "end": event.end,
        "peak_time": event.peak_time,
        "peak_score": np.float32(event.peak_score),
        "p_value": event.p_value,
        **box,
        "thumbnail": event.thumbnail,
    }


def frame_rows(
    clip: str, frames: Iterable[tuple[int, float, float, float]], spans: Sequence[Span] | None
) -> Iterator[dict[str, Any]]:
    """The rows of one clip, of its (index, time, score, smoothed score) in order.

    A frame is anomalous inside one of ``spans``, the clip's events in order; None where no threshold makes events: the
    column is then empty.
    """
    at = 0
    for index, time, score, smoothed in frames:
        while spans is not None and at < len(spans) and spans[at][1] < time:
            at += 1
        inside = None if spans is None else at < len(spans) and spans[at][0] <= time
        # Scores are float32 numbers, and written so.
        known = (clip, index, time, np.float32(score), np.float32(smoothed), inside)
        yield dict(zip(FRAME_COLUMNS, known, strict=True))


def write_events_csv(path: str | os.PathLike[str], events: Iterable[Event]) -> Path:
    """Writes events.csv atomically. Raises StorageError."""
    return write_csv(path, EVENT_COLUMNS, map(event_row, events))


def write_frames_csv(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> Path:
    """Writes frames.csv atomically, of `frame_rows` of any number of clips, in constant memory. Raises StorageError."""

    def write(stream: IO[bytes]) -> None:
        stream.write(csv_text(FRAME_COLUMNS, []).encode())
        left = iter(rows)
        while part := list(islice(left, ROWS_AT_ONCE)):
            body = csv_text(FRAME_COLUMNS, part).partition("\n")[2]
            stream.write(body.encode("utf-8", errors="backslashreplace"))

    return atomic_write(path, write)
