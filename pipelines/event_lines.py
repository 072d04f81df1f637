"""events.jsonl: what a watch saw, one JSON object a line, for whoever follows the file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anodiff.anomaly.events import Event
from anodiff.files import storage_errors


class EventLines:
    """events.jsonl: one JSON object a line, each on the disk's side of a kill as soon as it is written.

    A live watch goes on with the file of an earlier one: an event that was open when that was killed is ended with
    ``reason`` "killed", numbers go on.
    """

    def __init__(self, path: Path, *, live: bool) -> None:
        self.path, self.live, self.number = path, live, 0
        opened: dict[str, Any] | None = None
        if live and path.exists():
            for line in _json_lines(path):
                if line.get("type") in ("begin", "update", "end"):
                    self.number = int(line["event"])
                    opened = None if line["type"] == "end" else line
        with storage_errors(path):
            self._stream = path.open("a" if live else "w", encoding="utf-8")
            if live and not _ends_a_line(path):
                self._stream.write("\n")
        if opened is not None:
            self.write({**opened, "type": "end", "reason": "killed"})

    def write(self, line: dict[str, Any]) -> None:
        """One line. Raises StorageError."""
        if self.live:
            line = {**line, "clock": datetime.now(UTC).isoformat(timespec="milliseconds")}
        with storage_errors(self.path):
            self._stream.write(json.dumps(line, allow_nan=False) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing more to say."""
        self._stream.close()


def event_json(event: Event) -> dict[str, Any]:
    """An event as plain values; times in seconds of the source."""
    return {
        "event": event.number,
        "clip": event.clip,
        "start": event.start,
        "end": event.end,
        "peak_time": event.peak_time,
        "peak_score": event.peak_score,
        "mean_score": event.mean_score,
        "p_value": event.p_value,
        "false_alarms_per_hour": event.false_alarms_per_hour,
        "alarm": event.alarm,
        "box": None if event.box is None else list(event.box),
    }


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; one that a kill cut off is passed over."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        for text in stream:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"
