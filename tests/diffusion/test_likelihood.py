"""Likelihood on Gaussian data, where the truth is known: in nats a dimension, in float64, for every forward process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from anodiff.diffusion.likelihood import (
    EXACT,
    Likelihood,
    continuous_bound,
    decoder_variances,
    discrete_bound,
    flow_likelihood,
    prior_nats,
    reconstruction_nats,
    standardised,
)
from anodiff.diffusion.samplers import step_variances
from anodiff.diffusion.schedule import log_grid, make_schedule
from anodiff.errors import ConfigError

MEAN, STD = 0.3, 0.1
LOW, HIGH = 0.002, 80.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(n: int = 8, side: int = 16) -> Tensor:
    return MEAN + STD * torch.randn(n, 1, side, side, dtype=torch.float64)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of N(MEAN, STD^2)."""
    return MEAN + (x - MEAN) * (STD**2 / (STD**2 + float(sigma) ** 2))


def truth(x: Tensor) -> Tensor:
    """-ln p in nats an image."""
    return torch.from_numpy(-norm.logpdf(x.numpy(), MEAN, STD)).flatten(1).sum(1)


def drawn(x: Tensor, seed: int = 7) -> Callable[[int], Tensor]:
    def noise(draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return noise


def off(found: Likelihood, x: Tensor) -> float:
    """Mean excess over the truth, in nats a dimension."""
    return float((found.nats - truth(x)).mean()) / x[0].numel()


@pytest.mark.parametrize("preserving", [True, False])
def test_the_continuous_bound_is_the_truth(preserving: bool) -> None:
    x = images(48, 48)
    found = continuous_bound(denoise, x, LOW, HIGH, 64, drawn(x), preserving=preserving)
    assert abs(off(found, x)) < 0.01
    assert found.calls == 65
    assert found.terms.shape == (48, 64)
    torch.testing.assert_close(found.terms.sum(1), found.chain)


@pytest.mark.parametrize(("method", "steps", "tolerance"), [("heun", 64, 5e-3), ("rk4", 24, 2e-3)])
@pytest.mark.parametrize("preserving", [True, False])
def test_the_flow_is_the_truth_for_each_image(method: str, steps: int, tolerance: float, preserving: bool) -> None:
    x = images(4, 8)
    found = flow_likelihood(denoise, x, LOW, HIGH, steps, drawn(x), preserving=preserving, method=method)
    assert float((found.nats - truth(x)).abs().max()) / 64 < tolerance
    exact = flow_likelihood(denoise, x, LOW, HIGH, steps, drawn(x), preserving=preserving, method=method, probes=EXACT)
    torch.testing.assert_close(found.nats, exact.nats)  # signs have no error where J is diagonal
    assert exact.gradients == 64 * found.gradients


def test_correlated_data_by_exact_trace_and_by_signs() -> None:
    """A covariance that is not diagonal: the exact trace meets the truth, random signs meet it in the mean."""
    grid = torch.cartesian_prod(*[torch.arange(4, dtype=torch.float64)] * 2)
    covariance = 0.2 * torch.exp(-(torch.cdist(grid, grid) ** 2) / 4) + 0.01 * torch.eye(16, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)

    def smooth(x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) @ vectors * (values / (values + float(sigma) ** 2)) @ vectors.T).reshape(x.shape)

    law = torch.distributions.MultivariateNormal(torch.zeros(16, dtype=torch.float64), covariance)
    x = law.sample((6,)).reshape(6, 1, 4, 4)
    expected = -law.log_prob(x.flatten(1))
    settings = {"preserving": True, "method": "rk4"}
    exact = flow_likelihood(smooth, x, LOW, HIGH, 32, drawn(x), probes=EXACT, **settings)
    assert float((exact.nats - expected).abs().max()) / 16 < 1e-3
    signs = [flow_likelihood(smooth, x, LOW, HIGH, 16, drawn(x, s), probes=4, **settings).nats for s in range(6)]
    assert abs(float((torch.stack(signs) - expected).mean())) / 16 < 0.05


@pytest.mark.parametrize("name", ["vp-linear", "additive"])
def test_the_discrete_bound_is_above_the_truth_and_nearer_with_finer_levels(name: str) -> None:
    x, schedule = images(4, 40), make_schedule(name, 1000)
    found = [
        off(discrete_bound(denoise, x, levels, drawn(x), preserving=schedule.is_variance_preserving), x)
        for levels in (schedule.sigmas, log_grid(schedule.sigma_max, LOW, 1000, final_zero=False).flip(0))
    ]
    print(f"{name}: 1000 steps {found[0]:.3f}, 1000 log steps {found[1]:.3f} nats a dimension above the truth")
    assert found[0] > 2 * found[1] > 0
    assert found[1] < 0.05


def optimal_share(a: float, b: float, preserving: bool) -> float:
    """Where the true variance of x_b given x_a lies between small and large: Gaussian data reverse as Gaussians."""
    left = STD**2 * a * a / (STD**2 + a * a)  # variance of x_0 given x_a
    if b == 0:
        small, large = decoder_variances(a)
        return math.log(left / small) / math.log(large / small)
    small, large = step_variances(a, b, preserving)
    return math.log((small + ((a * a - b * b) / (a * a)) ** 2 * left) / small) / math.log(large / small)


