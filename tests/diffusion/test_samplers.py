"""Samplers by law: closed-form mean and variance on Gaussian data, order of convergence on a mixture, equivalences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from anodiff.diffusion import (
    SAMPLERS,
    StepState,
    invert,
    karras_grid,
    log_grid,
    make_schedule,
    nfe,
    sample_ancestral,
    sample_ddim,
    sample_dpmpp_2m,
    sample_heun,
    step_grid,
)
from anodiff.errors import ConfigError

MEAN, STD = 0.3, 0.1  # of the `gaussian` fixture
Affine = tuple[float, float]  # a sampler maps MEAN + e to MEAN + factor * e + N(0, variance)


def shrink(a: float) -> float:
    """The exact denoiser of Gaussian data takes MEAN + e at level a to MEAN + shrink(a) * e."""
    return STD**2 / (STD**2 + a**2)


def ddim_law(levels: list[float]) -> Affine:
    factor = 1.0
    for a, b in pairwise(levels):
        factor *= (STD**2 + a * b) / (STD**2 + a**2)
    return factor, 0.0


def heun_law(levels: list[float]) -> Affine:
    factor = 1.0
    for a, b in pairwise(levels):
        h, slope_a, slope_b = b - a, a / (STD**2 + a**2), b / (STD**2 + b**2)
        euler = 1 + h * slope_a
        factor *= euler if b == 0 else 1 + h / 2 * (slope_a + slope_b * euler)
    return factor, 0.0


def dpmpp_law(levels: list[float]) -> Affine:
    factor, before = 1.0, None
    for i, (a, b) in enumerate(pairwise(levels)):
        denoised = shrink(a) * factor
        if before is None or b == 0:
            target = denoised
        else:  # extrapolation to the middle of the step, linear in ln(sigma)
            ratio = math.log(a / b) / math.log(levels[i - 1] / a)
            target = denoised + ratio / 2 * (denoised - before)
        factor, before = b / a * factor + (1 - b / a) * target, denoised
    return factor, 0.0


def ancestral_law(levels: list[float], variance: str = "small", eta: float = 1.0) -> Affine:
    factor, total = 1.0, 0.0
    for a, b in pairwise(levels):
        added = eta**2 * b**2 * (a**2 - b**2) / a**2
        kept = math.sqrt(b**2 - added) / a  # share of the present noise
        if variance == "large" and b > 0:
            # DDPM's own words: abar = 1 / (1 + sigma^2), beta = 1 - abar_t / abar_s, then divided by alpha_s.
            abar_t, abar_s = 1 / (1 + a**2), 1 / (1 + b**2)
            added = (1 - abar_t / abar_s) / abar_s
        step = shrink(a) + kept * (1 - shrink(a))
        factor, total = factor * step, total * step**2 + added
    return factor, total


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[list[float]], Affine]]] = {
    "ddim": (sample_ddim, ddim_law),
    "heun": (sample_heun, heun_law),
    "dpmpp": (sample_dpmpp_2m, dpmpp_law),
    "ancestral": (sample_ancestral, ancestral_law),
    "ancestral-large": (
        lambda *args, **kw: sample_ancestral(*args, variance="large", **kw),
        lambda levels: ancestral_law(levels, "large"),
    ),
    "half-eta": (
        lambda *args, **kw: sample_ddim(*args, eta=0.5, **kw),
        lambda levels: ancestral_law(levels, eta=0.5),
    ),
}
GRIDS: dict[str, Callable[[int], Tensor]] = {
    "karras": lambda n: karras_grid(20, 0.01, n),
    "log": lambda n: log_grid(20, 0.01, n, final_zero=False),
    "step": lambda n: step_grid(make_schedule("vp-linear"), 1000, n),
    "partial": lambda n: karras_grid(0.5, 0.01, n),
}


@pytest.mark.parametrize("n", [10, 20, 50, 250, 1000])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("case", CASES)
def test_gaussian_data_in_closed_form(case: str, grid: str, n: int, gaussian) -> None:
    sampler, law = CASES[case]
    sigmas = GRIDS[grid](n)
    factor, variance = law(sigmas.tolist())

    # The affine map itself, in float64 and without noise.
    probes = MEAN + torch.tensor([[0.0], [1.0], [-3.0]], dtype=torch.float64)
    out = sampler(gaussian.denoise, probes, sigmas, noise=lambda draw: torch.zeros_like(probes))
    assert torch.allclose(out, MEAN + factor * (probes - MEAN), rtol=0, atol=1e-12)

    # What comes out of noisy data, in float32, to Monte-Carlo error.
    generator = torch.Generator().manual_seed(n)
    count = 1 << 14 if variance > 0 else 1 << 12
    start = math.sqrt(STD**2 + float(sigmas[0]) ** 2)
    x = MEAN + start * torch.randn(count, generator=generator)
    out = sampler(gaussian.denoise, x, sigmas, noise=lambda draw: torch.randn(count, generator=generator))
    expected = math.sqrt(factor**2 * start**2 + variance)
    assert float(out.std()) == pytest.approx(expected, rel=4.5 / math.sqrt(2 * count))
    assert float(out.mean()) == pytest.approx(MEAN, abs=4.5 * expected / math.sqrt(count))


@pytest.mark.parametrize(("case", "tolerance"), [("ddim", 0.02), ("heun", 2e-3), ("dpmpp", 2e-3), ("ancestral", 0.02)])
def test_many_steps_reach_the_true_distribution(case: str, tolerance: float) -> None:
    """1000 steps from the marginal at sigma 20 to the marginal at sigma 0.01, whose variance is known."""
    factor, variance = CASES[case][1](GRIDS["log"](1000).tolist())
    std = math.sqrt(factor**2 * (STD**2 + 20**2) + variance)
    assert std == pytest.approx(math.sqrt(STD**2 + 0.01**2), rel=tolerance)


def test_sigma_grids_keep_detail_that_uniform_steps_lose() -> None:
    """The reason for the default: with a perfect denoiser, 20 uniform steps halve the data's own variation."""
    start = make_schedule("vp-linear").sigma_max
    uniform, _ = dpmpp_law(step_grid(make_schedule("vp-linear"), 1000, 20).tolist())
    karras, _ = dpmpp_law(karras_grid(start, 0.01, 20).tolist())
    assert uniform * start / STD < 0.6
    assert karras * start / STD == pytest.approx(1, abs=0.06)


