"""UMN crowds (Mehran, Oyama and Shah 2009), one file a scenario: TrimN.mp4 beside alarmN.mat with one flag a frame.

Every clip begins normal and ends in panic, and the set has no split of its own: none is said here. It has one flag or
two more than frames in some clips, which are left out (see :meth:`ClipRow.truth_at`).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.video.layouts.avenue import videos_in
from anodiff.data.video.matlab import read_mat
from anodiff.data.video.table import ClipRow, ClipTable, clip_table
from anodiff.errors import DataError

KEY = "alarms"
_NUMBERED = re.compile(r"trim(\d+)", re.IGNORECASE)


def matches(path: Path) -> bool:
    """Whether ``path`` has a video TrimN beside an alarmN.mat."""
    return path.is_dir() and any(alarm_of(video) is not None for video in videos_in(path))


def load(path: Path) -> ClipTable:
    """The clips of UMN; a video without an alarm file has no truth. Raises DataError for flags that are not 0 and 1."""
    rows = []
    for video in videos_in(path):
        alarm = alarm_of(video)
        rows.append(ClipRow(str(video), truth=None if alarm is None else _flags(alarm)))
    return clip_table(rows, "umn", path)


def alarm_of(video: Path) -> Path | None:
    """The file of a video's flags, where there is one."""
    number = _NUMBERED.fullmatch(video.stem)
    file = video.with_name(f"alarm{number[1]}.mat") if number else None
    return file if file is not None and file.is_file() else None


def _flags(file: Path) -> NDArray[np.bool_]:
    values = read_mat(file, KEY).ravel()
    if values.dtype.kind not in "buif" or not np.isin(values, (0, 1)).all():
        raise DataError(f"{file}: expected one flag 0 or 1 a frame, found others")
    return values.astype(bool)
