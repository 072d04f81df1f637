from __future__ import annotations

import itertools
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anodiff.data.volumes.geometry import Grid, crop_pad, from_depth_first, plan, resample, to_depth_first
from anodiff.data.volumes.volume import Volume

SHAPE = (9, 10, 7)
AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([-1.0, 0.8, 3.0]), [5.0, -7.0, 11.0]
)
GRID = Grid(SHAPE, AFFINE)


def _world(grid: Grid) -> np.ndarray:
    """(I, J, K, 3) coordinates of the voxel centres."""
    return nib.affines.apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1))


def _ramp(grid: Grid) -> np.ndarray:
    """A linear function of the world: what linear interpolation must carry over exactly."""
    return (_world(grid) @ np.array([0.7, -0.4, 0.25]) + 3).astype(np.float32)


def test_all_orientations_are_bit_exact_both_ways() -> None:
    data = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    names = [
        "".join(code) for pairs in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*pairs)
    ]
    assert len(set(names)) == 48
    for name in names:
        way = plan(GRID, name)
        assert "".join(nib.aff2axcodes(way.model.affine)) == name
        assert np.array_equal(way.back(way.forward(data)), data)
        moved = way.forward(_ramp(GRID))
        assert np.allclose(moved, _ramp(way.model), atol=1e-5)


@pytest.mark.parametrize("spacing", [(0.7, 0.5, 2.0), (1.7, 1.3, 4.5), (1.0, 0.8, 1.5)])
def test_a_map_returns_to_native_voxel_centres(spacing: tuple[float, float, float]) -> None:
    """A linear map on the model's grid is the same linear function of the world on the native one, borders apart."""
    way = plan(GRID, None, spacing)
    back = way.back(_ramp(way.model))
    inverse = np.linalg.inv(way.model.affine)
    places = nib.affines.apply_affine(inverse, _world(GRID))
    inner = ((places >= 0) & (places <= np.array(way.model.shape) - 1)).all(axis=-1)
    assert inner.mean() > 0.3
    assert np.allclose(back[inner], _ramp(GRID)[inner], atol=2e-5)
    assert way.model.spacing == pytest.approx(spacing)


def test_finer_grids_and_ways_back_agree_with_scipy() -> None:
    data = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    way = plan(GRID, None, (0.6, 0.5, 1.7))
    places = nib.affines.apply_affine(np.linalg.inv(AFFINE), _world(way.model))
    reference = ndimage.map_coordinates(data, np.moveaxis(places, -1, 0), order=1, mode="nearest")
    assert np.allclose(way.forward(data), reference, atol=1e-4)
    model = np.random.default_rng(2).normal(size=way.model.shape).astype(np.float32)
    places = nib.affines.apply_affine(np.linalg.inv(way.model.affine), _world(GRID))
    reference = ndimage.map_coordinates(model, np.moveaxis(places, -1, 0), order=1, mode="nearest")
    assert np.allclose(way.back(model), reference, atol=1e-4)


def test_coarser_grids_are_anti_aliased_and_cover_the_same_field() -> None:
    grid = Grid((12, 12, 12), np.eye(4))
    checker = (np.indices(grid.shape).sum(axis=0) % 2).astype(np.float32)
    coarse = resample(grid, (2, 2, 2)).forward(checker)
    assert coarse.shape == (6, 6, 6)
    assert np.abs(coarse[1:-1, 1:-1, 1:-1] - 0.5).max() < 1e-6
    target = resample(grid, (2, 3, 5)).target
    for corner in (grid, target):
        middle = corner.affine @ [*((np.array(corner.shape) - 1) / 2), 1]
        assert np.allclose(middle, [5.5, 5.5, 5.5, 1])


def test_the_same_spacing_is_left_alone() -> None:
    data = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    way = plan(GRID, None, (1.0, 0, 3.0))
    assert way.steps == ()
    assert np.array_equal(way.forward(data), data)


@pytest.mark.parametrize("size", [(5, 6, 3), (12, 14, 8), (4, 13, 7)])
@pytest.mark.parametrize("centred", [False, True])
def test_crop_and_pad(size: tuple[int, int, int], centred: bool) -> None:
    data = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    centre = (AFFINE @ [2, 7, 1, 1])[:3] if centred else None
    way = plan(GRID, None, size=size, centre=centre)
    there = way.forward(data)
    assert there.shape == size
    covered = way.covered()
    home = nib.affines.apply_affine(np.linalg.inv(AFFINE), _world(way.model))
    assert np.allclose(home, np.rint(home), atol=1e-9)
    inside = ((np.rint(home) >= 0) & (np.rint(home) < SHAPE)).all(axis=-1)
    assert np.array_equal(covered, inside)
    index = np.rint(home[inside]).astype(int)
    assert np.array_equal(there[inside], data[tuple(index.T)])
    back = way.back(there, fill=-9.0)
    reached = np.zeros(SHAPE, dtype=bool)
    reached[tuple(index.T)] = True
    assert np.array_equal(back, np.where(reached, data, -9.0).astype(np.float32))


def test_a_crop_far_away_reaches_nothing() -> None:
    way = plan(GRID, None, size=(3, 3, 3), centre=(500.0, 0, 0))
    assert not way.covered().any()
    assert (way.back(np.ones((3, 3, 3)), fill=2.0) == 2).all()


def test_the_whole_way_and_masks() -> None:
    way = plan(GRID, "LPS", (0.9, 1.1, 2.0), (16, 8, 12))
    assert way.model.shape == (16, 8, 12)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3:6, 4:7, 2:5] = True
    there = way.forward_mask(mask)
    assert not (there & ~way.covered()).any()
    place = _world(way.model)[there].mean(axis=0)
    assert np.allclose(place, _world(GRID)[mask].mean(axis=0), atol=0.4)
    assert np.argwhere(way.back(there.astype(np.float32)) > 0.5).mean(axis=0) == pytest.approx([4, 5, 3], abs=0.3)
    with pytest.raises(ValueError, match="model's grid"):
        way.back(np.zeros(SHAPE))
    with pytest.raises(ValueError, match="native grid"):
        way.forward(np.zeros((1, 2, 3)))


def test_units_of_the_file_are_millimetres_in_the_plan() -> None:
    volume = Volume(np.zeros((1, *SHAPE), np.float32), np.diag([500.0, 500, 500, 1]), 0, 1, "f", "x", "nifti", "micron")
    assert plan(volume, None, (1, 1, 1)).model.spacing == pytest.approx((1000, 1000, 1000))


def test_bad_requests() -> None:
    for orientation in ("RA", "RLS", "XYZ"):
        with pytest.raises(ValueError, match="orientation"):
            plan(GRID, orientation)
    with pytest.raises(ValueError, match="spacings"):
        resample(GRID, (1, -1, 1))
    with pytest.raises(ValueError, match="sizes"):
        crop_pad(GRID, (1, 0, 1))


def test_depth_first_is_the_screen() -> None:
    """LPS, depth first: rows run to the back of the patient, columns to its left, slices upwards."""
    way: Any = plan(GRID, "LPS")
    x, y, z = np.moveaxis(_world(GRID), -1, 0)
    for coordinate, axis, sign in ((x, 2, -1), (y, 1, -1), (z, 0, 1)):
        depth_first = to_depth_first(way.forward(coordinate))
        assert (np.sign(np.diff(depth_first, axis=axis)) == sign).all()
        assert np.array_equal(way.back(from_depth_first(depth_first)), coordinate.astype(np.float32))