ORDERS = {"ddim": 1, "heun": 2, "dpmpp": 2}


@pytest.mark.parametrize("name", ORDERS)
def test_wasserstein_distance_falls_with_the_order(name: str, mixture) -> None:
    """In one dimension the exact flow maps quantile to quantile, so W1 at sigma_min is free of Monte-Carlo error."""
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    start, end = mixture.quantile(u, 10.0), mixture.quantile(u, 0.05)
    errors = [
        float((SAMPLERS[name](mixture.denoise, start, log_grid(10, 0.05, n + 1, final_zero=False)) - end).abs().mean())
        for n in (40, 80, 160)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[name], abs=0.35), errors
    assert errors[-1] < (0.01 if ORDERS[name] == 1 else 5e-4)


def test_wasserstein_distance_of_the_ancestral_sampler_falls(mixture) -> None:
    count = 1 << 14
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    start, end = mixture.quantile(u, 10.0).float(), mixture.quantile(u, 0.05).float()
    generator = torch.Generator().manual_seed(0)

    def distance(n: int) -> float:
        grid = log_grid(10, 0.05, n + 1, final_zero=False)
        out = sample_ancestral(mixture.denoise, start, grid, lambda draw: torch.randn(count, generator=generator))
        return float((out.sort().values - end).abs().mean())

    few, many = distance(15), distance(60)
    assert many < few / 2
    assert many < 0.02


