"""DICOM frames to volumes: which of them belong together, in which order, and what tells those at one place apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anodiff.data.volumes.dicom import MARKS, Frame

_SAME_DIRECTION = 1e-3
_SAME_PLACE_MM = 1e-3
#: what frames of one volume have in common, beside directions and spacing
_COMMON = ("reference", "rows", "columns", "samples", "photometric", "bits_allocated", "signed", "lookup")


@dataclass(frozen=True)
class Group:
    """Frames that make one volume, sorted along the slice normal.

    remarks: on the series it is a part of; copies: frames that say the same as one of these, and were left out.
    """

    frames: tuple[Frame, ...]
    remarks: tuple[str, ...] = ()
    copies: tuple[Frame, ...] = ()


def group_frames(frames: Iterable[Frame]) -> list[Group]:
    """Frames of one or many series as volumes, in a fixed order that does not depend on file names.

    Frames without a place in the patient are volumes of their own. The others go together by series, frame of
    reference, size, kind of pixels and direction; copies of one frame count once; frames at the same place are told
    apart by time, echo, b-value, image type or acquisition. What still shares a place stays together, and reading says
    why it cannot be used.
    """
    by_series: dict[str, list[Frame]] = {}
    for frame in frames:
        by_series.setdefault(frame.series or f"file:{frame.path}", []).append(frame)
    groups = [group for series in sorted(by_series) for group in _group_series(by_series[series])]
    return sorted(groups, key=lambda group: (group.frames[0].series_number or 0, group.frames[0].series))


def _group_series(frames: list[Frame]) -> list[Group]:
    kept, copies = _without_copies(frames)
    parts: list[list[Frame]] = []
    for frame in kept:
        home = next((part for part in parts if belongs(part[0], frame)), None)
        if home is None:
            parts.append([frame])
        else:
            home.append(frame)
    groups = [(group, mark) for part in parts for group, mark in _tell_apart(_sorted(part))]
    result: list[Group] = []
    for number, (part, mark) in enumerate(groups, start=1):
        remarks: tuple[str, ...] = ()
        if len(groups) > 1 and part[0].count == 1 and part[0].placed:
            remarks = (f"the series holds {len(groups)} volumes: this is number {number}{mark}",)
        same = tuple(copy for frame in part for copy in copies.get(identity(frame), ()))
        result.append(Group(tuple(part), remarks, same))
    return result


def identity(frame: Frame) -> tuple[str, int]:
    """What a frame and its copies have in common: the instance, or the path where it has none, and its number there."""
    return frame.instance or frame.path, frame.index


def copied(copies: Sequence[Frame]) -> tuple[str, ...]:
    """A remark on the frames that were left out as copies; none where there are none."""
    if not copies:
        return ()
    return ("1 copy of a slice was left out" if len(copies) == 1 else f"{len(copies)} copies of slices were left out",)


def _without_copies(frames: list[Frame]) -> tuple[list[Frame], dict[tuple[str, int], list[Frame]]]:
    """One of each instance and frame number, the one whose path comes first; and the others by their identity."""
    seen: dict[tuple[str, int], Frame] = {}
    copies: dict[tuple[str, int], list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: (frame.path, frame.index)):
        if seen.setdefault(identity(frame), frame) is not frame:
            copies.setdefault(identity(frame), []).append(frame)
    return list(seen.values()), copies


def belongs(first: Frame, other: Frame) -> bool:
    """Whether two frames of a series may be slices of one volume: same kind of pixels, size, spacing and direction."""
    if not (first.placed and other.placed):
        return False
    if any(getattr(first, name) != getattr(other, name) for name in _COMMON):
        return False
    axes = [np.array((*frame.rows_direction, *frame.columns_direction)) for frame in (first, other)]  # type: ignore[misc]
    spacings = np.array((first.spacing, other.spacing), dtype=float)
    return bool(np.abs(axes[0] - axes[1]).max() < _SAME_DIRECTION and np.allclose(spacings[0], spacings[1], rtol=1e-3))


def _sorted(part: list[Frame]) -> list[Frame]:
    """Along the slice normal; frames at one place by instance number."""
    if not part[0].placed:
        return part
    normal = part[0].normal
    return sorted(part, key=lambda frame: (round(distance(frame, normal), 4), frame.instance_number, frame.index))


def distance(frame: Frame, normal: np.ndarray) -> float:
    """Position along ``normal`` in mm."""
    return float(np.dot(np.array(frame.position), normal))


def shared_places(frames: list[Frame] | tuple[Frame, ...]) -> tuple[int, int]:
    """(the most frames at one place, the number of places) of sorted frames."""
    if not frames[0].placed:
        return 1, len(frames)
    places = np.array([distance(frame, frames[0].normal) for frame in frames])
    labels = np.concatenate([[0], np.cumsum(np.diff(places) > _SAME_PLACE_MM)])
    return int(np.bincount(labels).max()), int(labels[-1]) + 1


def hole(frames: Sequence[Frame], lost: Iterable[Frame]) -> Frame | None:
    """The first of the lost frames whose place, between the first and the last of sorted frames, none of them has."""
    if len(frames) < 2 or not frames[0].placed:
        return None
    normal = frames[0].normal
    places = np.array([distance(frame, normal) for frame in frames])
    near = np.diff(places).min() / 2
    for frame in lost:
        if belongs(frames[0], frame):
            place = distance(frame, normal)
            if places[0] < place < places[-1] and np.abs(places - place).min() > min(near, _SAME_PLACE_MM):
                return frame
    return None


def _tell_apart(part: list[Frame]) -> list[tuple[list[Frame], str]]:
    """Split frames that share places by as few marks as do it; unsplit where none does."""
    most, places = shared_places(part)
    chosen: list[int] = []
    split = {(): part}
    for number in range(len(MARKS)):
        if most == 1:
            break
        trial = _split(part, [*chosen, number])
        # A mark that differs from slice to slice tells slices apart, not volumes.
        if places > 1 and min(len(subset) for subset in trial.values()) < 2:
            continue
        if (now := max(shared_places(subset)[0] for subset in trial.values())) < most:
            chosen, split, most = [*chosen, number], trial, now
    if most > 1:
        return [(part, "")]
    named = [
        "".join(f", {MARKS[n]} {value}" for n, value in zip(chosen, key, strict=True)) if key else "" for key in split
    ]
    return list(zip(split.values(), named, strict=True))


def _split(part: list[Frame], chosen: list[int]) -> dict[Any, list[Frame]]:
    subsets: dict[Any, list[Frame]] = {}
    for frame in part:
        subsets.setdefault(tuple(frame.marks[number] for number in chosen), []).append(frame)
    return subsets


def group_key(group: Group) -> str:
    """Eight hexadecimal digits that name a group: of its series and the instances in it."""
    first = group.frames[0]
    names = sorted((frame.instance or _nameless(frame), frame.index) for frame in group.frames)
    text = "\n".join([first.series, *(f"{instance}#{index}" for instance, index in names)])
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _nameless(frame: Frame) -> str:
    """What stands for an instance without an identity: its file's name without the folder, which may be moved, and all
    that tells it from a file of that name in another volume of its series."""
    apart = (*_COMMON, "rows_direction", "columns_direction", "spacing", "marks")
    return "|".join([os.path.basename(frame.path), *(str(getattr(frame, name)) for name in apart)])
