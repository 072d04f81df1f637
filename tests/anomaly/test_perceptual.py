"""Maps weighed by the distance of features: against scipy, numpy and the papers' formulas."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from anodiff.anomaly.perceptual import (
    FEATURE_SIGMA,
    FeatureDistance,
    anomalous_region,
    close,
    dilate,
    region_mask,
    upper_quantile,
)
from anodiff.errors import ConfigError

IMAGES = torch.rand(3, 2, 12, 15) * 2 - 1
OTHERS = (IMAGES + 0.3 * torch.randn_like(IMAGES)).clamp(-1, 1)


@pytest.fixture
def distance(convolutional_denoiser) -> FeatureDistance:
    denoiser = convolutional_denoiser(2)

    def features(x: Tensor, sigma: float) -> list[Tensor]:
        with torch.no_grad():
            return denoiser.features(x, torch.full((len(x),), sigma))

    return FeatureDistance(SimpleNamespace(features=features), IMAGES)


def cosine_distance(distance: FeatureDistance, image: Tensor, other: Tensor) -> np.ndarray:
    """Sum over resolutions of 1 - cos, by numpy, for one image; coarse ones repeated to the finest by scipy."""
    total = np.zeros(image.shape[1:])
    pairs = zip(
        distance.denoiser.features(image[None], FEATURE_SIGMA),
        distance.denoiser.features(other[None], FEATURE_SIGMA),
        strict=True,
    )
    for ours, theirs in pairs:
        a, b = ours[0].double().numpy(), theirs[0].double().numpy()
        cos = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0)).clip(1e-12)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(1 - cos)[None, None], image.shape[1:], mode="bilinear", align_corners=False
        )
        total += resized[0, 0].numpy()
    return total


@pytest.mark.parametrize("polarity", ["both", "brighter", "darker"])
def test_both_maps_are_those_of_the_papers(distance: FeatureDistance, polarity: str) -> None:
    relative, soft = distance.relative(OTHERS, polarity), distance.soft_mask(OTHERS, polarity)  # type: ignore[arg-type]
    for n in range(len(IMAGES)):
        d = (IMAGES[n] - OTHERS[n]).double().numpy()
        kept = {"both": np.abs(d), "brighter": d.clip(0), "darker": (-d).clip(0)}[polarity].mean(0)
        lpips = cosine_distance(distance, IMAGES[n], OTHERS[n])
        np.testing.assert_allclose(relative[n], lpips * kept / (lpips * kept).max(), atol=2e-5)
        loud = np.percentile(kept, 95, method="inverted_cdf")
        np.testing.assert_allclose(soft[n], lpips * (kept / loud).clip(0, 1), atol=2e-5)


def test_equal_images_are_at_no_distance(distance: FeatureDistance) -> None:
    assert float(distance.relative(IMAGES).abs().max()) == 0
    assert float(distance.soft_mask(IMAGES).abs().max()) == 0


def test_a_map_does_not_depend_on_batch_mates(distance: FeatureDistance) -> None:
    louder = torch.cat([OTHERS[:1], -IMAGES[1:]])
    assert torch.equal(distance.relative(OTHERS)[0], distance.relative(louder)[0])
    assert torch.equal(distance.soft_mask(OTHERS)[0], distance.soft_mask(louder)[0])


@pytest.mark.parametrize("shape", [(2, 20, 17), (2, 7, 9, 8), (2, 5, 6)])
@pytest.mark.parametrize("side", [1, 3, 7])
def test_morphology_is_scipys(shape: tuple[int, ...], side: int) -> None:
    maps = torch.rand(shape)
    size = (1, *[side] * (len(shape) - 1))
    dilated = ndimage.grey_dilation(maps.numpy(), size=size, mode="nearest")
    np.testing.assert_array_equal(dilate(maps, side), dilated)
    closed = ndimage.grey_closing(maps.numpy(), size=size, mode="nearest")
    np.testing.assert_array_equal(close(maps, side), closed)
    expected = (ndimage.grey_dilation(closed, size=size, mode="nearest") + maps.numpy()) / 2
    np.testing.assert_allclose(region_mask(maps, side), expected, atol=1e-7)


def test_the_loudest_share_is_the_region() -> None:
    maps = torch.rand(2, 20, 20)
    assert (upper_quantile(maps, 0.05).flatten() == maps.flatten(1).sort(dim=1).values[:, 379]).all()
    assert anomalous_region(maps, 0.05, 1).flatten(1).sum(1).tolist() == [20, 20]
    assert not anomalous_region(torch.zeros(1, 20, 20), 0.05, 3).any()


def test_a_denoiser_without_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="without features"):
        FeatureDistance(lambda x, sigma: x, IMAGES)
