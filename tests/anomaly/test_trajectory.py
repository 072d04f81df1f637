"""One trajectory for all levels: its law on Gaussian data in closed form, its cost, and what cannot be asked of it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from anodiff.anomaly import AnomalyDetector, DetectorSettings
from anodiff.anomaly.noising import SIGMA_END, reconstruct, sigma_grid
from anodiff.anomaly.trajectory import nodes_through
from anodiff.anomaly.tuning import tune
from anodiff.diffusion import SAMPLERS, image_keys, sample_noise
from anodiff.errors import ConfigError

TAU = 0.3
LEVELS = (0.4, 2.0, 0.9)


class Gaussian:
    """The exact denoiser of pixels N(0, TAU^2), which counts the rows it is asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows += len(x)
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        return (x.double() * (TAU**2 / (TAU**2 + level**2))).to(x.dtype)


def told_in_single(denoiser: Any) -> Any:
    """The levels of a chain as the engine hands them on, float32 a row."""
    return lambda x, sigma: denoiser(x, torch.as_tensor(sigma, dtype=torch.float32).expand(len(x)))


def settings(**slots: Any) -> DetectorSettings:
    whole = {"noise": "gaussian", "noise_scale": "unit", "levels": LEVELS, "trajectory": "shared", "sampler": "ddim"}
    return DetectorSettings(**{**whole, "steps": 6, **slots})


def inverted(**slots: Any) -> DetectorSettings:
    return settings(**{"trajectory": "inverted", "noise": "none", **slots})


def some(count: int = 3, side: int = 10) -> tuple[Tensor, Tensor]:
    images = TAU * torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))
    return images, image_keys(images, 0)


@pytest.mark.parametrize("spacing", ["karras", "log"])
def test_the_nodes_hold_every_level_and_are_as_even_as_that_allows(spacing: str) -> None:
    def place(level: float) -> float:
        return math.log(level) if spacing == "log" else level ** (1 / 7)

    for count in (3, 4, 9, 40):
        nodes = nodes_through(LEVELS, count, spacing)
        assert len(nodes) == count
        assert set(LEVELS) <= set(nodes)
        assert (nodes[0], nodes[-1]) == (2.0, 0.4)
        assert all(high > low for high, low in pairwise(nodes))
    gaps = [place(high) - place(low) for high, low in pairwise(nodes)]
    assert max(gaps) < 1.2 * min(gaps)
    with pytest.raises(ValueError, match="at least one a level"):
        nodes_through(LEVELS, 2, spacing)


@pytest.mark.parametrize(
    "chosen",
    [
        settings(),
        settings(sampler="dpmpp", steps=3),
        settings(sampler="heun", steps=5),
        settings(pairs=2, antithetic=True),
        inverted(),
        inverted(sampler="heun", steps=4),
    ],
    ids=lambda found: f"{found.trajectory}-{found.sampler}-{found.draws}",
)
def test_the_cost_is_that_of_one_chain_and_is_known_beforehand(chosen: DetectorSettings) -> None:
    counted = Gaussian()
    images, keys = some()
    out = reconstruct(counted, images, keys, chosen)
    assert out.shape == (3, *images.shape)
    assert counted.rows == len(images) * chosen.nfe
    assert chosen.nfe == chosen.draws * (2 * chosen.steps - 1 if chosen.sampler == "heun" else chosen.steps)


def test_ddim_reads_what_the_product_of_its_affine_steps_says() -> None:
    """x_b = x_a (tau^2 + a b) / (tau^2 + a^2) on N(0, tau^2), and D(x_s) = x_s tau^2 / (tau^2 + s^2), in float64."""
    images, keys = some()
    noise = sample_noise("gaussian", keys, (1, 10, 10), level=torch.tensor([1] * 3), draw=torch.tensor([0] * 3))
    down = nodes_through(LEVELS, 7, "log")
    up = nodes_through([*LEVELS, min(SIGMA_END, 0.1)], 7, "log")[::-1]
    for chosen, start, grid in [
        (settings(steps=7, grid="log"), images.double() + 2.0 * noise.double(), down),
        (inverted(steps=7, grid="log"), images.double(), up),
    ]:
        found = reconstruct(Gaussian(), images, keys, chosen)
        x, expected = start, {grid[0]: start * TAU**2 / (TAU**2 + grid[0] ** 2)}
        for a, b in pairwise(grid):
            x = x * (TAU**2 + a * b) / (TAU**2 + a * a)
            expected[b] = x * TAU**2 / (TAU**2 + b * b)
        for read, level in zip(found, LEVELS, strict=True):
            torch.testing.assert_close(read.double(), expected[level], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("heun", 2)])
