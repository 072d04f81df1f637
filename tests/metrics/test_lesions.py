"""Lesions: FROC against MONAI and by hand, sensitivity as a whole and by size."""

from __future__ import annotations

import numpy as np
import pytest
from monai.metrics import compute_froc_curve_data
from skimage import measure

from anodiff.errors import DataError
from anodiff.metrics import froc, lesion_sensitivity, sensitivity_by_size
from anodiff.metrics.lesions import size_classes


def _case(n: int = 6, side: int = 24, decimals: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(4)
    maps, masks = [], []
    for i in range(n):
        mask = np.zeros((side, side), bool)
        if i % 2:
            mask[2:6, 2:7] = mask[12:14, 12:20] = mask[20, 2] = True
        maps.append(np.round(rng.normal(size=mask.shape) + 1.5 * mask, decimals))
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("decimals", [1, 4])
def test_froc_is_monai_s_curve_of_the_same_detections(decimals: int) -> None:
    maps, masks = _case(decimals=decimals)
    false, found, n_lesions = [], [], 0
    for values, mask in zip(maps, masks, strict=True):
        detections, lesions = (measure.label(each, connectivity=2) for each in (values > 1.2, mask))
        n_lesions += lesions.max()
        for k in range(1, detections.max() + 1):
            if not mask[detections == k].any():
                false.append(values[detections == k].max())
        for k in range(1, lesions.max() + 1):
            touching = set(detections[lesions == k]) - {0}
            if touching:
                found.append(max(values[detections == t].max() for t in touching))
    fps, sensitivity = compute_froc_curve_data(np.array(false), np.array(found), n_lesions, len(maps))
    ours = froc(maps, masks, 1.2)
    assert (ours.n_lesions, ours.n_images) == (n_lesions, 6)
    # MONAI lists thresholds upwards, leaves out the lowest and adds the origin.
    assert ours.false_positives[:-1] == pytest.approx(fps[:-1][::-1])
    assert ours.sensitivity[:-1] == pytest.approx(sensitivity[:-1][::-1])
    assert ours.false_positives[-1] == pytest.approx(len(false) / 6)
    assert ours.sensitivity[-1] == pytest.approx(len(found) / n_lesions)


def test_sensitivity_at_a_rate_is_a_point_that_can_be_chosen() -> None:
    """Two images; lesions at 9 and 5, false detections at 7 and 3; a third lesion is never touched."""
    maps, masks = np.zeros((2, 9, 9)), np.zeros((2, 9, 9), bool)
    for image, row, score, is_lesion in ((0, 1, 9, True), (0, 4, 7, False), (1, 1, 5, True), (1, 4, 3, False)):
        maps[image, row, 1:3] = score
        masks[image, row, 2:4] = is_lesion
    masks[1, 7, 7] = True
    found = froc(maps, masks, 1.0)
    assert found.thresholds.tolist() == [9, 7, 5, 3]
    assert [found.sensitivity_at(rate) for rate in (0.0, 0.49, 0.5, 1.0, 8.0)] == pytest.approx(
        [1 / 3, 1 / 3, *[2 / 3] * 3]
    )
    assert found.score((0.25, 0.5)) == pytest.approx(0.5)


def test_one_detection_may_find_two_lesions_and_a_touch_is_enough() -> None:
    values, mask = np.zeros((5, 9)), np.zeros((5, 9), bool)
    values[2, 1:8] = [1, 1, 1, 4, 1, 1, 1]
    mask[2, 1] = mask[2, 7] = True
    found = froc([values], [mask], 0.5)
    assert (found.thresholds.tolist(), found.sensitivity.tolist()) == ([4.0], [1.0])
    assert found.false_positives.tolist() == [0.0]


def test_nothing_detected_is_a_real_zero_and_no_lesion_is_none() -> None:
    maps, masks = _case()
    assert froc(maps, masks, 99.0).score() == 0.0
    normal = froc(maps, [None] * len(maps), 1.2)
    assert normal.score() is None
    assert normal.sensitivity_at(1.0) is None
    assert normal.false_positives[-1] > 0
    assert froc([], [], 1.0).score() is None
    assert lesion_sensitivity(maps, [None] * len(maps), 1.0) is None


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
def test_lesion_sensitivity_counts_lesions(overlap: float) -> None:
    maps, masks = _case()
    shares = []
    for values, mask in zip(maps, masks, strict=True):
        labels = measure.label(mask, connectivity=2)
        shares += [np.mean(values[labels == k] > 1.0) for k in range(1, labels.max() + 1)]
    expected = np.mean(np.array(shares) > overlap)
    assert lesion_sensitivity(maps, masks, 1.0, overlap) == pytest.approx(expected)


def test_sensitivity_by_size() -> None:
    maps, masks = _case()
    found = sensitivity_by_size(maps, masks, 1.0, [2, 18], pixel_size=1.0)
    assert {name: row["n"] for name, row in found.items()} == {"<2": 3, "2-18": 3, ">=18": 3}
    single = [values[20, 2] > 1.0 for values, mask in zip(maps, masks, strict=True) if mask.any()]
    assert found["<2"]["sensitivity"] == pytest.approx(np.mean(single))
    scaled = sensitivity_by_size(maps, masks, 1.0, [4, 36], pixel_size=2.0)
    assert list(scaled.values()) == list(found.values())
    assert sensitivity_by_size(maps, masks, 1.0, [500])[">=500"] == {"sensitivity": None, "n": 0}


def test_bad_input() -> None:
    with pytest.raises(DataError, match="mask of image 0"):
        froc([np.ones((2, 2))], [np.ones((3, 3))], 0.5)
    for edges in ([], [3, 3], [5, 1]):
        with pytest.raises(ValueError, match="must ascend"):
            size_classes(edges)