@pytest.mark.parametrize("preserving", [True, False])
def test_with_the_right_variance_ten_steps_lose_nothing(preserving: bool) -> None:
    x = images(32, 64)
    levels = log_grid(HIGH, 0.02, 10, final_zero=False).flip(0).tolist()
    below = dict(zip(levels, [0.0, *levels], strict=False))

    def learned(noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        share = optimal_share(float(sigma), below[float(sigma)], preserving)
        return denoise(noisy, sigma), torch.full_like(noisy, share)

    fixed = discrete_bound(denoise, x, levels, drawn(x), preserving=preserving)
    right = discrete_bound(denoise, x, levels, drawn(x), preserving=preserving, learned=learned)
    assert off(fixed, x) > 0.3
    assert abs(off(right, x)) < 0.01


def test_share_zero_is_the_small_variance() -> None:
    x, levels = images(2), [0.1, 0.5, 2.0, 9.0]
    fixed = discrete_bound(denoise, x, levels, drawn(x), preserving=True)
    zero = discrete_bound(
        denoise, x, levels, drawn(x), preserving=True, learned=lambda n, s: (denoise(n, s), torch.zeros_like(n))
    )
    torch.testing.assert_close(fixed.chain, zero.chain)


def test_large_variance_is_the_papers_beta() -> None:
    """In the paper's units x_t = alpha_t (x_0 + sigma_t n): posterior variance and beta of Ho et al., section 2."""
    vp = make_schedule("vp-linear", 50)
    t = 20
    a, b, alpha = float(vp.sigmas[t]), float(vp.sigmas[t - 1]), float(vp.alphas[t - 1])
    small, large = step_variances(a, b, True)
    beta, abar, before = float(vp.betas[t]), float(vp.alphas[t] ** 2), alpha**2
    assert large * alpha**2 == pytest.approx(beta)
    assert small * alpha**2 == pytest.approx((1 - before) / (1 - abar) * beta)
    additive = make_schedule("additive", 50)
    a, b = float(additive.sigmas[t]), float(additive.sigmas[t - 1])
    assert step_variances(a, b, False)[1] == pytest.approx(float(additive.betas[t]))


def test_prior_is_a_divergence_of_gaussians() -> None:
    x = torch.tensor([[[[0.5]]]], dtype=torch.float64)
    for preserving, prior in ((True, math.sqrt(1 + 9.0)), (False, 3.0)):
        p = torch.distributions.Normal(torch.tensor(0.5), torch.tensor(3.0))
        q = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(prior))
        expected = float(torch.distributions.kl_divergence(p, q))
        assert float(prior_nats(x, 3.0, preserving)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("levels", [256, 65536])
def test_bins_of_8_and_16_bit_sum_to_one_and_match_the_normal_distribution(levels: int) -> None:
    width, std, mean = 2 / (levels - 1), 0.003, 0.9995
    first = levels - 400
    x = (torch.arange(first, levels, dtype=torch.float64) * width - 1).clamp(max=1).reshape(-1, 1, 1, 1)
    nats = reconstruction_nats(x, torch.full_like(x, mean), std, width)
    edges = np.append(x.flatten().numpy() - width / 2, np.inf)
    expected = np.diff(norm.cdf(edges, mean, std))
    np.testing.assert_allclose(nats.neg().exp().numpy(), expected, atol=1e-9)
    tail = float(norm.cdf(edges[0], mean, std))
    assert float(nats.neg().exp().sum()) == pytest.approx(1 - tail, abs=1e-9)


def test_far_bins_stay_finite_and_channels_have_their_own() -> None:
    x = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    nats = reconstruction_nats(x, torch.full_like(x, 0.9), 1e-3, torch.tensor([[2 / 255, 2 / 65535]]))
    expected = -norm.logsf(0.9 - 1 / 255, scale=1e-3) - norm.logsf(0.9 - 1 / 65535, scale=1e-3)
    assert float(nats) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [2 / 255, 2 / 65535])
def test_bits_of_bins_are_the_density_less_their_width(width: float) -> None:
    """Fine bins hold density times width: bits of binned values and bits stated for a density agree."""
    x = images(32, 48)
    binned = (x / width).round() * width
    settings = {"preserving": True}
    low = max(LOW, width)  # below that this denoiser would resolve what no bin tells, and the bound pays for it
    bins = continuous_bound(denoise, binned, low, HIGH, 48, drawn(x), width=width, **settings).bits_per_dim()
    density = continuous_bound(denoise, x, low, HIGH, 48, drawn(x), **settings).bits_per_dim(width)
    entropy = (0.5 * math.log(2 * math.pi * math.e * STD**2)) / math.log(2) - math.log2(width)
    assert float(bins.mean()) == pytest.approx(entropy, abs=0.06)
    torch.testing.assert_close(bins, density, rtol=0, atol=0.05)


def test_standardised_terms_find_what_likelihood_misses() -> None:
    """Half the contrast is likelier than a normal image in every level, and stands out once levels are standardised."""
    normal, odd = images(24), MEAN + (images(4) - MEAN) / 2
    found = [continuous_bound(denoise, x, LOW, HIGH, 16, drawn(x), preserving=True) for x in (normal, odd)]
    assert float(found[1].nats.max()) < float(found[0].nats.min())
    scores = [standardised(each.terms, found[0].terms) for each in found]
    assert float(scores[1].min()) > float(scores[0].max())
    with pytest.raises(ConfigError, match="at least 2 normal images"):
        standardised(found[1].terms, found[0].terms[:1])


def test_refusals() -> None:
    x = images(1, 4)
    with pytest.raises(ConfigError, match="ascend"):
        continuous_bound(denoise, x, 1.0, 0.5, 4, drawn(x), preserving=True)
    with pytest.raises(ConfigError, match="method"):
        flow_likelihood(denoise, x, LOW, HIGH, 4, drawn(x), preserving=True, method="euler")
    with pytest.raises(ConfigError, match="probes"):
        flow_likelihood(denoise, x, LOW, HIGH, 4, drawn(x), preserving=True, probes=0)
