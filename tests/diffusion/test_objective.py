"""Training objectives: strata, distributions of sigma, weights and the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anodiff.diffusion import (
    Denoiser,
    Fixed,
    LogNormal,
    LogUniform,
    UniformStep,
    denoising_loss,
    draw_sigma,
    loss_weight,
    make_schedule,
    sigma_distribution,
    stratified_uniform,
    within_foreground,
)
from anodiff.diffusion.denoiser import preconditioning
from anodiff.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_every_stratum_is_drawn_once(n: int) -> None:
    u = stratified_uniform(n, generator())
    assert u.dtype == torch.float64
    assert torch.equal((u * n).floor().sort().values, torch.arange(n, dtype=torch.float64))
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert not torch.equal(u, stratified_uniform(n, generator(1)))


def test_ranks_share_one_global_batch() -> None:
    whole = stratified_uniform(12, generator())
    parts = [stratified_uniform(4, generator(), rank, world=3) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    single, double = generator(), generator()
    stratified_uniform(12, single)
    stratified_uniform(6, double, rank=1, world=2)
    assert torch.equal(single.get_state(), double.get_state())


def test_every_place_in_the_batch_is_uniform() -> None:
    state = generator()
    first = torch.stack([stratified_uniform(4, state)[0] for _ in range(4000)])
    assert float(first.mean()) == pytest.approx(0.5, abs=4.5 / math.sqrt(12 * 4000))
    assert float(first.var()) == pytest.approx(1 / 12, rel=0.08)


def test_distributions_have_the_moments_they_name() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logs = LogNormal(-1.2, 1.2).quantile(u).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-6)
    assert float(logs.std()) == pytest.approx(1.2, abs=1e-3)
    logs = LogUniform(0.01, 10).quantile(u).log()
    assert float(logs.std()) == pytest.approx(math.log(1000) / math.sqrt(12), rel=1e-4)
    assert (float(logs.min().exp()), float(logs.max().exp())) == pytest.approx((0.01, 10), rel=1e-3)
    for distribution in (LogNormal(), LogUniform(), UniformStep(make_schedule("vp-linear"))):
        edges = distribution.quantile(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
        assert bool(torch.isfinite(edges).all())
        assert bool((edges > 0).all())


def test_uniform_step_takes_every_step_equally_often() -> None:
    schedule = make_schedule("vp-cosine", 50)
    sigmas = draw_sigma(UniformStep(schedule), stratified_uniform(500, generator()))
    assert sigmas.dtype == torch.float64
    assert torch.equal(sigmas.sort().values, schedule.sigmas.repeat_interleave(10))
    part = draw_sigma(UniformStep(schedule, 3, 7), stratified_uniform(50, generator()))
    assert torch.equal(part.sort().values, schedule.sigmas[2:7].repeat_interleave(10))


def test_weights_are_the_losses_of_the_predictions() -> None:
    """w(sigma) (D - x_0)^2 is the squared error of the named prediction, by the definition of the prediction."""
    torch.manual_seed(0)
    sigma = torch.logspace(-2, 1, 20, dtype=torch.float64)
    clean, noise, denoised = torch.randn(3, 20, dtype=torch.float64)
    x, alpha = clean + sigma * noise, (1 + sigma**2).rsqrt()
    error = (denoised - clean) ** 2
    eps_error = ((x - denoised) / sigma - noise) ** 2
    assert torch.allclose(loss_weight("eps", sigma) * error, eps_error)
    assert torch.allclose(loss_weight("x0", sigma) * error, error)
    v = alpha * noise - alpha * sigma * clean
    v_of_denoised = alpha * (x - denoised) / sigma - alpha * sigma * denoised
    assert torch.allclose(loss_weight("v", sigma) * error, (v - v_of_denoised) ** 2)
    _, c_out, _ = preconditioning("edm", sigma, 0.3)
    assert torch.allclose(loss_weight("edm", sigma, sigma_data=0.3), c_out**-2)
    snr = sigma**-2
    assert torch.equal(loss_weight("min-snr", sigma, gamma=5), torch.minimum(snr, torch.full_like(snr, 5)))


def test_loss_is_the_weighted_mean_square_of_each_image() -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 1, 4, 4)
    sigma = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    seen: list[Tensor] = []

    def denoiser(x: Tensor, level: Tensor) -> Tensor:
        seen.append(x)
        assert level is sigma
        return x.bfloat16()

    loss = denoising_loss(denoiser, clean, sigma, noise, weight)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    assert torch.allclose(seen[0], clean + sigma.float().view(3, 1, 1, 1) * noise)
    expected = weight.float() * sigma.float() ** 2 * noise.square().mean((1, 2, 3))
    assert torch.allclose(loss, expected, rtol=0.05)


def test_training_finds_the_exact_denoiser_of_gaussian_data() -> None:
    """Two numbers, a slope and an offset on x0 prediction at one level, must come to the closed form."""

    class Affine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(0.0))
            self.offset = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.slope * x + self.offset

    torch.manual_seed(0)
    network = Affine()
    denoiser = Denoiser(network, "x0")
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    sigma = torch.full((256,), 0.2, dtype=torch.float64)
    for _ in range(250):
        clean = 0.3 + 0.1 * torch.randn(256, 1, 2, 2)
        loss = denoising_loss(denoiser, clean, sigma, torch.randn_like(clean), loss_weight("eps", sigma)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gain = 0.1**2 / (0.1**2 + 0.2**2)
    assert network.slope.item() / math.sqrt(1.04) == pytest.approx(gain, abs=0.03)
    assert network.offset.item() == pytest.approx(0.3 * (1 - gain), abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigma_distribution("lognorm"), "did you mean 'lognormal'"),
        (lambda: sigma_distribution("lognormal", sigma=1), "sigma"),
        (lambda: sigma_distribution("uniform-t"), "needs a noise schedule"),
        (lambda: sigma_distribution("uniform-t", make_schedule("vp-linear"), last=1001), "last 1001"),
        (lambda: LogUniform(2, 1), "0 < sigma_min < sigma_max"),
        (lambda: loss_weight("min-snrr", torch.ones(1)), "did you mean 'min-snr'"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_distributions_by_name() -> None:
    schedule = make_schedule("vp-linear")
    assert sigma_distribution("lognormal", mean=-1, std=0.5) == LogNormal(-1, 0.5)
    assert sigma_distribution("loguniform", sigma_max=3) == LogUniform(0.002, 3)
    assert sigma_distribution("uniform-t", schedule, last=600) == UniformStep(schedule, 1, 600)


def test_a_fixed_level_is_the_only_one() -> None:
    levels = draw_sigma(sigma_distribution("fixed", sigma=0.4), stratified_uniform(9, generator()))
    assert levels.dtype == torch.float64
    assert levels.tolist() == [0.4] * 9
    for wrong in (0.0, math.inf):
        with pytest.raises(ConfigError, match="0 < sigma"):
            Fixed(wrong)


def test_noise_within_the_foreground_leaves_the_background_clean() -> None:
    """Background is within 5 % of each image's own range above its darkest value, whatever the channels."""
    clean = torch.full((2, 2, 6, 6), -0.8)
    clean[:, :, 2:5, 1:4] = 0.2
    clean[0, :, 0, 0] = -0.76  # 4 % of the range: still background
    clean[1, :, 0, 0] = -0.74
    noise = torch.randn(clean.shape, generator=generator())
    kept = within_foreground(noise, clean)
    inside = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    inside[:, :, 2:5, 1:4] = True
    inside[1, :, 0, 0] = True
    torch.testing.assert_close(kept, noise * inside)
