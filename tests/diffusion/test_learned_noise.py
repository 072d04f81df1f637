"""Learned noise: the bound of Gaussian data in closed form, and trained models against what they replace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from anodiff.config import parse_config
from anodiff.diffusion import Denoiser, image_keys, make_schedule, sample_ancestral, sample_noise
from anodiff.diffusion.learned_schedule import LearnedSchedule
from anodiff.diffusion.likelihood import discrete_bound, gaussian_nats, step_nats
from anodiff.diffusion.objective import denoising_loss, hybrid_loss
from anodiff.diffusion.samplers import between, step_variances
from anodiff.diffusion.schedule import log_grid
from anodiff.errors import ConfigError
from anodiff.model import DiffusionModel, load
from anodiff.training import Trainer

STD = 0.5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(n: int, seed: int) -> Tensor:
    centre = torch.rand(n, 2, 1, 1, generator=torch.Generator().manual_seed(seed)) * 8
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return (2 * torch.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / 8) - 1)[:, None].float()


def trained(tiny_recipe: dict[str, Any], images: int, **diffusion: Any) -> Trainer:
    recipe = {
        **tiny_recipe,
        "preprocess": {"size": [8, 8]},
        "network": {"channels": [8, 16], "blocks": 1, "attention": [False, False], "stem": 1},
        "diffusion": {
            "sigma": {"kind": "loguniform", "low": 0.05, "high": 20.0}, "schedule": "vp-linear", "num_steps": 12,
            **diffusion,
        },
        "training": {**tiny_recipe["training"], "images": images, "batch_size": 16, "lr": 4e-3},
    }  # fmt: skip
    trainer = Trainer(parse_config(recipe), blobs(64, 1), blobs(16, 2), device=torch.device("cpu"), precision="fp32")
    while not trainer.finished:
        trainer.step()
    return trainer


def bound(denoiser: Denoiser, sigmas: Tensor, learned: bool = False) -> float:
    """Nats a dimension of held-out images."""
    x = blobs(64, 3)
    keys = image_keys(x)
    found = discrete_bound(
        denoiser,
        x,
        sigmas,
        lambda draw: sample_noise("gaussian", keys, (1, 8, 8), draw=draw),
        preserving=True,
        learned=denoiser.with_variance if learned else None,
    )
    return float(found.nats.mean()) / 64


def test_learned_variance_improves_the_bound_of_held_out_images(tiny_recipe: dict[str, Any]) -> None:
    model = trained(tiny_recipe, 960, variance="learned").averaged
    sigmas = make_schedule("vp-linear", 12).sigmas
    with torch.no_grad():
        fixed, learned = bound(model, sigmas), bound(model, sigmas, learned=True)
    print(f"12 steps: fixed variance {fixed:.3f}, learned {learned:.3f} nats a dimension")
    assert learned < fixed - 0.1


def test_learned_schedule_improves_the_bound_of_held_out_images(tiny_recipe: dict[str, Any]) -> None:
    trainer = trained(tiny_recipe, 960, schedule="learned")
    learned = trainer.averaged.network.get_submodule("schedule")
    assert isinstance(learned, LearnedSchedule)
    start = LearnedSchedule(0.05, 20.0).table(12).sigmas
    torch.testing.assert_close(start, log_grid(20.0, 0.05, 12, final_zero=False).flip(0))
    with torch.no_grad():
        before, after = bound(trainer.averaged, start), bound(trainer.averaged, learned.table(12).sigmas)
    print(f"12 levels from 0.05 to 20: even in the logarithm {before:.3f}, learned {after:.3f} nats a dimension")
    assert after < before - 0.02


def test_learned_schedule_is_the_best_one_for_a_known_curve() -> None:
    """Gaussian data have the curve s^2 sigma^2 / (s^2 + sigma^2); free levels are optimised beside, without any net."""
    steps, low, high = 8, 0.05, 20.0
    learned = LearnedSchedule(low, high)
    levels = torch.logspace(math.log10(low), math.log10(high), 4000, dtype=torch.float64)[1:-1]
    curve = STD**2 * levels**2 / (STD**2 + levels**2)
    learned.observe(levels, curve)

    def exact(log_sigma: Tensor) -> Tensor:
        s2 = (2 * log_sigma).exp()
        return ((1 / s2[:-1] - 1 / s2[1:]) / 2 * (STD**2 * s2 / (STD**2 + s2))[1:]).sum()

    torch.testing.assert_close(learned.bound(steps), exact(learned.log_sigmas(steps)), rtol=5e-3, atol=0)
    before = float(exact(learned.log_sigmas(steps).detach()))
    optimiser = torch.optim.Adam(learned.parameters(), lr=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        torch.log1p(learned.bound(steps)).backward()
        optimiser.step()
    gaps = torch.zeros(steps - 1, dtype=torch.float64, requires_grad=True)
    free = torch.optim.LBFGS([gaps], max_iter=200, line_search_fn="strong_wolfe")

    def levels_of() -> Tensor:
        shares = torch.cat([gaps.new_zeros(1), gaps.softmax(0).cumsum(0)])
        return math.log(low) + math.log(high / low) * shares

    def closure() -> Tensor:
        free.zero_grad()
        loss = exact(levels_of())
        loss.backward()
        return loss

    free.step(closure)
    best, found = float(exact(levels_of().detach())), float(exact(learned.log_sigmas(steps).detach()))
    assert best - 1e-9 < found < best + 0.05 * (before - best)
    sigmas = learned.table(steps).sigmas
    assert (float(sigmas[0]), float(sigmas[-1])) == pytest.approx((low, high))


def test_curve_is_a_moving_average_and_leaves_out_what_lies_beyond() -> None:
    learned = LearnedSchedule(0.1, 10.0)
    assert float(learned.bound(10).detach()) == 0
    for error in (1.0, 3.0):
        learned.observe(torch.tensor([1.0, 1.0, 0.01, 50.0]), torch.tensor([error, error, 99.0, 99.0]))
    assert learned.get_buffer("measured").sum() == 1
    assert float(learned.get_buffer("curve").max()) == pytest.approx(0.98 * 1 + 0.02 * 3)


def test_step_nats_is_the_divergence_of_two_gaussians() -> None:
    a, b, share = 0.7, 0.4, torch.tensor([0.3, -0.2], dtype=torch.float64)
    error = torch.tensor([0.2, -0.5], dtype=torch.float64)
    small, large = step_variances(a, b, True)
    q = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), math.sqrt(small))
    p = torch.distributions.Normal(error * (a * a - b * b) / (a * a), between(small, large, share).sqrt())
    torch.testing.assert_close(step_nats(error, a, b, share, True), torch.distributions.kl_divergence(q, p))


def test_hybrid_loss_is_the_denoising_loss_and_the_bound_without_its_gradient() -> None:
    schedule = make_schedule("vp-linear", 20)
    clean, noise = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    sigma = torch.stack([schedule.sigmas[9], schedule.sigmas[0], schedule.sigmas[1]])
    weight = torch.tensor([2.0, 3.0, 1.0])
    factor, share = torch.tensor(0.5, requires_grad=True), torch.tensor(0.4, requires_grad=True)

    def learned(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return factor * x, share.expand_as(x)

    loss = hybrid_loss(learned, clean, sigma, noise, weight, schedule)
    simple = denoising_loss(lambda x, _: factor * x, clean, sigma, noise, weight)
    error = (0.5 * (clean + sigma.float().view(-1, 1, 1, 1) * noise) - clean).detach()
    std = between(float(sigma[1]) ** 2 / 4, float(sigma[1]) ** 2, torch.tensor(0.4)).sqrt()
    terms = [
        step_nats(error[0], sigma[0], schedule.sigmas[8], torch.tensor(0.4), True).mean(),
        gaussian_nats(error[1], std).mean().float(),
        step_nats(error[2], sigma[2], schedule.sigmas[0], torch.tensor(0.4), True).mean(),
    ]
    torch.testing.assert_close(loss, simple + 0.02 * torch.stack(terms))
    gradients = [torch.autograd.grad(each.sum(), factor, retain_graph=True)[0] for each in (loss, simple)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.grad(loss.sum(), share)[0] != 0


def test_sampling_with_the_right_variance_keeps_the_deviation_at_ten_steps() -> None:
    """Gaussian data reverse as Gaussians: with the true variance every step is exact, with the small one it shrinks."""

    class Exact:
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x * STD**2 / (STD**2 + sigma**2)

        def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            a, b = float(sigma), below[float(sigma)]
            small, large = step_variances(a, b, True) if b else (1.0, 2.0)
            true = small + ((a * a - b * b) / (a * a)) ** 2 * STD**2 * a * a / (STD**2 + a * a)
            return self(x, sigma), torch.full_like(x, math.log(true / small) / math.log(large / small))

    grid = log_grid(20.0, 0.05, 10)
    below = dict(zip(grid.tolist(), grid.tolist()[1:], strict=False))
    start = torch.randn(200_000, 1, 1, 1, dtype=torch.float64) * math.hypot(20.0, STD)
    found = [
        float(sample_ancestral(Exact(), start, grid, lambda _: torch.randn_like(start), variance=name).std())
        for name in ("learned", "small")
    ]
    assert found[0] == pytest.approx(STD, rel=0.01)
    assert found[1] < 0.97 * STD
    with pytest.raises(ConfigError, match="with_variance"):
        sample_ancestral(lambda x, _: x, start, grid, lambda _: start, variance="learned")


@pytest.mark.parametrize("kind", ["variance", "schedule"])
def test_learned_noise_travels_in_the_model_file(tiny_recipe: dict[str, Any], tmp_path: Any, kind: str) -> None:
    trainer = trained(tiny_recipe, 64, **{kind: "learned"})
    model = DiffusionModel(trainer.config, trainer.averaged)
    model.save(tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors")
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(model.denoiser(x, 0.5), back.denoiser(x, 0.5))
    torch.testing.assert_close(model.schedule.sigmas, back.schedule.sigmas, rtol=0, atol=0)
    if kind == "schedule":
        assert not torch.equal(back.schedule.sigmas, LearnedSchedule(0.05, 20.0).table(12).sigmas)
        with pytest.raises(ConfigError, match="learned variance"):
            back.denoiser.with_variance(x, 0.5)


def test_settings_that_do_not_go_together_are_refused(tiny_recipe: dict[str, Any]) -> None:
    for diffusion, words in (
        ({"schedule": "learned", "variance": "learned"}, "one of schedule and variance"),
        ({"schedule": "learned", "noise_input": "timestep"}, "noise_input log_sigma"),
        ({"schedule": "learned", "sigma": {"kind": "uniform-t"}}, "lognormal or loguniform"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_config({**tiny_recipe, "diffusion": diffusion})
