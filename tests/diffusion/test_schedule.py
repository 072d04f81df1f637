"""Schedules against their published values, against MONAI's and diffusers' tables, and against their own inverses."""

from __future__ import annotations

import math

import pytest
import torch

from anodiff.diffusion import SCHEDULES, NoiseSchedule, from_betas, karras_grid, log_grid, make_schedule, step_grid
from anodiff.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("vp-linear", {50: 0.176, 100: 0.342, 150: 0.522, 200: 0.724, 250: 0.958, 300: 1.24, 400: 2.04, 500: 3.44}),
        ("vp-cosine", {100: 0.171, 250: 0.427, 500: 1.02, 750: 2.45}),
    ],
)
def test_published_levels(name: str, levels: dict[int, float]) -> None:
    """Timestep i of the literature counts from 0 and is step i + 1 here."""
    schedule = make_schedule(name)
    for timestep, sigma in levels.items():
        assert float(schedule.sigma_of(timestep + 1)) == pytest.approx(sigma, rel=5e-3)


def test_vp_linear_is_the_product_of_one_minus_beta() -> None:
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    schedule = make_schedule("vp-linear")
    abar = 1.0
    for i, beta in enumerate(betas):
        abar *= 1 - beta
        assert float(schedule.alphas[i]) ** 2 == pytest.approx(abar, rel=1e-9)
        assert float(schedule.sigmas[i]) ** 2 == pytest.approx((1 - abar) / abar, rel=1e-9)
    assert torch.allclose(schedule.betas, torch.tensor(betas, dtype=torch.float64), rtol=1e-7)


def test_additive_level_is_the_sum_of_betas() -> None:
    schedule = make_schedule("additive", num_steps=100, beta_start=0.001, beta_end=0.1)
    betas = torch.linspace(0.001, 0.1, 100, dtype=torch.float64)
    torch.manual_seed(0)
    x = torch.zeros(200_000, dtype=torch.float64)
    for beta in betas[:50]:
        x = x + beta.sqrt() * torch.randn_like(x)
    assert float(x.std()) == pytest.approx(float(schedule.sigma_of(50)), rel=4 / math.sqrt(2 * len(x)))
    assert torch.allclose(schedule.betas, betas)
    assert bool((schedule.alphas == 1).all())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 37, 1000])
def test_steps_and_levels_are_inverse(name: str, num_steps: int) -> None:
    schedule = make_schedule(name, num_steps) if (name, num_steps) != ("edm", 1) else make_schedule("edm", 2)
    assert schedule.sigmas.dtype == torch.float64
    assert bool(torch.isfinite(schedule.sigmas).all())
    whole = torch.arange(1, schedule.num_steps + 1)
    assert torch.equal(schedule.sigma_of(whole), schedule.sigmas)
    t = torch.linspace(0, schedule.num_steps, 997, dtype=torch.float64)
    assert torch.allclose(schedule.t_of(schedule.sigma_of(t)), t, rtol=0, atol=1e-7)
    assert bool((schedule.sigma_of(t).diff() > 0).all())
    assert torch.allclose(schedule.alpha_of(schedule.sigmas), schedule.alphas, rtol=1e-9)
    assert float(schedule.t_of(1e9)) == schedule.num_steps


@pytest.mark.parametrize("name", ["vp-linear", "vp-sigmoid", "additive"])
def test_total_noise_does_not_depend_on_the_number_of_steps(name: str) -> None:
    # With 0.1/T and 20/T the sum of betas is 10.05 for every T; 1 - beta and exp(-beta) differ by O(1/T).
    assert make_schedule(name, 4000).sigma_max == pytest.approx(make_schedule(name, 1000).sigma_max, rel=0.06)


def test_cosine_stays_finite() -> None:
    schedule = make_schedule("vp-cosine")
    assert 1e4 < schedule.sigma_max < 1e5
    assert float(schedule.betas.max()) == pytest.approx(0.999)


def test_grids() -> None:
    for grid in (karras_grid(80, 0.002, 18), log_grid(80, 0.002, 18)):
        assert grid.dtype == torch.float64
        assert grid.shape == (19,)
        assert (grid[0], grid[-2], grid[-1]) == (80, 0.002, 0)
        assert bool((grid.diff() < 0).all())
    assert karras_grid(3, 0.1, 5, final_zero=False)[-1] == 0.1
    roots = karras_grid(80, 0.002, 18, rho=7)[:-1] ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(17), rtol=1e-9)
    steps = log_grid(80, 0.002, 18)[:-1].log().diff()
    assert torch.allclose(steps, steps[0].expand(17), rtol=1e-9)
    assert torch.allclose(karras_grid(80, 0.002, 18, rho=1e6), log_grid(80, 0.002, 18), rtol=1e-3)
    assert karras_grid(0.7, 0.01, 1).tolist() == [0.7, 0]


def test_step_grid_is_the_full_chain_and_its_strides() -> None:
    schedule = make_schedule("vp-linear")
    full = step_grid(schedule, 250, 250)
    assert torch.equal(full[:-1].flip(0), schedule.sigmas[:250])
    assert full[-1] == 0
    few = step_grid(schedule, 250, 10)
    assert torch.equal(few[:-1], schedule.sigmas[torch.arange(250, 0, -25) - 1])
    assert step_grid(schedule, 250, 10, final_zero=False).shape == (10,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_schedule("vp-cosin"), "did you mean 'vp-cosine'"),
        (lambda: make_schedule("vp-linear", beta_begin=1), "beta_begin"),
        (lambda: make_schedule("vp-linear", 0), "at least 1 step"),
        (lambda: make_schedule("vp-linear", beta_end=1.5), "beta must lie between 0 and 1"),
        (lambda: make_schedule("vp-linear").sigma_of(1001), "0 to 1000, found step 1001"),
        (lambda: make_schedule("vp-linear").sigma_of(-1), "found step -1"),
        (lambda: from_betas("mine", torch.tensor([0.1, 0.0])), "beta"),
        (lambda: NoiseSchedule("mine", torch.ones(2), torch.tensor([0.2, 0.1])), "ascending"),
        (lambda: NoiseSchedule("mine", torch.ones(3), torch.tensor([0.1, 0.2])), "equally long"),
        (lambda: karras_grid(0.1, 0.2, 5), "0 < sigma_min < sigma_max"),
        (lambda: karras_grid(1, 0.1, 5, rho=0), "rho"),
        (lambda: log_grid(1, 0.1, 0), "at least 1 step"),
        (lambda: step_grid(make_schedule("vp-linear"), 10, 11), "n = 11 and start step 10"),
    ],
)
def test_errors_name_what_was_found(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("vp-linear", "linear", {}),
        ("vp-scaled-linear", "scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
        ("vp-sigmoid", "sigmoid", {}),
        ("vp-cosine", "squaredcos_cap_v2", {}),
    ],
)
def test_tables_agree_with_diffusers(ours: str, theirs: str, options: dict[str, float]) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a development dependency")
    reference = diffusers.DDPMScheduler(beta_schedule=theirs, **options).alphas_cumprod.double()
    abar = make_schedule(ours, **options).alphas ** 2
    assert torch.allclose(abar, reference, rtol=2e-4, atol=1e-9)  # theirs is a float32 table
