"""Smoothing against scipy; sums and smoothing that do not know their batch mates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from anodiff.anomaly.smoothing import resize_linear, smooth_maps, smooth_spatial, tree_sum


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1001])
def test_tree_sum_is_the_sum(size: int) -> None:
    x = torch.randn(3, 5, size, dtype=torch.float64)
    torch.testing.assert_close(tree_sum(x), x.sum(-1))


def test_tree_sum_is_more_accurate_than_adding_in_order() -> None:
    x = torch.rand(32, 1 << 16)  # one sum in order may be lucky, 32 are not
    exact = x.double().sum(-1)
    in_order = torch.from_numpy(np.add.accumulate(x.numpy(), axis=1)[:, -1])
    assert (tree_sum(x) - exact).abs().mean() < 0.5 * (in_order - exact).abs().mean()


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("shape", [(2, 21, 33), (2, 7, 8, 9)])
def test_smoothing_is_scipys(width: float, shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape)
    ours = smooth_maps(maps, width).numpy()
    theirs = np.stack([ndimage.gaussian_filter(m.astype(np.float64), width, mode="reflect") for m in maps.numpy()])
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_smoothing_keeps_the_sum_of_a_map() -> None:
    maps = torch.randn(4, 16, 20, dtype=torch.float64)
    torch.testing.assert_close(smooth_maps(maps, 5.0).sum((1, 2)), maps.sum((1, 2)))


def test_width_zero_changes_nothing() -> None:
    maps = torch.randn(2, 8, 8)
    assert torch.equal(smooth_maps(maps, 0.0), maps)


def test_smoothing_within_the_foreground_ignores_what_lies_outside() -> None:
    foreground = torch.zeros(2, 16, 16, dtype=torch.bool)
    foreground[:, 4:12, 3:11] = True
    maps = torch.full((2, 16, 16), 3.0)
    loud = torch.where(foreground, maps, torch.full_like(maps, 1e3))
    smoothed = smooth_maps(loud, 2.0, foreground)
    torch.testing.assert_close(smoothed[foreground], maps[foreground])
    assert (smoothed[~foreground] == 0).all()


@pytest.mark.parametrize("with_foreground", [False, True])
def test_a_map_is_smoothed_alike_in_every_batch(with_foreground: bool) -> None:
    maps = torch.randn(33, 19, 23)
    inside = torch.rand(33, 19, 23) > 0.4 if with_foreground else None
    together = smooth_maps(maps, 2.5, inside)
    for size in (1, 7):
        for start in range(0, 33, size):
            cut = slice(start, start + size)
            alone = smooth_maps(maps[cut], 2.5, None if inside is None else inside[cut])
            assert torch.equal(alone, together[cut])


def test_sums_are_alike_in_every_batch() -> None:
    x = torch.randn(32, 4099)
    together = tree_sum(x)
    assert all(torch.equal(tree_sum(x[i : i + 1]), together[i : i + 1]) for i in range(32))
    assert torch.equal(tree_sum(x.flip(0)), together.flip(0))


@pytest.mark.parametrize(("source", "target"), [((8, 6), (16, 24)), ((9, 5), (20, 13)), ((8, 8), (8, 8))])
def test_resampling_is_bilinear(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *source)
    expected = torch.nn.functional.interpolate(x, target, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_linear(x, target), expected)


def test_resampling_is_trilinear() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    expected = torch.nn.functional.interpolate(x, (8, 9, 12), mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_linear(x, (8, 9, 12)), expected)


def test_truncation_sets_the_reach() -> None:
    impulse = torch.zeros(1, 41, 1)
    impulse[0, 20] = 1.0
    assert int((smooth_spatial(impulse, 2.0, [1], truncate=3.5) > 0).sum()) == 2 * 7 + 1
