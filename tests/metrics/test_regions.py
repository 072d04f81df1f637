"""Regions: corners connect, in any number of dimensions, as in scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import measure

from anodiff.metrics.regions import label_regions, regions_of_pixels


@pytest.mark.parametrize("shape", [(40,), (20, 30), (9, 10, 11)])
@pytest.mark.parametrize("density", [0.05, 0.2])
def test_regions_are_those_of_scikit_image(shape: tuple[int, ...], density: float) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    labels, count = label_regions(mask)
    expected = measure.label(mask, connectivity=len(shape))
    assert count == expected.max()
    pairs = {(a, b) for a, b in zip(labels.ravel(), expected.ravel(), strict=True)}
    assert len(pairs) == count + 1


def test_touching_corners_connect_and_a_gap_does_not() -> None:
    assert label_regions(np.eye(4))[1] == 1
    assert label_regions([[1, 0, 1]])[1] == 2
    cube = np.zeros((2, 2, 2))
    cube[0, 0, 0] = cube[1, 1, 1] = 1
    assert label_regions(cube)[1] == 1


def test_pixels_know_their_region_in_the_order_of_indexing() -> None:
    mask = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 1]], dtype=bool)
    regions, sizes = regions_of_pixels(mask)
    assert sorted(sizes) == [2, 3]
    columns = np.nonzero(mask)[1]
    assert {int(sizes[r]) for r in regions[columns == 0]} == {2}
    assert {int(sizes[r]) for r in regions[columns == 2]} == {3}


def test_an_empty_mask_has_no_region_and_a_tensor_is_a_mask() -> None:
    assert label_regions(np.zeros((3, 3)))[1] == 0
    assert [len(part) for part in regions_of_pixels(np.zeros((3, 3)))] == [0, 0]
    assert label_regions(torch.eye(3, dtype=torch.bool))[1] == 1
