"""Denoisers: the four wrappings of one estimator agree, with the predictions written as the papers define them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anodiff.diffusion import Denoiser, karras_grid, make_schedule, sample_dpmpp_2m
from anodiff.diffusion.denoiser import preconditioning
from anodiff.errors import ConfigError

SIGMA_DATA = 0.5


class Oracle(nn.Module):
    """A network that was trained to perfection: gives the asked prediction of the exact denoiser."""

    def __init__(self, data, prediction: str) -> None:
        super().__init__()
        self.data, self.prediction = data, prediction

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        assert c_noise.shape == scaled.shape[:1]
        sigma = (4 * c_noise.double()).exp().view(-1, *(1,) * (scaled.ndim - 1))
        if self.prediction == "edm":
            x = scaled * (sigma**2 + SIGMA_DATA**2).sqrt()
            clean = self.data.denoise(x, sigma)
            skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
            return (clean - skip * x) * (sigma**2 + SIGMA_DATA**2).sqrt() / (sigma * SIGMA_DATA)
        alpha = 1 / (1 + sigma**2).sqrt()  # x_t = alpha x_0 + sqrt(1 - alpha^2) eps
        clean = self.data.denoise(scaled / alpha, sigma)
        eps = (scaled - alpha * clean) / (1 - alpha**2).sqrt()
        return {"eps": eps, "x0": clean, "v": alpha * eps - (1 - alpha**2).sqrt() * clean}[self.prediction]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
@pytest.mark.parametrize("shape", [(5, 2, 6, 6), (5, 1, 3, 4, 4)])
def test_wrappings_of_one_denoiser_agree(prediction: str, shape: tuple[int, ...], mixture) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(Oracle(mixture, prediction), prediction, sigma_data=SIGMA_DATA)
    x = torch.randn(shape, dtype=torch.float64)
    for sigma in (0.01, 0.3, 2.0, 50.0):
        assert torch.allclose(denoiser(x, sigma), mixture.denoise(x, sigma), rtol=0, atol=1e-8)
    each = torch.tensor([0.01, 0.1, 0.5, 3.0, 20.0])
    expected = mixture.denoise(x, each.double().view(-1, *(1,) * (x.ndim - 1)))
    assert torch.allclose(denoiser(x, each), expected, rtol=0, atol=1e-5)
    for same in (0.7, torch.tensor(0.7), torch.full((5,), 0.7, dtype=torch.float64), torch.tensor([0.7])):
        assert torch.allclose(denoiser(x.float(), same), mixture.denoise(x, 0.7).float(), atol=2e-5)


def test_samplers_take_a_denoiser(mixture) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(Oracle(mixture, "v"), "v").eval()
    x = 2 * torch.randn(4, 1, 8, 8)
    grid = karras_grid(2, 0.02, 10)
    ours, exact = sample_dpmpp_2m(denoiser, x, grid), sample_dpmpp_2m(mixture.denoise, x, grid)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, exact, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
def test_preconditioning_keeps_the_network_at_unit_scale(prediction: str) -> None:
    """Karras et al. 2022, appendix B.6: unit-variance input, and for edm a unit-variance target, at every level."""
    std = SIGMA_DATA if prediction == "edm" else 1.0
    sigma = torch.logspace(-3, 3, 13, dtype=torch.float64)
    c_skip, c_out, c_in = preconditioning(prediction, sigma, SIGMA_DATA)
    assert torch.allclose(c_in**2 * (std**2 + sigma**2), torch.ones_like(sigma))
    if prediction in ("edm", "v"):
        target = ((1 - c_skip) ** 2 * std**2 + c_skip**2 * sigma**2) / c_out**2
        assert torch.allclose(target, torch.ones_like(sigma))


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.told: Tensor | None = None
        self.dtype: torch.dtype | None = None

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.told = c_noise
        out = self.conv(x)
        self.dtype = out.dtype
        return out

    def features(self, x: Tensor, c_noise: Tensor) -> list[Tensor]:
        return [x, c_noise]


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine"])
def test_timestep_is_the_position_in_the_table_counted_from_0(name: str) -> None:
    schedule = make_schedule(name)
    network = Recorder()
    denoiser = Denoiser(network, "eps", schedule=schedule, noise_input="timestep")
    timesteps = torch.tensor([0, 1, 250, 998, 999])
    denoiser(torch.zeros(5, 1, 4, 4), schedule.sigmas[timesteps])
    assert network.told is not None
    assert torch.allclose(network.told, timesteps.float(), rtol=0, atol=1e-4)
    between = (schedule.sigmas[250] * schedule.sigmas[251]).sqrt()
    denoiser(torch.zeros(3, 1, 4, 4), torch.stack([between, schedule.sigmas[0] / 9, schedule.sigmas[-1] * 9]))
    assert torch.allclose(network.told, torch.tensor([250.5, 0.0, 999.0]), rtol=0, atol=1e-3)


def test_sigma_0_gives_finite_numbers() -> None:
    for prediction in ("eps", "x0", "v", "edm"):
        denoiser = Denoiser(Recorder(), prediction)
        assert bool(torch.isfinite(denoiser(torch.randn(2, 1, 4, 4), 0.0)).all())


def test_clip_holds_in_evaluation_and_leaves_training_its_gradient() -> None:
    denoiser = Denoiser(Recorder(), "eps", clip=1.0)
    x = 9 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert denoiser.eval()(x, 0.1).abs().max().item() == 1
    assert denoiser.train()(x, 0.1).abs().max().item() > 1


def test_autocast_reaches_the_network_only_and_gradients_flow() -> None:
    network = Recorder()
    denoiser = Denoiser(network, "edm")
    x = torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = denoiser(x, torch.tensor([0.1, 1.0]))
    assert network.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    out.square().mean().backward()
    assert network.conv.weight.grad is not None
    assert float(network.conv.weight.grad.abs().sum()) > 0


def test_features_come_from_the_network_at_its_own_scale() -> None:
    x = torch.randn(2, 1, 8, 8)
    scaled, told = Denoiser(Recorder(), "eps").features(x, 2.0)
    assert torch.allclose(scaled, x / math.sqrt(5))
    assert torch.allclose(told, torch.full((2,), math.log(2) / 4))
    with pytest.raises(ConfigError, match="Identity network gives no encoder features"):
        Denoiser(nn.Identity(), "eps").features(x, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "score"}, "eps, x0, v, edm, found 'score'"),
        ({"noise_input": "t"}, "log_sigma, timestep, found 't'"),
        ({"noise_input": "timestep"}, "needs the schedule"),
        ({"sigma_data": 0}, "sigma_data must be positive"),
        ({"clip": -1}, "clip must be positive"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Denoiser(nn.Identity(), **options)


def test_sigma_of_another_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one per image \(2\), found 3"):
        Denoiser(Recorder(), "eps")(torch.zeros(2, 1, 4, 4), torch.ones(3))


def test_a_context_is_seen_unscaled_after_the_noisy_image() -> None:
    seen: list[torch.Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x[:, :1]

    x, context = torch.ones(2, 1, 3, 3), torch.full((2, 2, 3, 3), 7.0)
    denoiser = Denoiser(Spy(), "x0")
    assert torch.equal(denoiser.given(context)(x, 3.0), denoiser(x, 3.0, context))
    torch.testing.assert_close(seen[0][:, :1], x / 10**0.5)
    assert torch.equal(seen[0][:, 1:], context)
