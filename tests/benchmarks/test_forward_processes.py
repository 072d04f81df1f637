"""Both founding forward processes: one process after rescaling, trained and sampled end to end, reversed rightly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from anodiff.config import parse_config
from anodiff.diffusion import make_schedule, sample_ancestral, step_grid
from anodiff.training import Trainer
from benchmarks.quality.forward_processes import PROCESSES, deviations, figure, noised, step

STD = 0.3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PROCESSES)
def test_steps_one_by_one_have_the_marginals_of_the_table(name: str) -> None:
    schedule = make_schedule(name, 60)
    x = torch.full((200_000,), 0.7, dtype=torch.float64)
    for beta in schedule.betas.tolist():
        x = step(x, beta, torch.randn_like(x), schedule.is_variance_preserving)
    alpha, sigma = float(schedule.alphas[-1]), schedule.sigma_max
    assert float(x.mean()) == pytest.approx(alpha * 0.7, abs=5 * alpha * sigma / math.sqrt(len(x)))
    assert float(x.std()) == pytest.approx(alpha * sigma, rel=0.01)


def test_both_are_one_process_after_rescaling() -> None:
    image, noise = torch.rand(8, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    vp, additive = (make_schedule(name, 1000) for name in PROCESSES)
    for sigma in (0.1, 0.5, 2.0):
        t = int((vp.sigmas.log() - math.log(sigma)).abs().argmin())
        rescaled = noised(image, vp, sigma, noise) / float(vp.alphas[t])
        torch.testing.assert_close(rescaled, noised(image, additive, sigma, noise), rtol=0, atol=0.02 * sigma)
        torch.testing.assert_close(rescaled, image + float(vp.sigmas[t]) * noise)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_posterior_step_keeps_gaussian_data_and_the_literal_one_collapses(name: str) -> None:
    found = deviations(make_schedule(name, 1000), STD)
    assert found["posterior"][0] == pytest.approx(STD, rel=0.02)
    assert found["literal"][0] < 1e-25
    assert found["posterior"][-1] == found["literal"][-1]


@pytest.mark.parametrize("name", PROCESSES)
def test_the_deviations_are_those_of_the_samplers_draws(name: str) -> None:
    schedule = make_schedule(name, 40)
    found = deviations(schedule, STD)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x * STD**2 / (STD**2 + sigma**2)

    start = math.hypot(STD, schedule.sigma_max) * torch.randn(100_000, 1, 1, 1, dtype=torch.float64)
    drawn = sample_ancestral(denoise, start, step_grid(schedule, 40, 40), lambda _: torch.randn_like(start))
    assert float(drawn.std()) == pytest.approx(found["posterior"][0], rel=0.01)
    x = start * schedule.alphas[-1]
    for t in range(39, -1, -1):
        alpha, sigma = float(schedule.alphas[t]), float(schedule.sigmas[t])
        eps = (x / alpha - denoise(x / alpha, schedule.sigmas[t])) / sigma
        x = x - math.sqrt(float(schedule.betas[t])) * eps
    assert float(x.std()) == pytest.approx(found["literal"][0], rel=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_trained_and_sampled_end_to_end(tiny_recipe: dict[str, Any], name: str) -> None:
    """The recipe of the DDPM paper on either process: eps, steps drawn uniformly, every step walked back."""
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    centre = torch.rand(64, 2, 1, 1) * 8
    data = (1.6 * torch.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / 8) - 0.8)[:, None].float()
    recipe = {
        **tiny_recipe,
        "preprocess": {"size": [8, 8]},
        "network": {"channels": [16, 32], "blocks": 1, "attention": [False, False], "stem": 1},
        "diffusion": {
            "schedule": name, "num_steps": 40, "prediction": "eps", "noise_input": "timestep", "weight": "eps",
            "sigma": {"kind": "uniform-t"},
        },
        "training": {**tiny_recipe["training"], "images": 2400, "batch_size": 16, "lr": 3e-3},
    }  # fmt: skip
    trainer = Trainer(parse_config(recipe), data, data[:8], device=torch.device("cpu"), precision="fp32")
    while not trainer.finished:
        trainer.step()
    grid = step_grid(make_schedule(name, 40), 40, 40)
    start = float(grid[0]) * torch.randn(48, 1, 8, 8)
    with torch.no_grad():
        drawn = sample_ancestral(trainer.averaged, start, grid, lambda _: torch.randn_like(start))
    print(f"{name}: mean {drawn.mean():.2f} (data {data.mean():.2f}), deviation {drawn.std():.2f} ({data.std():.2f})")
    assert float(drawn.mean()) == pytest.approx(float(data.mean()), abs=0.3)
    assert float(drawn.std()) == pytest.approx(float(data.std()), rel=0.4)


def test_the_figure_is_a_picture() -> None:
    paths = {name: deviations(make_schedule(name, 20)) for name in PROCESSES}
    assert figure(paths).startswith(b"\x89PNG")