@pytest.mark.parametrize("schedule_name", ["vp-linear", "vp-cosine"])
@pytest.mark.parametrize("variance", ["small", "large", "none"])
def test_variance_preserving_and_additive_agree_after_rescaling(schedule_name: str, variance: str, mixture) -> None:
    """The textbook DDPM and DDIM updates in x_t = alpha_t (x_0 + sigma_t n), step for step with the same noise."""
    schedule = make_schedule(schedule_name)
    steps = list(range(600, 0, -40))
    abar = schedule.alphas**2
    torch.manual_seed(0)
    noise = [torch.randn(64, dtype=torch.float64) for _ in range(len(steps) + 1)]
    t = steps[0] - 1
    x = abar[t].sqrt() * 0.4 + (1 - abar[t]).sqrt() * noise[0]
    sigmas = torch.cat([schedule.sigmas[torch.tensor(steps) - 1], torch.zeros(1, dtype=torch.float64)])
    ours_in = 0.4 + sigmas[0] * noise[0]

    for i, step in enumerate(steps):
        a_t = abar[step - 1]
        a_s = abar[steps[i + 1] - 1] if i + 1 < len(steps) else torch.tensor(1.0, dtype=torch.float64)
        clean = mixture.denoise(x / a_t.sqrt(), ((1 - a_t) / a_t).sqrt())
        eps = (x - a_t.sqrt() * clean) / (1 - a_t).sqrt()
        if variance == "none":  # DDIM, Song et al. 2021
            x = a_s.sqrt() * clean + (1 - a_s).sqrt() * eps
            continue
        alpha, beta = a_t / a_s, 1 - a_t / a_s  # DDPM, Ho et al. 2020, equations 6 and 7, for a stride
        x = (a_s.sqrt() * beta * clean + alpha.sqrt() * (1 - a_s) * x) / (1 - a_t)
        if i + 1 < len(steps):
            x = x + (beta * (1 - a_s) / (1 - a_t) if variance == "small" else beta).sqrt() * noise[i + 1]

    if variance == "none":
        ours = sample_ddim(mixture.denoise, ours_in, sigmas)
    else:
        ours = sample_ancestral(mixture.denoise, ours_in, sigmas, lambda draw: noise[draw], variance=variance)
    assert torch.allclose(ours, x, rtol=0, atol=1e-9)


def test_the_additive_process_reverses_by_its_posterior_step(mixture) -> None:
    """x_t = x_{t-1} + sqrt(beta) n: Bayes' rule for x_{t-1} given x_t and x_0, from the betas themselves."""
    schedule = make_schedule("additive", 50, beta_start=1e-3, beta_end=0.1)
    betas, total = schedule.betas, schedule.betas.cumsum(0)
    torch.manual_seed(0)
    noise = torch.randn(51, 64, dtype=torch.float64)
    x = start = 0.4 + schedule.sigmas[-1] * noise[0]
    for i, t in enumerate(range(49, -1, -1)):
        clean = mixture.denoise(x, total[t].sqrt())
        before = total[t] - betas[t]
        spread = (before.clamp(min=0) * betas[t] / total[t]).sqrt()
        x = (before * x + betas[t] * clean) / total[t] + spread * noise[i + 1]
    grid = step_grid(schedule, 50, 50)
    ours = sample_ancestral(mixture.denoise, start, grid, lambda draw: noise[draw])
    assert torch.allclose(ours, x, rtol=0, atol=1e-6)  # at t = 0 their `before` is rounding instead of 0


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2)])
def test_inversion_then_sampling_returns_the_input(method: str, order: int, mixture) -> None:
    torch.manual_seed(0)
    x = mixture.quantile(torch.rand(4, 1, 8, 8, dtype=torch.float64), 0.02)

    def round_trip(n: int) -> float:
        up = log_grid(5, 0.02, n + 1, final_zero=False).flip(0)
        latent = invert(mixture.denoise, x, up, method)
        assert 4 < float(latent.std()) < 6
        return float((SAMPLERS[method](mixture.denoise, latent, up.flip(0)) - x).abs().mean())

    errors = [round_trip(n) for n in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > order - 0.3, errors
    assert errors[-1] < (0.02 if order == 1 else 1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize(
    ("scheduler", "options", "sampler", "grid"),
    [
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, sample_ddim, lambda s: step_grid(s, 1000, 20)),
        ("DDPMScheduler", {"timestep_spacing": "trailing"}, sample_ancestral, lambda s: step_grid(s, 1000, 20)),
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True, "final_sigmas_type": "zero"},
            sample_dpmpp_2m,
            lambda s: karras_grid(s.sigma_max, s.sigma_min, 20),
        ),
    ],
)
def test_mean_path_agrees_with_diffusers(scheduler, options, sampler, grid, gaussian, monkeypatch) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a development dependency")
    if scheduler != "DPMSolverMultistepScheduler":
        options = options | {"clip_sample": False}
    reference = getattr(diffusers, scheduler)(beta_schedule="linear", **options)
    reference.set_timesteps(20)
    if scheduler == "DDPMScheduler":
        import diffusers.schedulers.scheduling_ddpm as ddpm

        monkeypatch.setattr(ddpm, "randn_tensor", lambda shape, **kw: torch.zeros(shape))
    ours = make_schedule("vp-linear")
    sigmas = grid(ours)
    x = sample = torch.tensor([[0.3], [1.0], [-2.0]])
    for i, t in enumerate(reference.timesteps):
        sigma = float(sigmas[i])
        scale = 1 / math.sqrt(1 + sigma**2)
        if i == 0:
            start, sample = x * sigma, x * sigma * scale
        eps = (sample / scale - gaussian.denoise(sample / scale, sigma)) / sigma
        sample = reference.step(eps, t, sample).prev_sample
    out = sampler(gaussian.denoise, start, sigmas, lambda draw: torch.zeros_like(x))
    assert torch.allclose(out, sample, rtol=0, atol=2e-3)


