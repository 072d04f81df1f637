"""Where chains from noise start: results are neither pulled to 0 nor paid for twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.restoration import Mask, Restorer
from anodiff.restoration.solvers import SIGMA_FLOOR
from anodiff.restoration.start import PAIRS, ROUNDS, mean_image

STEPS = 3


class Lifted(nn.Module):
    """The denoiser of Gaussian data with a mean far from 0."""

    lift = 0.6

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.data(x.double() - self.lift, sigma.flatten()[0]) + self.lift).to(x.dtype)


@pytest.fixture
def low(gaussian_data: Any) -> Restorer:
    """Of a model that learnt levels up to a few deviations of its data."""
    restorer = Restorer(SimpleNamespace(denoiser=Lifted(gaussian_data)), device="cpu", network_batch=64, steps=40)
    restorer.sigma_max, restorer.sigma_min = 4.0, 0.02
    return restorer


def test_chains_start_about_the_mean_of_the_data(low: Restorer, gaussian_data: Any) -> None:
    """From noise about 0 they would end short of it."""
    found = low.generate(256, shape=gaussian_data.shape)
    truth = gaussian_data.mean.reshape(gaussian_data.shape).float() + Lifted.lift
    error = (found.images.mean(0) - truth).abs().max()
    spread = float(gaussian_data.covariance.diagonal().max()) ** 0.5
    assert float(error) < 4 * spread / 256**0.5
    assert found.nfe == 40


@pytest.mark.parametrize("solver", ["matched", "projected"])
def test_what_is_filled_in_is_not_pulled_to_zero(low: Restorer, gaussian_data: Any, solver: str) -> None:
    """Over many images, samples are on average the posterior's mean: from noise about 0 half a deviation less."""
    hole = torch.zeros(6, 6, dtype=torch.bool)
    hole[1:5, 1:5] = True
    clean = torch.cat([gaussian_data.draw(seed) for seed in range(48)])
    sigma_y = SIGMA_FLOOR if solver == "matched" else 0.0
    filled = low.inpaint((clean + Lifted.lift).float(), hole, solver=solver, samples=4).samples
    assert filled is not None
    operator, biases = Mask(hole), []
    for image, samples in zip(clean, filled, strict=True):
        mean, covariance = gaussian_data.posterior(operator, operator(image[None]), max(sigma_y, 1e-3))
        error = samples.double().mean(0).flatten() - Lifted.lift - mean
        biases.append((error / covariance.diagonal().sqrt())[hole.flatten()].mean())
    assert abs(float(torch.stack(biases).mean())) < 0.12


def test_the_mean_of_the_data_is_seen_at_the_highest_levels() -> None:
    """The brightness of a whole image has many times the deviation of a pixel's."""

    class Brightness(nn.Module):
        """Images of one brightness each, -0.6 on average with a deviation of 0.1, and a little grain."""

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            variance = sigma.reshape(-1, 1, 1, 1) ** 2
            centred = x + 0.6
            common = centred.mean((1, 2, 3), keepdim=True)
            pixels = x[0].numel()
            whole = common * (0.1**2 * pixels / (0.1**2 * pixels + variance))
            return -0.6 + whole + (centred - common) * (0.02**2 / (0.02**2 + variance))

    restorer = Restorer(SimpleNamespace(denoiser=Brightness()), device="cpu", network_batch=32, steps=40)
    assert restorer.sigma_max == 80
    drawn = restorer.generate(64, shape=(1, 128, 128)).images.mean((1, 2, 3))
    assert float(drawn.mean()) == pytest.approx(-0.6, abs=3 * 0.1 / 64**0.5)  # from noise about 0: -0.5
    assert float(drawn.std()) == pytest.approx(0.1, rel=0.25)


@pytest.mark.parametrize(
    "way",
    [lambda r: r.generate(1), lambda r: r.inpaint(torch.zeros(1, 1, 16, 16), torch.eye(16) > 0, solver="proximal")],
)
def test_the_mean_image_is_looked_for_once(tiny_recipe: dict[str, Any], way: Any) -> None:
    config = parse_config(tiny_recipe)
    model = DiffusionModel(config, build_denoiser(config))
    restorer = Restorer(model, device="cpu", precision="fp32", network_batch=4, steps=STEPS)
    before = restorer.denoiser.calls
    first = way(restorer)
    once = restorer.denoiser.calls - before
    assert torch.equal(way(restorer).images, first.images)
    assert once - (restorer.denoiser.calls - before - once) == 2 * PAIRS * ROUNDS
    assert first.nfe == STEPS


def test_the_mean_image_of_a_volume_takes_one_volume_at_a_time(tiny_recipe: dict[str, Any]) -> None:
    recipe = tiny_recipe | {"volume": {"mode": "patches", "patch": [8, 8, 8]}}
    config = parse_config(recipe)
    restorer = Restorer(DiffusionModel(config, build_denoiser(config)), device="cpu", precision="fp32", steps=STEPS)
    seen: list[int] = []
    whole = restorer.denoiser

    def spied(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(len(x))
        return whole(x, sigma)

    settings = (restorer.sigma_max, restorer.family, restorer.scale, torch.device("cpu"))
    one = mean_image(spied, (1, 8, 10, 8), *settings, whole.chain_rows)
    assert set(seen) == {1}
    torch.testing.assert_close(restorer.mean((1, 8, 10, 8)), one, rtol=0, atol=0)
    torch.testing.assert_close(mean_image(whole, (1, 8, 10, 8), *settings), one, rtol=1e-4, atol=1e-4)
