"""Planted anomalies: inside the foreground, of the stated sizes and signs, and a function of image, seed and kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anodiff.anomaly.planting import (
    ASPECT,
    BLOB_SPREADS,
    KINDS,
    LARGEST_SHARE,
    VISIBLE,
    _placed,
    _Scene,
    _stretch,
    kinds_for,
    plant,
)
from anodiff.errors import ConfigError

SIDE = 24


def scene(count: int, side: int = SIDE, dims: int = 2, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Smooth gradients with noise inside a disc (ball), 0 outside."""
    generator = torch.Generator().manual_seed(3)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side)] * dims, indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    noise = 0.1 * torch.randn(count, channels, *[side] * dims, generator=generator)
    return (0.4 * axes[0] + noise) * inside, inside.expand(count, *inside.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dims", "channels"), [(2, 1), (2, 3), (3, 1)])
def test_changes_lie_in_the_foreground_and_masks_where_they_are(kind: str, dims: int, channels: int) -> None:
    side = SIDE if dims == 2 else 14
    images, foreground = scene(8, side, dims, channels)
    planted, masks = plant(images, foreground, kind, seed=1)
    assert planted.shape == images.shape
    assert planted.dtype == torch.float32
    assert masks.shape == foreground.shape
    assert masks.dtype == torch.bool
    change = (planted - images).abs().amax(dim=1)
    assert not (change[~foreground] > 0).any()
    assert not masks[~foreground].any()
    assert masks.flatten(1).any(dim=1).all()
    for n in range(len(images)):
        # what is called anomalous changed; what is not called anomalous hardly did
        assert change[n][masks[n]].mean() > 3 * change[n][foreground[n] & ~masks[n]].mean()
        assert planted[n].isfinite().all()
        assert planted[n].abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_gets_the_same_anomaly_whatever_its_batch_mates(kind: str) -> None:
    images, foreground = scene(5)
    donors = scene(9)[0][5:]
    together, masks = plant(images, foreground, kind, seed=4, donors=donors)
    backwards, other_masks = plant(images.flip(0), foreground, kind, seed=4, donors=donors)
    assert torch.equal(together, backwards.flip(0))
    assert torch.equal(masks, other_masks.flip(0))
    alone, mask = plant(images[2:3], foreground[2:3], kind, seed=4, donors=donors)
    assert torch.equal(alone[0], together[2])
    assert torch.equal(mask[0], masks[2])
    other_seed, _ = plant(images, foreground, kind, seed=5, donors=donors)
    assert not torch.equal(other_seed, together)


def test_blobs_follow_the_polarity_and_the_stated_contrast() -> None:
    images, foreground = scene(40)
    spread = torch.stack([image[0][inside].std(correction=0) for image, inside in zip(images, foreground, strict=True)])
    signs = {}
    for polarity in ("both", "brighter", "darker"):
        planted, masks = plant(images, foreground, "blob", seed=2, polarity=polarity)
        change = (planted - images)[:, 0]
        height = change.flatten(1).abs().amax(dim=1) / spread
        assert (height > BLOB_SPREADS[0] * 0.7).all()
        assert (height < BLOB_SPREADS[1] * 1.001).all()
        signs[polarity] = {int(change[n][masks[n]].sum().sign()) for n in range(len(images))}
    assert signs == {"both": {-1, 1}, "brighter": {1}, "darker": {-1}}


@pytest.mark.parametrize("kind", ["foreign", "deform", "cutpaste"])
def test_with_a_declared_polarity_only_changes_of_its_sign_count(kind: str) -> None:
    images, foreground = scene(12)
    planted, masks = plant(images, foreground, kind, seed=6, polarity="brighter", donors=images.flip(0))
    _, either = plant(images, foreground, kind, seed=6, donors=images.flip(0))
    found = masks.flatten(1).any(dim=1)
    assert found.float().mean() > 0.8
    for n in found.nonzero()[:, 0].tolist():
        assert (planted - images)[n, 0][masks[n]].mean() > 0
    assert masks.sum() < 0.8 * either.sum()
    assert "texture" not in kinds_for("brighter")
    assert set(kinds_for("both")) == set(KINDS)


def test_sizes_run_from_a_few_pixels_to_half_of_the_foreground() -> None:
    images, foreground = scene(120, 32)
    _, masks = plant(images, foreground, "blob", seed=0)
    radii = (masks.flatten(1).sum(dim=1).double() / np.pi).sqrt()
    largest = float((LARGEST_SHARE * foreground[0].sum() / np.pi) ** 0.5)
    # log-uniform: about half below the geometric mean of the ends; the soft edge counts in part
    middle = (2.0 * largest) ** 0.5
    assert 0.3 < float((radii < middle).double().mean()) < 0.7
    assert radii.min() < 3
    assert 0.7 * largest < radii.max() < 1.5 * largest


@pytest.mark.parametrize("rank", [2, 3])
def test_shapes_run_from_round_to_four_times_as_long_as_wide(rank: int) -> None:
    rng = np.random.default_rng(0)
    axes = np.stack([_stretch(rng, rank) for _ in range(2000)])
    np.testing.assert_allclose(axes.prod(axis=1), 1.0)
    ratio = np.log(axes.max(axis=1) / axes.min(axis=1)) / np.log(ASPECT)
    assert ratio.max() <= 1 + 1e-9
    np.testing.assert_allclose(np.quantile(ratio, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)


@pytest.mark.parametrize("box", [False, True])
def test_a_region_is_as_large_and_as_long_as_it_was_drawn(box: bool) -> None:
    inside = np.ones((101, 101), dtype=bool)
    stretch = np.array([0.5, 2.0])
    half = 1.0 if not box else (np.pi / 4) ** 0.5
    for seed in range(20):
        image = np.zeros((1, 101, 101), np.float32)
        scene = _Scene(image, inside, 1.0, image, np.random.default_rng(seed), "both")
        region = _placed(scene, 12.0, stretch * half, box)
        found = np.argwhere(region.distance < 1)
        if found.min() == 0 or found.max() == 100:
            continue  # cut by the border
        assert len(found) == pytest.approx(np.pi * 12**2, rel=0.05)
        long, short = np.sqrt(np.linalg.eigvalsh(np.cov(found.T))[::-1])
        assert long / short == pytest.approx(4.0, rel=0.06)
        assert region.shortest == pytest.approx(6.0 * half)


def test_nothing_is_torn_by_a_deformation() -> None:
    """A ramp stays monotonic where it is only moved: dx'/dx = 1 - d'(x) > 0."""
    ramp = torch.linspace(-0.9, 0.9, 40).expand(1, 1, 40, 40).contiguous()
    for seed in range(20):
        planted, masks = plant(ramp, None, "deform", seed=seed)
        assert masks.any()
        assert (planted[0, 0].diff(dim=1) > -1e-6).all()


def test_texture_keeps_the_local_mean_and_changes_the_detail() -> None:
    images, foreground = scene(20, 32)
    planted, masks = plant(images, foreground, "texture", seed=3)
    for n in range(len(images)):
        if masks[n].sum() < 80:
            continue
        change = (planted - images)[n, 0][masks[n]]
        assert change.mean().abs() < 0.35 * change.std()


def test_where_nothing_can_be_planted_the_image_comes_back() -> None:
    images, foreground = scene(2)
    empty = torch.zeros_like(foreground)
    for kind in KINDS:
        planted, masks = plant(images, empty, kind)
        assert torch.equal(planted, images)
        assert not masks.any()
    flat = torch.full((1, 1, 16, 16), 0.25)
    for kind in ("foreign", "texture", "deform", "cutpaste"):  # of one value everywhere: nothing to see
        planted, masks = plant(flat, None, kind)
        assert not masks.any()
        assert torch.equal(planted, flat)
    planted, masks = plant(flat, None, "blob")
    assert masks.any()
    assert (planted - flat).abs().amax() > VISIBLE * 0.02


def test_a_misspelt_kind_is_put_right() -> None:
    images, foreground = scene(1)
    with pytest.raises(ConfigError, match="did you mean 'blob'"):
        plant(images, foreground, "blop")