@pytest.mark.parametrize("final_zero", [True, False])
@pytest.mark.parametrize("name", SAMPLERS)
def test_nfe_counts_the_calls(name: str, final_zero: bool, gaussian) -> None:
    calls = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        return gaussian.denoise(x, sigma)

    grid = karras_grid(1, 0.1, 6, final_zero=final_zero)
    SAMPLERS[name](denoiser, torch.randn(2, 1, 4, 4), grid, lambda draw: torch.randn(2, 1, 4, 4))
    assert len(calls) == nfe(name, len(grid) - 1, final_zero)
    assert all(sigma.shape == () and sigma.dtype == torch.float64 and sigma > 0 for sigma in calls)


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_sees_every_step_and_can_replace_x(name: str, gaussian) -> None:
    grid = karras_grid(1, 0.1, 4)
    seen: list[StepState] = []

    def callback(state: StepState) -> Tensor | None:
        seen.append(state)
        return torch.full_like(state.x, 7.0) if state.i == 3 else None

    x = torch.randn(2, 1, 4, 4)
    out = SAMPLERS[name](gaussian.denoise, x, grid, lambda draw: torch.zeros_like(x), callback)
    assert [(s.i, s.sigma, s.sigma_next) for s in seen] == [(i, float(grid[i]), float(grid[i + 1])) for i in range(4)]
    assert seen[0].denoised.shape == (2, 1, 4, 4)
    assert bool((out == 7).all())


def test_draw_zero_is_left_for_the_noise_of_the_input(gaussian) -> None:
    draws: list[int] = []

    def source(draw: int) -> Tensor:
        draws.append(draw)
        return torch.zeros(1, 1, 2, 2)

    for variance in ("small", "large"):
        draws.clear()
        sample_ancestral(gaussian.denoise, torch.zeros(1, 1, 2, 2), karras_grid(1, 0.1, 4), source, variance=variance)
        assert draws == [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: sample_ddim(d, x, [0.1, 0.2]), r"descend strictly.*\[0.1, 0.2\]"),
        (lambda d, x: sample_heun(d, x, [1, 1, 0]), "descend strictly"),
        (lambda d, x: sample_dpmpp_2m(d, x, [1, 0.5, -0.1]), "descend strictly"),
        (lambda d, x: sample_ddim(d, x, [1, math.nan]), "descend strictly"),
        (lambda d, x: sample_ddim(d, x, []), "descend strictly"),
        (lambda d, x: sample_ancestral(d, x, [1, 0.5]), "noise source"),
        (lambda d, x: sample_ancestral(d, x, [1, 0.5], variance="medium"), "'small', 'large' or 'learned'"),
        (lambda d, x: sample_ancestral(d, x, [1, 0.5], variance="large", eta=0.5), "eta = 1"),
        (lambda d, x: invert(d, x, [0, 1]), "ascend strictly from a level above 0"),
        (lambda d, x: invert(d, x, [0.1, 1], "dpmpp"), "'ddim' or 'heun'"),
        (lambda d, x: nfe("euler", 3), "unknown sampler 'euler'"),
    ],
)
def test_errors_say_what_is_wrong(call, message: str, gaussian) -> None:
    with pytest.raises(ConfigError, match=message):
        call(gaussian.denoise, torch.zeros(1, 1, 2, 2))