def test_with_more_steps_it_reads_the_flow(sampler: str, order: int) -> None:
    """The flow is x_s = x_S sqrt((tau^2 + s^2) / (tau^2 + S^2)) exactly; the error falls as steps^-order."""
    images = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    keys = torch.zeros(1, dtype=torch.int64)
    errors = []
    for steps in (40, 160):
        found = reconstruct(Gaussian(), images, keys, inverted(sampler=sampler, steps=steps, grid="log"))[:, 0, 0, 0, 0]
        start = min(SIGMA_END, 0.1)
        exact = [TAU**2 / math.sqrt((TAU**2 + s * s) * (TAU**2 + start**2)) for s in LEVELS]
        errors.append(np.abs(found.numpy() / exact - 1).max())
    assert errors[1] < 1.5 * errors[0] / 4**order
    assert errors[1] < 0.02


@pytest.mark.parametrize("sampler", ["dpmpp", "heun"])
def test_at_each_level_a_normal_image_has_the_law_of_its_own_noise(sampler: str) -> None:
    """Variance tau^4 / (tau^2 + s^2), as one step from that level's own noise has; the joint law is another."""
    images, keys = some(40, 32)
    shared = reconstruct(Gaussian(), images, keys, settings(sampler=sampler, steps=24))
    alone = reconstruct(Gaussian(), images, keys, settings(trajectory="each", sampler="one-step", steps=1))
    for read, own, level in zip(shared, alone, LEVELS, strict=True):
        expected = TAU**4 / (TAU**2 + level**2)
        assert float(read.var()) == pytest.approx(expected, rel=0.04)
        assert float(own.var()) == pytest.approx(expected, rel=0.04)
        assert abs(float(read.mean())) < 4 * math.sqrt(expected / read.numel())
    both = [float(torch.corrcoef(read[:2].flatten(1))[0, 1]) for read in (shared, alone)]
    assert both[0] > 0.999
    assert both[1] < 0.7


def test_the_highest_level_is_that_of_one_step_bit_for_bit(convolutional_denoiser: Any) -> None:
    images, keys = some()
    with torch.no_grad():
        shared = reconstruct(told_in_single(convolutional_denoiser()), images, keys, settings())
        single = settings(trajectory="each", sampler="one-step", steps=1)
        alone = reconstruct(told_in_single(convolutional_denoiser()), images, keys, single)
    assert torch.equal(shared[1], alone[1])
    assert not torch.equal(shared[0], alone[0])


def test_each_is_a_chain_a_level_as_before(convolutional_denoiser: Any) -> None:
    images, keys = some()
    chosen = settings(trajectory="each", sampler="dpmpp", steps=3)
    denoiser = told_in_single(convolutional_denoiser())
    with torch.no_grad():
        found = reconstruct(denoiser, images, keys, chosen)
        for number, level in enumerate(LEVELS):
            drawn = {"level": torch.tensor([number] * 3), "draw": torch.tensor([0] * 3)}
            grid = sigma_grid(chosen, level)
            start = images + float(grid[0]) * sample_noise("gaussian", keys, (1, 10, 10), **drawn)
            assert torch.equal(found[number], SAMPLERS["dpmpp"](denoiser, start, grid))
    assert DetectorSettings().trajectory == "each"


def test_a_detector_on_one_trajectory_is_calibrated_and_finds_lesions(model: Any, normals: Any, lesioned: Any) -> None:
    ours = AnomalyDetector(model, settings(steps=4, smooth_px=1.0), device="cpu", precision="fp32")
    ours.fit(normals(24, 0), rate=0.1)
    images, masks = lesioned(6, 5, 0.6)
    result = ours(images)
    assert result.nfe == 4
    assert float(result.maps[masks].mean()) > 3 * float(result.maps[~masks].abs().mean())
    other = AnomalyDetector(model, settings(), device="cpu", precision="fp32")
    model.calibrations = {"custom": ours.calibration}
    assert other.calibration is None  # other steps are other settings


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"sampler": "ancestral"}, "deterministic: expected sampler ddim or dpmpp or heun, found 'ancestral'"),
        ({"sampler": "one-step", "steps": 1}, "deterministic"),
        ({"grid": "step"}, "grid 'karras' or 'log'"),
        ({"where": "boxes"}, "all pixels"),
        ({"levels": (1.0,)}, "several levels"),
        ({"levels": (1.0, 1.0)}, "all different"),
        ({"steps": 2}, "steps >= 3, found 2"),
        ({"trajectory": "inverted"}, "expected noise 'none'"),
        ({"trajectory": "inverted", "noise": "none", "guidance": 1.0}, "no guidance"),
        ({"trajectory": "inverted", "noise": "none", "sampler": "dpmpp"}, "ddim or heun"),
        ({"trajectory": "inverted", "noise": "none", "steps": 3}, "one for its start: expected steps >= 4"),
    ],
)
def test_what_cannot_be_is_refused(slots: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**slots)


def test_tuning_takes_levels_one_by_one(model: Any, normals: Any) -> None:
    from anodiff.anomaly.planted import Normals

    part = Normals(normals(8, 0), tuple("abcdefgh"))
    with pytest.raises(ConfigError, match="found 'custom' with trajectory 'shared'"):
        tune(model, part, settings())
