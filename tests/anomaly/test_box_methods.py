"""pDDPM by its formula (Behrendt et al. 2023): box by box, the rest kept, in numpy and scipy."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from anodiff.anomaly import AnomalyDetector
from anodiff.anomaly.presets import preset
from anodiff.diffusion import image_keys, make_schedule, sample_noise

IMAGES = torch.rand(3, 1, 12, 10, generator=torch.Generator().manual_seed(3)) * 2 - 1
#: of the square whose mean the denoiser takes
SIDE = 5


class Mean(nn.Module):
    """D = the mean of SIDE x SIDE pixels around, less with more noise: a pixel depends on what is outside its box."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
        padded = nn.functional.pad(x, [SIDE // 2] * 4, mode="replicate")
        return nn.functional.avg_pool2d(padded, SIDE, stride=1) / (1 + 0.1 * level) + 0.01 * level


def mean_by_hand(x: np.ndarray, sigma: float) -> np.ndarray:
    """`Mean` of one channel (H, W), float64."""
    return ndimage.uniform_filter(x, SIDE, mode="nearest") / (1 + 0.1 * sigma) + 0.01 * sigma


def by_hand(image: np.ndarray, noise: np.ndarray, sigma: float) -> np.ndarray:
    """Four boxes of half a side each: noise inside the box alone, one call, and of its answer the box."""
    height, width = image.shape
    found = np.full_like(image, np.nan)
    for top, left in product((0, height // 2), (0, width // 2)):
        box = (slice(top, top + height // 2), slice(left, left + width // 2))
        shown = image.copy()
        shown[box] += sigma * noise[box]
        found[box] = mean_by_hand(shown, sigma)[box]
    return found


def test_the_level_is_that_of_step_500() -> None:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps is sqrt(a) (x_0 + sigma eps), a = prod (1 - beta) of the linear table."""
    kept = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:500])
    (sigma,) = preset("pddpm").levels
    assert sigma == pytest.approx(np.sqrt((1 - kept) / kept), rel=1e-3)
    assert sigma == pytest.approx(float(make_schedule("vp-linear").sigmas[499]), rel=1e-3)


@pytest.mark.parametrize("name", ["pddpm", "mddpm"])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_pddpm_noises_box_by_box_and_stitches(name: str, batch: int) -> None:
    settings = preset(name, noise_scale="published")
    detector = AnomalyDetector(SimpleNamespace(denoiser=Mean()), settings, device="cpu", network_batch=batch)
    result = detector(IMAGES)
    (sigma,) = settings.levels
    noises = sample_noise("simplex", image_keys(IMAGES, 0), tuple(IMAGES.shape[1:]), level=0, scale="published")
    expected = np.stack(
        [
            by_hand(image.double().numpy(), noise.double().numpy(), sigma)
            for image, noise in zip(IMAGES[:, 0], noises[:, 0], strict=True)
        ]
    )
    maps = np.abs(IMAGES[:, 0].double().numpy() - expected)
    np.testing.assert_allclose(result.reconstructions[:, 0].numpy(), expected, atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(result.maps.numpy(), maps, atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(result.scores.numpy(), maps.mean(axis=(1, 2)), atol=2e-6, rtol=1e-5)
    assert settings.nfe_for((12, 10)) == 4
    # one call on noise everywhere is another method
    everywhere = np.stack(
        [
            mean_by_hand(image.double().numpy() + sigma * noise.double().numpy(), sigma)
            for image, noise in zip(IMAGES[:, 0], noises[:, 0], strict=True)
        ]
    )
    assert np.abs(everywhere - expected).max() > 0.1


@pytest.mark.parametrize("box", [4, 7])
def test_boxes_of_another_side_are_cut_at_the_border(box: int) -> None:
    settings = preset("pddpm", noise_scale="published", box=box)
    result = AnomalyDetector(SimpleNamespace(denoiser=Mean()), settings, device="cpu", network_batch=4)(IMAGES[:1])
    (sigma,) = settings.levels
    noise = sample_noise("simplex", image_keys(IMAGES[:1], 0), (1, 12, 10), level=0, scale="published")
    image, noise = (each[0, 0].double().numpy() for each in (IMAGES[:1], noise))
    expected = np.full_like(image, np.nan)
    for top, left in product(range(0, 12, box), range(0, 10, box)):
        inside = np.zeros(image.shape, bool)
        inside[top : top + box, left : left + box] = True
        expected[inside] = mean_by_hand(np.where(inside, image + sigma * noise, image), sigma)[inside]
    np.testing.assert_allclose(result.reconstructions[0, 0].numpy(), expected, atol=2e-6, rtol=1e-5)
