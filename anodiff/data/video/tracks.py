"""Annotated boxes with tracks: ``tracks.csv`` in the folder of a data set, whatever its layout.

One row a box: clip (a path below the folder, with its extension or without), track (a number, of this clip alone),
frame (from 0, as in frames.csv), x, y (first column and row of pixels), w, h. A clip of the set that the file does not
name has no box.
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anodiff.data.video.table import ClipTable
from anodiff.errors import DataError

FILE = "tracks.csv"
COLUMNS = ("clip", "track", "frame", "x", "y", "w", "h")

Tracks = NDArray[np.float64]


def with_tracks(table: ClipTable) -> ClipTable:
    """The table with the boxes of tracks.csv, where its folder has one; clips that it does not name have none.

    Raises DataError: no such columns, numbers that are none, a clip that is not there.
    """
    file = table.root / FILE
    if not file.is_file():
        return table
    listed = read_tracks(file)
    rows = []
    for row in table.rows:
        below = os.path.relpath(row.path, table.root).replace(os.sep, "/")
        found = [listed.pop(name) for name in dict.fromkeys((below, os.path.splitext(below)[0])) if name in listed]
        rows.append(replace(row, tracks=np.concatenate([np.zeros((0, 6)), *found])))
    if listed:
        raise DataError(f"{file}: expected clips below {table.root}, found no {', '.join(sorted(listed)[:3])}")
    return replace(table, rows=tuple(rows))


def read_tracks(file: Path) -> dict[str, Tracks]:
    """clip -> (n, 6): track, frame, x first, y first, x last, y last. Raises DataError naming the line at fault."""
    found: dict[str, list[list[float]]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            if missing := [name for name in COLUMNS if name not in reader.fieldnames]:
                raise DataError(f"{file}: expected the columns {', '.join(COLUMNS)}, found no {missing[0]}")
            for row in reader:
                name = (row["clip"] or "").strip().replace("\\", "/").removeprefix("./")
                found.setdefault(name, []).append(_box(row, f"{file}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: expected a readable CSV file in UTF-8, found {' '.join(str(error).split())}"
        ) from None
    return {name: np.array(rows) for name, rows in found.items()}


def _box(row: dict[str, str], where: str) -> list[float]:
    texts = [(row[column] or "").strip() for column in COLUMNS[1:]]
    try:
        track, frame, x, y, w, h = map(float, texts)
    except ValueError:
        track = frame = x = y = w = h = math.nan
    if not (math.isfinite(track + frame + x + y + w + h) and frame >= 0 and frame == int(frame) and w > 0 and h > 0):
        raise DataError(
            f"{where}: expected numbers, a frame counted from 0 and a box of some width and height, found "
            f"{', '.join(map(repr, texts))}"
        )
    return [track, frame, x, y, x + w - 1, y + h - 1]
