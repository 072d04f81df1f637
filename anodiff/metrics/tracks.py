"""Where and how long: region- and track-based detection criteria, RBDC and TBDC (Ramachandra and Jones 2020).

Detections are boxes with scores. All of them, highest score first, are held against the annotated boxes of their
frame: those with an intersection over union of at least ``beta`` match. A detection without a match is a false one; of
its matches the ones not found before are found now; one that only matches what was found is neither. With falling
score this gives, against false detections a frame (which may exceed 1):

- RBDR, the share of annotated boxes found;
- TBDR, the share of tracks found: those of which at least a share ``alpha`` of the boxes is found.

RBDC and TBDC are the areas below them for 0 to 1 false detections a frame. Detections of equal score enter together, so
that the order of ties cannot matter: within a tie the order of boxes makes no difference to what is found, and what
only matches boxes found by the same tie is neither false nor counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from anodiff.errors import DataError
from anodiff.metrics.regions import label_regions

Floats = NDArray[np.float64]
ALPHA, BETA = 0.1, 0.1


@dataclass(frozen=True)
class Boxes:
    """Boxes of one clip, first and last column and row included.

    Attributes:
        frames: (n,) index of the frame, from 0.
        boxes: (n, 4) x first, y first, x last, y last.
        values: (n,) of a detection its score, of an annotation the number of its track.
    """

    frames: NDArray[np.int64]
    boxes: Floats
    values: Floats


def boxes_of(frames: ArrayLike, boxes: ArrayLike, values: ArrayLike) -> Boxes:
    """Checked Boxes. Raises DataError: other numbers of them, NaN, or a box whose last pixel comes before its first."""
    where, corners = np.asarray(frames, dtype=np.int64), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    numbers = np.asarray(values, dtype=np.float64)
    if not where.shape == numbers.shape == (len(corners),):
        raise DataError(
            f"expected as many frames, boxes and values, found {where.size}, {len(corners)} and {numbers.size} of them"
        )
    if np.isnan(numbers).any() or not (corners[:, 2:] >= corners[:, :2]).all():
        raise DataError("expected boxes as x first, y first, x last, y last with finite values, found others")
    return Boxes(where, corners, numbers)


@dataclass(frozen=True)
class TrackCurves:
    """RBDR and TBDR against false detections a frame.

    Attributes:
        thresholds: (K,) scores, descending.
        false_per_frame, region_rate, track_rate: (K,) at score >= threshold.
        n_regions, n_tracks, n_frames: what there is to be found, and in how many frames.
    """

    thresholds: Floats
    false_per_frame: Floats
    region_rate: Floats
    track_rate: Floats
    n_regions: int
    n_tracks: int
    n_frames: int

    @property
    def rbdc(self) -> float | None:
        """Area below RBDR for 0 to 1 false detections a frame, in [0, 1]; None without an annotated box."""
        return self._area(self.region_rate) if self.n_regions else None

    @property
    def tbdc(self) -> float | None:
        """Area below TBDR likewise; None without a track."""
        return self._area(self.track_rate) if self.n_tracks else None

    def _area(self, rate: Floats) -> float:
        """From (0, 0), by trapezoids, up to the last point with at most one, whose height is held from there to 1."""
        kept = self.false_per_frame <= 1
        x = np.concatenate([[0.0], self.false_per_frame[kept], [1.0]])
        y = np.concatenate([[0.0], rate[kept]])
        return float(np.trapezoid(np.append(y, y[-1]), x))


def track_curves(
    detections: Sequence[Boxes], truths: Sequence[Boxes], n_frames: int, *, alpha: float = ALPHA, beta: float = BETA
) -> TrackCurves:
    """The curves of a test set: detections and annotations clip by clip, and the number of frames of all clips.

    Tracks are numbered clip by clip. Raises ValueError for another number of clips, or an alpha or beta outside (0, 1].
    """
    if len(detections) != len(truths) or not (0 < alpha <= 1 and 0 < beta <= 1):
        raise ValueError(
            f"expected one set of boxes a clip and shares in (0, 1], found {len(detections)} and {len(truths)} "
            f"clips, alpha {alpha} and beta {beta}"
        )
    # When a region is found: the highest score among its matches. A detection's own falseness needs no order.
    when, tracks, false = [np.array([])], [np.array([], dtype=np.int64)], [np.array([])]
    n_tracks = 0
    for found, truth in zip(detections, truths, strict=True):
        best, matched = _matches(found, truth, beta)
        when.append(best)
        false.append(found.values[~matched])
        names, number = np.unique(truth.values, return_inverse=True)
        tracks.append(number.astype(np.int64) + n_tracks)
        n_tracks += len(names)
    region_scores, track_of = np.concatenate(when), np.concatenate(tracks)
    track_scores = _track_scores(region_scores, track_of, n_tracks, alpha)
    scores = np.concatenate([found.values for found in detections] or [np.array([])])
    thresholds = np.unique(scores)[::-1]
    at_least = [_at_least(np.concatenate(false), thresholds), _at_least(region_scores, thresholds)]
    return TrackCurves(
        thresholds,
        at_least[0] / max(n_frames, 1),
        at_least[1] / max(len(region_scores), 1),
        _at_least(track_scores, thresholds) / max(n_tracks, 1),
        len(region_scores),
        n_tracks,
        n_frames,
    )


def overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), corner pixels included."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.clip(high - low + 1, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) for boxes in (a, b)]
    return np.asarray(inside / (areas[0][:, None] + areas[1][None, :] - inside))


def boxes_of_maps(maps: Iterable[Any], thresholds: Sequence[float]) -> Boxes:
    """Detections from anomaly maps (H, W), one a frame: this step is not standardised, and this is how it is done here.

    At each threshold the 8-connected parts of map >= threshold give a box each, whose score is the highest value in
    it. Boxes that two thresholds give alike are one.
    """
    rows: list[tuple[int, float, float, float, float, float]] = []
    for index, values in enumerate(maps):
        pixels = np.asarray(values, dtype=np.float64)
        found: set[tuple[int, float, float, float, float, float]] = set()
        for threshold in thresholds:
            labels, count = label_regions(pixels >= threshold)
            peaks = ndimage.maximum(pixels, labels, np.arange(1, count + 1))
            for box, peak in zip(ndimage.find_objects(labels), np.atleast_1d(peaks), strict=True):
                found.add((index, *_corners(box), float(peak)))
        rows += sorted(found)
    return _from_rows(rows)


def tracks_of_masks(masks: Iterable[Any], least_pixels: int = 1) -> Boxes:
    """Annotations from masks (H, W), one a frame, where a set has no tracks of its own.

    A box is an 8-connected part of at least ``least_pixels``; it continues the track of the part of the frame before
    that it shares most pixels with, where no larger part does. These are not the tracks that people annotated, so
    numbers compare only with numbers that were found in the same way.
    """
    rows: list[tuple[int, float, float, float, float, float]] = []
    before: tuple[NDArray[np.int32], dict[int, int]] | None = None
    n_tracks = 0
    for index, mask in enumerate(masks):
        labels, _ = label_regions(mask)
        sizes = np.bincount(labels.ravel())
        tracks: dict[int, int] = {}
        for part in sorted(range(1, len(sizes)), key=lambda part: -int(sizes[part])):
            if sizes[part] < least_pixels:
                continue
            track = _continued(labels == part, before, set(tracks.values()))
            if track is None:
                track, n_tracks = n_tracks, n_tracks + 1
            tracks[part] = track
        places = ndimage.find_objects(labels)
        rows += [(index, *_corners(places[part - 1]), float(track)) for part, track in sorted(tracks.items())]
        before = labels, tracks
    return _from_rows(rows)


def _continued(
    part: NDArray[np.bool_], before: tuple[NDArray[np.int32], dict[int, int]] | None, taken: set[int]
) -> int | None:
    """The track of the frame before that shares most pixels with ``part`` and is not taken; None without one."""
    if before is None:
        return None
    labels, tracks = before
    shared = np.bincount(labels[part])
    free = [old for old in np.flatnonzero(shared).tolist() if old in tracks and tracks[old] not in taken]
    return tracks[max(free, key=lambda old: int(shared[old]))] if free else None


def _matches(found: Boxes, truth: Boxes, beta: float) -> tuple[Floats, NDArray[np.bool_]]:
    """(highest score among the matches of each annotated box, -inf without one; whether each detection has a match)."""
    best, matched = np.full(len(truth.frames), -np.inf), np.zeros(len(found.frames), dtype=bool)
    for frame in np.intersect1d(truth.frames, found.frames):
        there, here = np.flatnonzero(truth.frames == frame), np.flatnonzero(found.frames == frame)
        match = overlap(found.boxes[here], truth.boxes[there]) >= beta
        matched[here] = match.any(axis=1)
        best[there] = np.where(match, found.values[here][:, None], -np.inf).max(axis=0)
    return best, matched


def _track_scores(region_scores: Floats, track_of: NDArray[np.int64], n_tracks: int, alpha: float) -> Floats:
    """The score at which each track is found: that of the box that completes the share ``alpha`` of its boxes."""
    out = np.full(n_tracks, -np.inf)
    for track in range(n_tracks):
        scores = np.sort(region_scores[track_of == track])[::-1]
        # 0.1 of 10 boxes is one box, whatever the last bit of the product says.
        out[track] = scores[max(int(np.ceil(alpha * len(scores) - 1e-9)), 1) - 1]
    return out


def _at_least(scores: Floats, thresholds: Floats) -> Floats:
    """How many scores reach each threshold."""
    ordered = np.sort(scores)
    return (len(ordered) - np.searchsorted(ordered, thresholds, side="left")).astype(np.float64)


def _corners(box: tuple[slice, ...]) -> tuple[float, float, float, float]:
    rows, columns = box
    return float(columns.start), float(rows.start), float(columns.stop - 1), float(rows.stop - 1)


def _from_rows(rows: Sequence[tuple[float, ...]]) -> Boxes:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return boxes_of(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5])
