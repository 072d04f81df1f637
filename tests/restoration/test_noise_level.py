"""Noise levels found again, and stabilised noise against simulation with numpy's own Rician and Poisson numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anodiff.restoration.noise_level import (
    estimate_rician_sigma,
    estimate_sigma,
    round_levels,
    stabilise_poisson,
    stabilise_rician,
    unstabilise_poisson,
    unstabilise_rician,
)


def smooth(size: int = 64) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return (0.6 * torch.sin(4 * x + 3 * y))[None, None].double()


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_a_known_level_is_found(sigma: float) -> None:
    noise = torch.randn((3, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = estimate_sigma(smooth() + sigma * noise)
    torch.testing.assert_close(found, torch.full((3,), sigma, dtype=torch.float64), rtol=0.06, atol=0)


def test_a_constant_background_does_not_count() -> None:
    inside = torch.zeros(1, 64, 64, dtype=torch.bool)
    inside[:, 20:44, 20:44] = True
    noise = torch.randn((1, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = torch.where(inside[:, None], smooth() + 0.1 * noise, -1.0)
    assert float(estimate_sigma(image)) == 0
    assert float(estimate_sigma(image, inside)) == pytest.approx(0.1, rel=0.15)


def test_rician_level_comes_from_the_background() -> None:
    rng = np.random.default_rng(0)
    amplitude = np.zeros((64, 64))
    amplitude[16:48, 16:48] = 0.9
    magnitude = np.hypot(amplitude + 0.07 * rng.normal(size=(64, 64)), 0.07 * rng.normal(size=(64, 64)))
    image = torch.from_numpy(magnitude)[None, None] - 1
    inside = torch.from_numpy(amplitude > 0)[None]
    zero = torch.tensor([-1.0])
    found, told = estimate_rician_sigma(image, inside, zero)
    assert float(found) == pytest.approx(0.07, rel=0.05)
    assert told.tolist() == [True]
    blank = torch.where(inside[:, None], image, -1.0)
    found, told = estimate_rician_sigma(blank, inside, zero)
    assert float(found) == pytest.approx(0.07, rel=0.1)
    assert told.tolist() == [False]


def test_a_clipped_background_tells_nothing_and_padding_is_none() -> None:
    """The clip of a robust normalisation: 0.2 above magnitude 0 it hides all the noise, 0.05 above a part of it."""
    rng = np.random.default_rng(0)
    amplitude = np.zeros((64, 64))
    amplitude[16:48, 16:48] = 0.9
    magnitude = np.hypot(amplitude + 0.07 * rng.normal(size=(64, 64)), 0.07 * rng.normal(size=(64, 64)))
    inside = torch.from_numpy(amplitude > 0)[None]
    for clip, from_background in ((0.2, False), (0.05, True)):
        image = torch.from_numpy(magnitude - 1 - clip)[None, None].clamp(min=-1)
        found, told = estimate_rician_sigma(image, inside, torch.tensor([-1.0 - clip]))
        assert told.tolist() == [from_background]
        assert float(found) == pytest.approx(0.07, rel=0.1)
    image = torch.from_numpy(magnitude)[None, None] - 1
    image[..., :14, :] = -1.0  # as padding repeats a border
    image[..., -14:, :] = -1.0
    background = ~inside
    background[:, :14], background[:, -14:] = False, False
    found, told = estimate_rician_sigma(image, inside, torch.tensor([-1.0]), background)
    assert told.tolist() == [True]
    assert float(found) == pytest.approx(0.07, rel=0.1)


def test_rounded_levels_are_near_and_few() -> None:
    levels = torch.linspace(0.05, 0.1, 1000, dtype=torch.float64)
    rounded = round_levels(levels)
    assert float((rounded / levels).log2().abs().max()) <= 1 / 16 + 1e-9
    assert len(rounded.unique()) in (8, 9, 10)


@pytest.mark.parametrize("amplitude", [0.0, 0.7, 2.0, 5.0, 11.0, 30.0])
def test_rician_inverse_has_no_bias(amplitude: float) -> None:
    rng = np.random.default_rng(1)
    magnitude = np.hypot(amplitude + rng.normal(size=400_000), rng.normal(size=400_000))
    mean = stabilise_rician(torch.from_numpy(magnitude)).mean()
    assert float(unstabilise_rician(mean.reshape(1))) == pytest.approx(amplitude, abs=0.12 if amplitude == 0 else 0.03)
    if amplitude >= 5:
        assert float(stabilise_rician(torch.from_numpy(magnitude)).std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("mean", [0.5, 2.0, 10.0, 200.0])
def test_poisson_inverse_has_no_bias(mean: float) -> None:
    counts = torch.from_numpy(np.random.default_rng(2).poisson(mean, 400_000).astype(float))
    stabilised = stabilise_poisson(counts)
    assert float(unstabilise_poisson(stabilised.mean())) == pytest.approx(mean, rel=0.01, abs=0.02)
    if mean >= 10:
        assert float(stabilised.std()) == pytest.approx(1, abs=0.02)
