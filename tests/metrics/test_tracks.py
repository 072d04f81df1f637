"""RBDC and TBDC against the definition walked through one detection at a time, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import measure

from anodiff.errors import DataError
from anodiff.metrics.tracks import Boxes, boxes_of, boxes_of_maps, overlap, track_curves, tracks_of_masks

NONE = boxes_of([], [], [])


def brute_force(
    detections: list[Boxes], truths: list[Boxes], n_frames: int, alpha: float, beta: float
) -> tuple[float, float]:
    """The definition in words: one threshold after the other, one detection after the other, in Python."""
    scores = sorted({float(v) for found in detections for v in found.values}, reverse=True)
    points = [(0.0, 0.0, 0.0)]
    for threshold in scores:
        hit: set[tuple[int, int]] = set()
        false = 0
        for clip, (found, truth) in enumerate(zip(detections, truths, strict=True)):
            for frame, box, score in zip(found.frames, found.boxes, found.values, strict=True):
                if score < threshold:
                    continue
                matches = set()
                for i, (other, there) in enumerate(zip(truth.boxes, truth.frames, strict=True)):
                    if there != frame:
                        continue
                    a = {
                        (x, y) for x in range(int(box[0]), int(box[2]) + 1) for y in range(int(box[1]), int(box[3]) + 1)
                    }
                    b = {
                        (x, y)
                        for x in range(int(other[0]), int(other[2]) + 1)
                        for y in range(int(other[1]), int(other[3]) + 1)
                    }
                    if len(a & b) / len(a | b) >= beta:
                        matches.add((clip, i))
                false += not matches
                hit |= matches
        n_boxes = sum(len(truth.frames) for truth in truths)
        tracks: dict[tuple[int, float], list[bool]] = {}
        for clip, truth in enumerate(truths):
            for i, track in enumerate(truth.values):
                tracks.setdefault((clip, float(track)), []).append((clip, i) in hit)
        found_tracks = sum(np.mean(each) >= alpha for each in tracks.values())
        points.append((false / n_frames, len(hit) / n_boxes, found_tracks / len(tracks)))
    kept = [point for point in points if point[0] <= 1]
    kept.append((1.0, *kept[-1][1:]))
    x, regions, of_tracks = np.array(kept).T
    return float(np.trapezoid(regions, x)), float(np.trapezoid(of_tracks, x))


def random_boxes(rng: np.random.Generator, n: int, values: np.ndarray, frames: int) -> Boxes:
    low = rng.integers(0, 8, (n, 2))
    return boxes_of(rng.integers(0, frames, n), np.hstack([low, low + rng.integers(0, 5, (n, 2))]), values)


@pytest.mark.parametrize("seed", range(6))
def test_areas_are_those_of_the_definition_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = [random_boxes(rng, 12, rng.integers(0, 3, 12), 6) for _ in range(3)]
    detections = [random_boxes(rng, 15, np.round(rng.random(15), 1), 6) for _ in range(3)]
    for alpha, beta in ((0.1, 0.1), (0.5, 0.3)):
        ours = track_curves(detections, truths, 18, alpha=alpha, beta=beta)
        wanted = brute_force(detections, truths, 18, alpha, beta)
        assert (ours.rbdc, ours.tbdc) == pytest.approx(wanted)
        assert 0 < wanted[1] < 1 or beta > 0.1


def test_the_order_of_detections_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    truth = random_boxes(rng, 10, rng.integers(0, 2, 10), 4)
    found = random_boxes(rng, 20, np.round(rng.random(20), 1), 4)
    order = rng.permutation(20)
    mixed = boxes_of(found.frames[order], found.boxes[order], found.values[order])
    a, b = (track_curves([each], [truth], 4) for each in (found, mixed))
    assert (a.rbdc, a.tbdc) == (b.rbdc, b.tbdc)


def test_by_hand() -> None:
    """Four frames; a track of two boxes, found once at 0.9; a false detection at 0.5; a repeated one is neither."""
    truth = boxes_of([0, 1], [[0, 0, 9, 9], [0, 0, 9, 9]], [7, 7])
    found = boxes_of([0, 2, 0], [[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 8, 9]], [0.9, 0.5, 0.4])
    curves = track_curves([found], [truth], 4)
    assert curves.thresholds.tolist() == [0.9, 0.5, 0.4]
    assert curves.false_per_frame.tolist() == [0, 0.25, 0.25]
    assert curves.region_rate.tolist() == [0.5, 0.5, 0.5]
    assert curves.track_rate.tolist() == [1, 1, 1]
    assert (curves.rbdc, curves.tbdc) == pytest.approx((0.5, 1.0))
    strict = track_curves([found], [truth], 4, alpha=0.6)
    assert strict.tbdc == 0


def test_the_overlap_counts_corner_pixels() -> None:
    a, b = np.array([[0.0, 0, 1, 1]]), np.array([[1.0, 1, 2, 2], [0, 0, 1, 1], [3, 3, 4, 4]])
    assert overlap(a, b).tolist() == [[1 / 7, 1.0, 0.0]]


def test_without_annotations_there_is_nothing_to_find() -> None:
    curves = track_curves([boxes_of([0], [[0, 0, 1, 1]], [0.5])], [NONE], 3)
    assert (curves.rbdc, curves.tbdc, curves.n_regions) == (None, None, 0)
    missed = track_curves([NONE], [boxes_of([0], [[0, 0, 1, 1]], [0])], 3)
    assert (missed.rbdc, missed.tbdc) == (0, 0)


def test_boxes_of_maps_are_the_parts_above_each_threshold() -> None:
    rng = np.random.default_rng(0)
    maps = [np.round(rng.random((12, 16)), 2) for _ in range(3)]
    found = boxes_of_maps(maps, [0.8, 0.95])
    wanted = set()
    for index, values in enumerate(maps):
        for threshold in (0.8, 0.95):
            for part in measure.regionprops(measure.label(values >= threshold, connectivity=2), values):
                y0, x0, y1, x1 = part.bbox
                wanted.add((index, x0, y0, x1 - 1, y1 - 1, float(part.intensity_max)))
    rows = list(zip(found.frames.tolist(), *found.boxes.T.tolist(), found.values.tolist(), strict=True))
    assert len(rows) == len(set(rows))
    assert set(rows) == wanted


def test_quiet_maps_have_no_boxes() -> None:
    assert len(boxes_of_maps([np.zeros((4, 4))] * 2, [0.5]).frames) == 0


def test_masks_become_tracks_by_overlap_from_frame_to_frame() -> None:
    """A block that moves, one that appears beside it, and the first one again after it was gone."""
    masks = np.zeros((5, 10, 20), bool)
    for k in range(3):
        masks[k, 2:5, 2 + k : 5 + k] = True
    masks[1:3, 2:5, 12:15] = True
    masks[4, 2:5, 4:7] = True
    found = tracks_of_masks(masks)
    assert found.frames.tolist() == [0, 1, 1, 2, 2, 4]
    by_frame = {
        (int(frame), int(box[0])): int(track)
        for frame, box, track in zip(found.frames, found.boxes, found.values, strict=True)
    }
    assert by_frame[0, 2] == by_frame[1, 3] == by_frame[2, 4] == 0
    assert by_frame[1, 12] == by_frame[2, 12] == 1
    assert by_frame[4, 4] == 2
    assert found.boxes[0].tolist() == [2, 2, 4, 4]
    assert len(tracks_of_masks(masks, least_pixels=10).frames) == 0


def test_one_part_that_splits_keeps_its_track_in_the_larger_half() -> None:
    masks = np.zeros((2, 8, 20), bool)
    masks[0, 2:6, 2:16] = True
    masks[1, 2:6, 2:6] = masks[1, 2:6, 8:16] = True
    found = tracks_of_masks(masks)
    tracks = dict(zip(found.boxes[1:, 0].tolist(), found.values[1:].tolist(), strict=True))
    assert tracks == {8.0: 0.0, 2.0: 1.0}


@pytest.mark.parametrize(
    ("frames", "boxes", "values"),
    [([0], [[0, 0, 1, 1]], []), ([0], [[2, 0, 1, 1]], [1]), ([0], [[0, 0, 1, 1]], [np.nan])],
)
def test_boxes_that_are_none_are_refused(frames: list, boxes: list, values: list) -> None:
    with pytest.raises(DataError, match="expected"):
        boxes_of(frames, boxes, values)


def test_shares_and_clips_must_fit() -> None:
    with pytest.raises(ValueError, match="alpha"):
        track_curves([NONE], [NONE], 1, alpha=0)
    with pytest.raises(ValueError, match="1 and 0"):
        track_curves([NONE], [], 1)
