"""A folder of clips with ``events.csv``: clip, start_s, end_s; one row an event, times in seconds of the clip.

``clip`` is a path below the folder, with its extension or without. A row without times names a clip in which nothing
happens. Clips below a folder called train, training or normal are for training, those below test or testing for
testing; elsewhere the clips that the file names are test clips and the others, normal by their owner's word, train.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from anodiff.data.video.clip import expand_clips
from anodiff.data.video.table import ClipRow, ClipTable, clip_table
from anodiff.errors import DataError

FILE = "events.csv"
COLUMNS = ("clip", "start_s", "end_s")
SPLIT_FOLDERS = {"train": "train", "training": "train", "normal": "train", "test": "test", "testing": "test"}

Events = dict[str, list[tuple[float, float]]]


def matches(path: Path) -> bool:
    """Whether ``path`` is a folder with an events.csv."""
    return path.is_dir() and (path / FILE).is_file()


def load(path: Path) -> ClipTable:
    """The clips below ``path`` with their events; a test clip that the file does not name is normal throughout.

    Raises DataError: no clip, no such columns, times that are none, a clip that is not there, an event in a training
    clip.
    """
    file = path / FILE
    listed = read_events(file)
    rows = []
    for source in expand_clips([path]):
        below = os.path.relpath(source.path, path).replace(os.sep, "/")
        events = listed.pop(below, None)
        if events is None:
            events = listed.pop(os.path.splitext(below)[0], None)
        split = next((SPLIT_FOLDERS[part] for part in below.lower().split("/")[:-1] if part in SPLIT_FOLDERS), "")
        split = split or ("train" if events is None else "test")
        if split == "train" and events:
            raise DataError(f"{file}: expected events in test clips only, found one in the training clip {below}")
        rows.append(ClipRow(source.path, split=split, events=tuple(events or ())))
    if listed:
        raise DataError(f"{file}: expected clips below {path}, found no {', '.join(sorted(listed)[:3])}")
    return clip_table(rows, "events", path)


def read_events(file: Path) -> Events:
    """clip -> its (start, end) in seconds, in their order. Raises DataError naming the line at fault."""
    events: Events = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            if missing := [name for name in COLUMNS if name not in reader.fieldnames]:
                raise DataError(f"{file}: expected the columns {', '.join(COLUMNS)}, found no {missing[0]}")
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                name = (row["clip"] or "").strip().replace("\\", "/").removeprefix("./")
                if not name:
                    raise DataError(f"{where}: expected the name of a clip, found an empty field")
                times = [(row[column] or "").strip() for column in COLUMNS[1:]]
                events.setdefault(name, []).extend([_event(times, where)] if any(times) else [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: expected a readable CSV file in UTF-8, found {' '.join(str(error).split())}"
        ) from None
    return events


def _event(times: list[str], where: str) -> tuple[float, float]:
    try:
        start, end = map(float, times)
    except ValueError:
        start = end = math.nan
    if not (math.isfinite(start + end) and 0 <= start < end):
        raise DataError(f"{where}: expected start_s before end_s in seconds, found {' and '.join(map(repr, times))}")
    return start, end
