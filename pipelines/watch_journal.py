"""What a watch of a recorded source has scored so far: killed at any moment, it goes on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from anodiff.anomaly.events import Box
from anodiff.anomaly.streaming import Scored
from anodiff.engine.store import STATE_FOLDER
from anodiff.errors import StorageError
from anodiff.files import atomic_write, make_folder, storage_errors
from anodiff.pipelines.event_files import Span, frame_rows, write_frames_csv

NO_MAP = np.empty((0, 0), dtype=np.float32)


class Journal:
    """One line a scored frame, in order: index, time, score, smoothed score, box.

    Lines are added as frames are scored; an earlier run's are read beside, one by one, so that memory does not grow.
    Use `Journal.open`.
    """

    def __init__(self, path: Path, complete: int) -> None:
        self.path = path
        self._end = complete
        self._old: IO[bytes] = path.open("rb")
        self._old.readline()
        self._covered = self._decided = -1
        self._ahead = self._next()
        self._new: IO[bytes] = path.open("r+b")
        self._new.truncate(complete)
        self._new.seek(complete)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> Journal:
        """The journal of an output folder, new or of an earlier run that was cut off.

        Raises:
            StorageError: it is of another source, model or settings, or cannot be written.
        """
        path = make_folder(folder / STATE_FOLDER) / "watch.csv"
        head = (json.dumps(identity, sort_keys=True) + "\n").encode()
        with storage_errors(path):
            if not path.exists():
                atomic_write(path, head)
            with path.open("rb") as stream:
                found = stream.readline()
                if found != head:
                    raise StorageError(
                        f"{folder}: expected a watch of the same source with the same model and settings to go on "
                        "with, found another one's; choose another --output or start anew with --overwrite"
                    )
                complete = len(head) + sum(len(line) for line in stream if line.endswith(b"\n"))
            return cls(path, complete)

    def known(self, index: int, time: float) -> Scored | None:
        """The score of a frame, asked for in order, where an earlier run has it."""
        while self._ahead is not None and int(self._ahead[0]) < index:
            self._ahead = self._next()
        if self._ahead is None or int(self._ahead[0]) != index or float(self._ahead[1]) != time:
            return None
        return Scored(index, time, float(self._ahead[2]), NO_MAP, _box(self._ahead[4:]))

    def add(self, scored: Scored, smoothed: float, box: Box | None) -> None:
        """Keeps one frame, unless an earlier run did."""
        self._decided = scored.index
        if scored.index <= self._covered:
            return
        place = "" if box is None else ",".join(map(str, box))
        line = f"{scored.index},{scored.time!r},{scored.score!r},{smoothed!r},{place}\n"
        with storage_errors(self.path):
            self._new.write(line.encode())

    def flush(self) -> None:
        """What was added survives a kill from here on."""
        with storage_errors(self.path):
            self._new.flush()

    def close(self) -> None:
        """Closes the files."""
        self._old.close()
        with storage_errors(self.path):
            self._new.close()

    def write_frames(self, path: Path, clip: str, spans: Sequence[Span] | None) -> None:
        """frames.csv, row by row, up to the last frame added in this run (an earlier one may have gone further);
        spans are the times of events, None where there is no threshold."""
        write_frames_csv(path, frame_rows(clip, self._kept(), spans))

    def _kept(self) -> Iterator[tuple[int, float, float, float]]:
        with self.path.open("rb") as lines:
            lines.readline()
            for raw in lines:
                index, time, score, smoothed = raw.decode().split(",")[:4]
                if int(index) > self._decided:
                    return
                yield int(index), float(time), float(score), float(smoothed)

    def _next(self) -> list[str] | None:
        if self._old.tell() >= self._end:
            return None
        cells = self._old.readline().decode().rstrip("\n").split(",")
        self._covered = int(cells[0])
        return cells


def _box(cells: Sequence[str]) -> Box | None:
    if len(cells) != 4:
        return None
    x, y, width, height = map(int, cells)
    return x, y, width, height
