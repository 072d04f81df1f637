"""Orientation and spacing beside MONAI's transforms: the same world, the same values where both are defined alike."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.orientations import aff2axcodes

from anodiff.data.volumes.geometry import Grid, plan

SHAPE = (9, 11, 8)
#: permuted and flipped storages, the oblique ones among them
STORED = ("RAS", "LPS", "LPI", "SAR", "PIL", "ARS", "IPL")
#: of values of 0 to 1: MONAI resamples through float32 sampling coordinates of -1 to 1
TOLERANCE = 2e-4
#: a mean over a fractional number of voxels of 1 to 2 mm is of a place that is so far off
ALIASING_MM = 0.15


def affine_of(code: str, oblique: bool, sizes: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> np.ndarray:
    """An affine whose axes point to ``code``, for an oblique one up to 25 degrees off, the origin moved."""
    a, b = np.deg2rad((20, -15) if oblique else (0, 0))
    about_k = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_i = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    directions = np.zeros((3, 3))
    for column, letter in enumerate(code):
        row = next(n for n, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        directions[row, column] = 1.0 if letter in "RAS" else -1.0
    affine = np.eye(4)
    affine[:3, :3] = about_i @ about_k @ directions @ np.diag(sizes)
    affine[:3, 3] = [-30.0, 12.5, 7.0]
    assert "".join(aff2axcodes(affine)) == code
    return affine


def smooth(shape: tuple[int, int, int]) -> np.ndarray:
    """Values from 0 to 1 without a jump, unlike along every axis."""
    i, j, k = np.indices(shape)
    return (0.5 + 0.25 * np.sin(i / 2.1) + 0.15 * np.cos(j / 1.7) + 0.1 * np.sin(k)).astype(np.float32)


def meta(values: np.ndarray, affine: np.ndarray) -> Any:
    from monai.data import MetaTensor

    return MetaTensor(torch.from_numpy(values.copy())[None], affine=torch.from_numpy(affine))


def world(affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """(3, n) voxels -> world mm."""
    return affine[:3, :3] @ voxels + affine[:3, 3:]


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("target", ["RAS", "LPS", "LPI"])
def test_orientation_is_monais_to_the_bit(target: str, oblique: bool) -> None:
    """Values, shape, affine, and the way back, of every storage."""
    from monai.transforms import Orientation

    for code in STORED:
        values, affine = smooth(SHAPE), affine_of(code, oblique)
        theirs = Orientation(axcodes=target)(meta(values, affine))
        way = plan(Grid(SHAPE, affine), target)
        ours = way.forward(values)
        assert np.array_equal(ours, theirs[0].numpy()), code
        np.testing.assert_allclose(way.model.affine, theirs.affine.numpy(), atol=1e-9)
        assert np.array_equal(way.back(ours), values)


def spaced(affine: np.ndarray, values: np.ndarray, spacing: tuple[float, ...], **options: Any) -> Any:
    from monai.transforms import Spacing

    return Spacing(pixdim=spacing, mode="bilinear", padding_mode="border", **options)(meta(values, affine))


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_spacing_is_monais_where_both_keep_the_field_of_view(oblique: bool, align_corners: bool) -> None:
    """A spacing that divides the sides: MONAI's ``scale_extent`` is our grid, and the values agree border included.

    Without ``scale_extent`` MONAI keeps the centre of the first voxel instead. ``align_corners`` says how it counts
    internally, and changes nothing here.
    """
    spacing = (0.5, 0.75, 1.0)
    for code in STORED:
        affine, values = affine_of(code, oblique), smooth(SHAPE)
        way = plan(Grid(SHAPE, affine), None, spacing)
        theirs = spaced(affine, values, spacing, align_corners=align_corners, scale_extent=True)
        assert tuple(theirs.shape[1:]) == way.model.shape == tuple(2 * side for side in SHAPE)
        np.testing.assert_allclose(theirs.affine.numpy(), way.model.affine, atol=1e-5)
        np.testing.assert_allclose(way.forward(values), theirs[0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("spacing", [(0.6, 0.9, 0.7), (1.0, 0.5, 0.8), (1.0, 1.0, 1.0)])
def test_every_voxel_has_monais_value_at_its_world_coordinate(spacing: tuple[float, ...]) -> None:
    """Any finer spacing: our grid is another lattice than that of MONAI's ``Spacing``, so its sampler is given ours."""
    from monai.transforms import SpatialResample

    sample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=False, dtype=torch.float64)
    for code, oblique in itertools.product(STORED, (False, True)):
        affine, values = affine_of(code, oblique), smooth(SHAPE)
        way = plan(Grid(SHAPE, affine), "RAS", spacing)
        theirs = sample(
            meta(values, affine), dst_affine=torch.from_numpy(way.model.affine), spatial_size=way.model.shape
        )
        np.testing.assert_allclose(way.forward(values), theirs[0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("oblique", [False, True])
def test_a_field_of_world_coordinates_stays_one_under_both(oblique: bool) -> None:
    """mm along a direction, which linear interpolation keeps: each transform's voxels hold the world of their affine,
    so a place has one value whatever the lattice. Beyond the outermost voxel centres both repeat the border.
    """
    from monai.transforms import Orientation

    direction, scale = np.array([0.4, -0.7, 0.2]), 40.0
    for code, spacing in itertools.product(STORED, [(0.6, 0.9, 0.7), (2.1, 2.4, 3.3)]):
        affine = affine_of(code, oblique)

        def field(grid_affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
            voxels = np.indices(shape).reshape(3, -1)
            return (direction @ world(grid_affine, voxels) / scale).reshape(shape)

        values = field(affine, SHAPE).astype(np.float32)
        way = plan(Grid(SHAPE, affine), "RAS", spacing)
        turned = Orientation(axcodes="RAS")(meta(values, affine))
        theirs = spaced(turned.affine.numpy(), turned[0].numpy(), spacing)
        coarser = max(spacing) > 2
        for found, own, tolerance in (
            (way.forward(values), way.model.affine, ALIASING_MM / scale if coarser else TOLERANCE),
            (theirs[0].numpy(), theirs.affine.numpy(), TOLERANCE),
        ):
            expected = field(own, found.shape)
            into = np.linalg.inv(affine) @ own
            places = world(into, np.indices(found.shape).reshape(3, -1)).reshape(3, *found.shape)
            # a coarser voxel of ours is a mean over its width, which needs as much room at the border
            margin = np.abs(into[:3, :3]).max(axis=1).clip(1) - 1
            last = np.array(SHAPE) - 1
            low, high = (each.reshape(3, 1, 1, 1) - 1e-6 * sign for each, sign in ((margin, 1), (last - margin, -1)))
            inside = ((places >= low) & (places <= high)).all(axis=0)
            assert inside.mean() > 0.1
            np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=tolerance)


def test_a_coarser_grid_is_the_mean_of_what_it_covers_where_monai_takes_points() -> None:
    """Stripes of one voxel, seen three times coarser: MONAI's samples are stripes again, ours their mean."""
    values = np.zeros((12, 6, 6), np.float32)
    values[::2] = 1
    affine = np.eye(4)
    ours = plan(Grid(values.shape, affine), None, (3.0, 1.0, 1.0)).forward(values)
    theirs = spaced(affine, values, (3.0, 1.0, 1.0), scale_extent=True)[0].numpy()
    assert ours.shape == theirs.shape == (4, 6, 6)
    # a triangle of half-width 3 about a stripe's middle: weights (0, 1, 2, 3, 2, 1, 0) / 9
    for found, middle in zip(ours[1:3, 0, 0], (4, 7), strict=True):
        weights = (3 - np.abs(np.arange(12) - middle)).clip(0) / 9
        assert found == pytest.approx(float(weights @ values[:, 0, 0]), abs=1e-6)
    assert abs(ours[1:3] - 0.5).max() < 0.1
    assert abs(theirs[1:3] - 0.5).min() > 0.4


def test_ours_goes_back_to_the_native_grid() -> None:
    """What MONAI's ``Invertd`` does by the record in a tensor, a plan does by itself, to the native grid."""
    for code in STORED:
        affine, values = affine_of(code, True), smooth(SHAPE)
        way = plan(Grid(SHAPE, affine), "RAS", (0.5, 0.5, 0.5), (30, 30, 40))
        back = way.back(way.forward(values))
        assert back.shape == SHAPE
        assert np.abs(back - values)[1:-1, 1:-1, 1:-1].max() < 0.1
