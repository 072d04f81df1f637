"""The table of a data set of clips: where each lies, what is known of it and of its frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.data.video.clip import clip_sources
from anodiff.data.video.frames import places_in
from anodiff.errors import DataError

#: flags that a set may have beyond its last frame (the alarms of UMN have one or two)
SURPLUS_FLAGS = 2


@dataclass(frozen=True)
class ClipRow:
    """One clip of a data set.

    Attributes:
        path: what ``open_clip`` takes.
        id: unique, safe as a file name; made by ``clip_table`` where it is "".
        split: "train", "test" or "" = not said.
        group: what belongs together (a scene, a camera), "" = unknown: the clip alone.
        truth: bool (n,), one flag a frame, True = anomalous; None = unknown, or known in seconds.
        events: (start, end) in seconds of what is anomalous, () = nothing; None = unknown, or known by frame.
        masks: the pixel truth, which ``anodiff.data.video.masks`` reads: a folder, an NPY or a MAT file; "" = none.
        fps: frames a second that a folder of frames was taken at, None = by the clip itself.
        tracks: annotated boxes (n, 6): track, frame, x first, y first, x last, y last in native pixels; None = unknown.
    """

    path: str
    id: str = ""
    split: str = ""
    group: str = ""
    truth: NDArray[np.bool_] | None = None
    events: tuple[tuple[float, float], ...] | None = None
    masks: str = ""
    fps: float | None = None
    tracks: NDArray[np.float64] | None = None

    def truth_at(self, times: ArrayLike, *, broken: bool = False) -> NDArray[np.bool_] | None:
        """bool (n,): which of the frames that were read, at these times in seconds, are anomalous; None = unknown.

        A frame is in an event from its start to before its end. ``broken``: the clip broke off, so that flags are left
        over; of a file at most two may be otherwise. Where numbers are missing in the names of a folder's frames, flags
        may be one a number or one a frame that is there.

        Raises DataError where there is another number of flags than of frames.
        """
        seconds = np.asarray(times, dtype=np.float64)
        if self.events is not None:
            inside = [(seconds >= start) & (seconds < end) for start, end in self.events]
            return np.logical_or.reduce(inside) if inside else np.zeros(len(seconds), dtype=bool)
        if self.truth is None:
            return None
        flags = self.truth
        if os.path.isdir(self.path):
            flags = by_number(flags, places_in(self.path), self.path)
        surplus = len(flags) - len(seconds)
        if surplus < 0 or (surplus > SURPLUS_FLAGS and not broken):
            raise DataError(f"{self.path}: expected {len(flags)} frames, one a flag, found {len(seconds)}")
        return flags[: len(seconds)]


def by_number(flags: NDArray[np.bool_], places: Sequence[float], path: str) -> NDArray[np.bool_]:
    """One flag a frame, of flags (n,) for the frames that are there or (m,) for all from the first number to the last.

    places: of the frames, see `frame_places`. Raises DataError for another number of flags.
    """
    if len(flags) == len(places):
        return flags
    whole = round(places[-1]) + 1 if places else 0
    if len(flags) == whole and all(place.is_integer() for place in places):
        return flags[np.array(places, dtype=np.int64)]
    missing = f", or {whole}, with those whose numbers are missing" if whole > len(places) else ""
    raise DataError(f"{path}: expected {len(places)} flags, one a frame{missing}; found {len(flags)}")


@dataclass(frozen=True)
class ClipTable:
    """rows: the clips in natural order; layout: the name of the layout they were read by; root: the data's folder."""

    rows: tuple[ClipRow, ...]
    layout: str
    root: Path

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, *names: str) -> ClipTable:
        """The clips of these splits. Raises DataError, naming what is there instead, where there is none."""
        kept = tuple(row for row in self.rows if row.split in names)
        if not kept:
            there = sorted({row.split or "(none)" for row in self.rows})
            raise DataError(f"{self.root}: expected clips of split {' or '.join(names)}, found {', '.join(there)}")
        return replace(self, rows=kept)


def clip_table(rows: Sequence[ClipRow], layout: str, root: Path) -> ClipTable:
    """A table of ``rows`` in their order with ids made. Raises DataError where there is none."""
    if not rows:
        raise DataError(f"{root}: expected videos or folders of frames, found none")
    sources = clip_sources([row.path for row in rows])
    named = tuple(replace(row, id=source.id) for row, source in zip(rows, sources, strict=True))
    return ClipTable(named, layout, root)
