"""Style transfer by law: bridges between Gaussians in closed form, and a patch distance that means what it says."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from anodiff.errors import ConfigError
from anodiff.restoration import Restorer, gaussian_blur
from anodiff.restoration.style import (
    EXEMPLAR_SIGMA,
    bridge_grid,
    content_similarity,
    style_distance,
    stylize,
)


class Gaussian(nn.Module):
    """The exact denoiser of independent pixels of N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return self.mean + (x - self.mean) * (self.std**2 / (self.std**2 + sigma**2))


def restorer(mean: float, std: float, **settings: Any) -> Restorer:
    model = SimpleNamespace(denoiser=Gaussian(mean, std))
    return Restorer(model, device="cpu", network_batch=3, **{"steps": 48, **settings})


DAY, NIGHT = (0.3, 0.4), (-0.5, 0.2)


@pytest.mark.parametrize("shape", [(4, 1, 12, 12), (2, 1, 4, 5, 6)])
def test_the_bridge_of_two_gaussians_is_the_known_map(shape: tuple[int, ...]) -> None:
    x = DAY[0] + DAY[1] * torch.randn(shape)
    day, night = restorer(*DAY), restorer(*NIGHT)
    found = stylize(day, x, target=night, cycle=True)
    low, high = day.sigma_min, day.sigma_max
    latent = DAY[0] + (x - DAY[0]) * math.hypot(DAY[1], high) / math.hypot(DAY[1], low)
    expected = NIGHT[0] + (latent - NIGHT[0]) * math.hypot(NIGHT[1], low) / math.hypot(NIGHT[1], high)
    torch.testing.assert_close(found.images, expected, rtol=0, atol=0.02)
    assert float(found.images.std()) == pytest.approx(NIGHT[1] / DAY[1] * float(x.std()), rel=0.02)
    assert found.back is not None
    assert float((found.back - x).abs().max()) < 0.03
    assert found.nfe == 8 * 48
    assert stylize(day, x, target=night).nfe == 4 * 48


def test_a_result_does_not_depend_on_its_batch_mates() -> None:
    x, style = torch.randn(4, 1, 12, 12), torch.randn(1, 1, 12, 12)
    model = restorer(*DAY, steps=3)
    both = [stylize(model, part, style=style).images for part in (x, x[3:])]
    assert torch.equal(both[0][3], both[1][0])


def test_the_anchor_keeps_the_low_frequencies_of_the_content() -> None:
    x = DAY[0] + DAY[1] * torch.randn(2, 1, 16, 16)
    blur = gaussian_blur(2.0)
    off = [
        float((blur(stylize(restorer(*DAY), x, target=restorer(*NIGHT), anchor_px=px).images) - blur(x)).abs().max())
        for px in (0.0, 2.0)
    ]
    assert off[0] > 0.5
    assert off[1] < 0.25 * off[0]


def texture(seed: int, n: int = 1) -> Tensor:
    """Fine stripes."""
    phase = torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * 6
    column = torch.arange(24.0).expand(24, 24)
    return 0.6 * torch.sin(column * 1.5 + phase)


def test_an_exemplars_patches_are_imitated_and_the_more_with_weight() -> None:
    x, style = 0.3 * torch.randn(2, 1, 24, 24), texture(0)
    model = restorer(0.0, 0.5, steps=8)
    found = {weight: stylize(model, x, style=style, weight=weight).images for weight in (0.0, 0.3, 1.0)}
    distances = {weight: float(style_distance(images, style).mean()) for weight, images in found.items()}
    before = float(style_distance(x, style).mean())
    print({"input": before, **distances})
    assert distances[0.0] == pytest.approx(before, rel=0.1)
    assert distances[1.0] < distances[0.3] < distances[0.0]
    assert distances[1.0] < 0.7 * before


def test_distance_is_what_pixels_have_to_change() -> None:
    images = torch.randn(2, 3, 16, 16)
    for change in (0.1, -0.4):
        assert style_distance(images[:1] + change, images[:1]).item() == pytest.approx(abs(change), rel=1e-4)
    assert style_distance(images[:1], images[:1]).item() == pytest.approx(0, abs=1e-6)
    assert style_distance(images[:1].flip(3), images[:1]).item() < style_distance(images[:1], 2 * images[:1]).item()


def test_distance_is_that_of_sorted_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """With patches of one grey pixel at one scale it is the Wasserstein-2 distance of the values."""
    monkeypatch.setattr("anodiff.restoration.style.PATCH", 1)
    monkeypatch.setattr("anodiff.restoration.style.SCALES", 1)
    a, b = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 6, 6)
    values = [np.sort(each.flatten().numpy()) for each in (a, b)]
    expected = math.sqrt(float(np.mean((values[0] - values[1]) ** 2)))
    assert style_distance(a, b).item() == pytest.approx(expected, rel=1e-5)
    shifted = style_distance(a + 2, torch.cat([a, a]))  # pooled styles: twice the patches, the same quantiles
    assert shifted.item() == pytest.approx(wasserstein_distance((a + 2).flatten(), a.flatten()), rel=1e-2)


def test_similarity_is_one_for_equals_and_falls_with_noise() -> None:
    x = texture(1, 2)
    same, noisy = content_similarity(x, x), content_similarity(x + 0.3 * torch.randn_like(x), x)
    assert same == pytest.approx([1, 1])
    assert max(noisy) < 0.9


def test_levels_are_those_both_models_know() -> None:
    day, night = restorer(*DAY), restorer(*NIGHT)
    night.sigma_max, day.sigma_min = 5.0, 0.1
    grid = bridge_grid(day, night, None)
    assert (float(grid[0]), float(grid[-1]), len(grid)) == (0.1, 5.0, 49)
    assert float(bridge_grid(day, day, None)[-1]) == EXEMPLAR_SIGMA
    with pytest.raises(ConfigError, match="up to 5, which both models know, found 9"):
        bridge_grid(day, night, 9.0)


def test_refusals() -> None:
    x, model = torch.randn(1, 1, 8, 8), restorer(*DAY)
    with pytest.raises(ConfigError, match="found none"):
        stylize(model, x)
    with pytest.raises(ConfigError, match="found both"):
        stylize(model, x, target=model, style=x)
    with pytest.raises(ConfigError, match="one image of shape"):
        stylize(model, x, style=torch.randn(1, 1, 9, 8))
    with pytest.raises(ConfigError, match="weight and an anchor"):
        stylize(model, x, style=x, weight=-1)
