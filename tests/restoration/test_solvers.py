"""Solvers against the exact posterior of Gaussian data, and each against its own published formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anodiff.diffusion import SAMPLERS, karras_grid
from anodiff.diffusion.linearise import linearise
from anodiff.errors import ConfigError
from anodiff.restoration.operators import (
    LinearOperator,
    Mask,
    SuperResolution,
    cartesian_lines,
    gaussian_blur,
)
from anodiff.restoration.quantisation import Jpeg
from anodiff.restoration.solvers import SOLVERS, Guided, Matched, Posterior, Projected, Proximal, Resampled

HOLE = torch.zeros(6, 6, dtype=torch.bool)
HOLE[2:5, 1:5] = True
OPERATORS: dict[str, LinearOperator] = {
    "mask": Mask(HOLE),
    "superres": SuperResolution(2),
    "blur": gaussian_blur(0.8),
    "kspace": cartesian_lines(2),
}
SIGMA_Y, START = 0.1, 80.0


def measured(data: Any, operator: LinearOperator, seed: int = 0) -> Tensor:
    clean = operator(data.draw(seed))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 99), dtype=torch.float64)
    return clean + SIGMA_Y * operator(operator.pinv(noise))


class Source:
    """Noise of each draw for ``pairs`` antithetic pairs: means over a chain that is affine in it are then exact."""

    def __init__(self, data: Any, pairs: int, seed: int) -> None:
        self.shape, self.seed = (pairs, *data.shape), seed

    def __call__(self, draw: int) -> Tensor:
        noise = torch.randn(
            self.shape, generator=torch.Generator().manual_seed(1000 * self.seed + draw), dtype=torch.float64
        )
        return torch.cat([noise, -noise])


def figures(data: Any, operator: LinearOperator, samples: Tensor, y: Tensor) -> tuple[float, float]:
    """Error of the mean in posterior standard deviations (rms over what was lost), and ratio of deviations."""
    mean, covariance = data.posterior(operator, y, SIGMA_Y)
    deviation = covariance.diagonal().sqrt()
    lost = HOLE.flatten() if operator.is_mask else torch.ones(36, dtype=torch.bool)
    flat = samples.flatten(1)
    error = ((flat.mean(0) - mean) / deviation)[lost].square().mean().sqrt()
    ratio = (flat.std(0, correction=0) / deviation)[lost].mean()
    return float(error), float(ratio)


def run(data: Any, make: Callable[..., Posterior], operator: LinearOperator, y: Tensor, sampler: str) -> Tensor:
    """100 steps for 64 antithetic pairs."""
    noise, own, grid = Source(data, 64, 1), Source(data, 64, 2), karras_grid(START, 0.01, 100)
    options: dict[str, Any] = {}
    if make is Projected:
        options = {"sigmas": grid, "noise": noise}
    if make is Resampled:
        options = {"noise": own, "repeats": 2}
    posterior = make(data, operator, y.expand(128, *y.shape[1:]), SIGMA_Y, **options)
    return SAMPLERS[sampler](posterior, START * noise(0), grid, noise, posterior.callback)


@pytest.mark.parametrize("name", OPERATORS)
def test_matched_samples_the_posterior(gaussian_data: Any, name: str) -> None:
    """The mean and the whole covariance that 100 steps make of all starts: probed by unit starts, without chance."""
    operator = OPERATORS[name]
    y = measured(gaussian_data, operator)
    start = torch.cat([torch.zeros(1, 36, dtype=torch.float64), torch.eye(36, dtype=torch.float64)])
    start = START * start.reshape(37, *gaussian_data.shape)
    posterior = Matched(gaussian_data, operator, y.expand(37, *y.shape[1:]), SIGMA_Y)
    ends = SAMPLERS["dpmpp"](posterior, start, karras_grid(START, 0.01, 100)).flatten(1)
    mean, covariance = gaussian_data.posterior(operator, y, SIGMA_Y)
    deviation = covariance.diagonal().sqrt()
    assert ((ends[0] - mean).abs() / deviation).max() < 0.05
    spread = (ends[1:] - ends[0]).square().sum(0).sqrt()
    assert (spread / deviation).min() > 0.9
    assert (spread / deviation).max() < 1.1


def test_figures_of_all_solvers(gaussian_data: Any) -> None:
    """Printed (pytest -s) for the documentation; none comes as near as `matched`, and all beat the prior's mean."""
    operator = OPERATORS["mask"]
    y = measured(gaussian_data, operator)
    found = {}
    for name, make in SOLVERS.items():
        sampler = "dpmpp" if name in ("matched", "guided", "proximal") else "ancestral"
        found[name] = figures(gaussian_data, operator, run(gaussian_data, make, operator, y, sampler), y)
        print(f"{name:10} {sampler:10} mean error {found[name][0]:.3f} sd, sd ratio {found[name][1]:.3f}")
    prior, _ = figures(gaussian_data, operator, gaussian_data.mean.expand(2, 36), y)
    assert found["matched"][0] < 0.05
    assert all(found["matched"][0] < error for name, (error, _) in found.items() if name != "matched")
    assert all(error < prior for error, _ in found.values())


def test_matched_step_is_the_posterior_mean_at_each_level(gaussian_data: Any) -> None:
    """E[x_0 | x, y], with as many iterations as there are measurements, against Gaussian conditioning on both."""
    operator = OPERATORS["superres"]
    y = measured(gaussian_data, operator)
    a = gaussian_data.matrix(operator)
    x = gaussian_data.draw(7) + 0.5 * torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(8)).double()
    both = torch.cat([torch.eye(36, dtype=torch.float64), a])
    noise = torch.cat([torch.full((36,), 0.5**2), torch.full((9,), SIGMA_Y**2)]).double()
    gain = gaussian_data.covariance @ both.T
    gain = gain @ torch.linalg.inv(both @ gaussian_data.covariance @ both.T + torch.diag(noise))
    seen = torch.cat([x.flatten(), y.flatten()])
    expected = gaussian_data.mean + gain @ (seen - both @ gaussian_data.mean)
    solver = Matched(gaussian_data, operator, y, SIGMA_Y, iterations=9)
    torch.testing.assert_close(solver(x, torch.tensor(0.5)).flatten(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solver(x, torch.tensor(0.5)).flatten(), expected, rtol=1e-4, atol=1e-5)  # warm


class Untrue:
    """Gaussian data as a network has them: the estimate is some percent off, by a field that is no gradient.

    What the field adds to the Jacobian is as far from symmetric as random matrices are, and sigma^2 of it is large.
    """

    def __init__(self, data: Any, error: float) -> None:
        generator = torch.Generator().manual_seed(5)
        self.data = data
        self.field = error / 6 * torch.randn(36, 36, generator=generator, dtype=torch.float64)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = float(sigma)
        wrong = 0.5 * level / (level**2 + 0.25) * (x.flatten(1) - self.data.mean) @ self.field
        return self.data(x, sigma) + wrong.reshape(x.shape)


@pytest.mark.parametrize("name", ["mask", "kspace"])
def test_matched_survives_a_jacobian_that_is_no_covariance(gaussian_data: Any, name: str) -> None:
    """As near the posterior's mean as `guided` is, and no value beyond those of its samples."""
    operator, grid, noise = OPERATORS[name], karras_grid(5, 0.02, 24), Source(gaussian_data, 16, 1)
    y = measured(gaussian_data, operator).expand(32, *operator(gaussian_data.draw()).shape[1:])
    mean, _ = gaussian_data.posterior(operator, y[:1], SIGMA_Y)
    error, largest = {}, {}
    for make in (Matched, Guided):
        posterior = make(Untrue(gaussian_data, 0.1), operator, y, SIGMA_Y)
        samples = SAMPLERS["dpmpp"](posterior, 5 * noise(0), grid).flatten(1)
        error[make.name], largest[make.name] = (
            float((samples - mean).square().mean().sqrt()),
            float(samples.abs().max()),
        )
    print(error, largest)
    assert error["matched"] < 1.1 * error["guided"]
    assert largest["matched"] < 1.1 * largest["guided"]


@pytest.mark.parametrize(("matrix", "iterations"), [("rotation", 1), ("leak", 3)])
def test_matched_falls_back_on_the_isotropic_covariance(gaussian_data: Any, matrix: str, iterations: int) -> None:
    """Where the residual stays (J turns everything by 90 degrees), and where the correction is far beyond data."""
    jacobian = torch.zeros(36, 36, dtype=torch.float64)
    if matrix == "rotation":
        jacobian[0, 1], jacobian[1, 0] = 1, -1
    else:
        jacobian[0, 0], jacobian[HOLE.flatten().nonzero()[0], 0] = 1, 1000
    operator, x = OPERATORS["mask"], torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    y = torch.zeros_like(x)
    y[1, 0, 0, 0] = 0.5

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) @ jacobian).reshape(x.shape)

    solver = Matched(denoiser, operator, y, SIGMA_Y, iterations=iterations)
    found = solver(x, torch.tensor(2.0))
    expected = 4 * 0.25 / (4 + 0.25)
    assert solver.isotropic is not None
    assert solver.isotropic.tolist() == [0, 1]
    torch.testing.assert_close(found, y * expected / (expected + SIGMA_Y**2), rtol=1e-6, atol=0)


def test_rows_do_not_depend_on_each_other(gaussian_data: Any) -> None:
    operator = OPERATORS["mask"]
    y = torch.cat([measured(gaussian_data, operator, seed) for seed in range(4)])
    x = torch.cat([gaussian_data.draw(seed) for seed in range(4)])
    x[2] *= 30
    for make in (Matched, Guided, Proximal):
        whole = make(gaussian_data, operator, y, SIGMA_Y)(x, torch.tensor(0.7))
        alone = make(gaussian_data, operator, y[1:2], SIGMA_Y)(x[1:2], torch.tensor(0.7))
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-10, atol=1e-12)


def test_proximal_minimises_its_objective(gaussian_data: Any) -> None:
    for operator in OPERATORS.values():
        y = measured(gaussian_data, operator)
        x, sigma = gaussian_data.draw(3), 0.4
        denoised = gaussian_data(x, sigma)
        z = Proximal(gaussian_data, operator, y, SIGMA_Y, weight=2.0)(x, torch.tensor(sigma, dtype=torch.float64))
        gradient = operator.adjoint(operator(z) - y) / SIGMA_Y**2 + 2.0 / sigma**2 * (z - denoised)
        assert gradient.abs().max() < 1e-8


def test_guided_is_its_dense_formula(gaussian_data: Any) -> None:
    operator, sigma = OPERATORS["blur"], 0.6
    y, x = measured(gaussian_data, operator), gaussian_data.draw(3)
    a, jacobian = gaussian_data.matrix(operator), gaussian_data.jacobian(sigma)
    expected = sigma**2 * 0.25 / (sigma**2 + 0.25)
    denoised = gaussian_data(x, sigma).flatten()
    inner = torch.linalg.solve(
        expected * a @ a.T + SIGMA_Y**2 * torch.eye(36, dtype=torch.float64), y.flatten() - a @ denoised
    )
    found = Guided(gaussian_data, operator, y, SIGMA_Y)(x, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(found.flatten(), denoised + sigma**2 * jacobian.T @ a.T @ inner)


def test_projected_keeps_exact_measurements_and_weighs_noisy_ones(gaussian_data: Any) -> None:
    operator = OPERATORS["superres"]
    y, x = measured(gaussian_data, operator), gaussian_data.draw(3)
    exact = Projected(gaussian_data, operator, y)(x, torch.tensor(0.5))
    torch.testing.assert_close(operator(exact), y)
    grid, noise = [0.5, 0.3, 0.0], Source(gaussian_data, 1, 3)
    noisy = Projected(gaussian_data, operator, y, 1.0, sigmas=grid, noise=noise)
    assert noisy.samplers == ("ancestral",)
    up, weight = 0.3 / 0.5 * (0.5**2 - 0.3**2) ** 0.5, 1 - 0.3**2 / 0.5**2
    trust = up * 0.5 / (weight * 1.0)  # singular values of 2x2 averages are 1/2
    denoised = gaussian_data(x, 0.5)
    found = noisy(x, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(found, denoised + trust * operator.pinv(y - operator(denoised)))


def test_projected_adds_up_to_the_noise_of_the_level(gaussian_data: Any) -> None:
    """The noise of y that a step lets in and the noise that it still adds make up the ancestral step's together."""
    operator, grid = OPERATORS["superres"], [0.5, 0.3, 0.0]
    for sigma_y in (0.05, 0.02):
        noise = Source(gaussian_data, 2000, 4)
        blank = torch.zeros(4000, 1, 3, 3, dtype=torch.float64)
        y = blank + sigma_y * torch.randn(blank.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        zero = torch.zeros(4000, *gaussian_data.shape, dtype=torch.float64)
        solver = Projected(lambda x, sigma: x * 0, operator, y, sigma_y, sigmas=grid, noise=noise)
        end = SAMPLERS["ancestral"](solver, zero, grid[:2], noise, solver.callback)
        up = 0.3 / 0.5 * (0.5**2 - 0.3**2) ** 0.5
        assert float(end.std()) == pytest.approx(up, rel=0.01)


def test_resampled_pastes_what_is_known(gaussian_data: Any) -> None:
    operator = OPERATORS["mask"]
    y = operator(gaussian_data.draw(2)).expand(4, -1, -1, -1)
    noise, own, grid = Source(gaussian_data, 2, 1), Source(gaussian_data, 2, 2), karras_grid(5, 0.05, 6)
    calls = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return gaussian_data(x, sigma)

    solver = Resampled(counted, operator, y, noise=own, repeats=3)
    end = SAMPLERS["ancestral"](solver, 5 * noise(0), grid, noise, solver.callback)
    assert torch.equal(operator(end), y)
    assert len(calls) == 6 + 2 * 5
    assert not torch.allclose(end[0], end[1])


def test_linearise_gives_the_jacobian(gaussian_data: Any) -> None:
    x = gaussian_data.draw(1)
    with torch.no_grad():
        denoised, pullback = linearise(gaussian_data, x, torch.tensor(0.3))
        v = gaussian_data.draw(2)
        torch.testing.assert_close(pullback(v).flatten(), gaussian_data.jacobian(0.3).T @ v.flatten())
    assert not denoised.requires_grad


@pytest.mark.parametrize("name", ["matched", "guided", "proximal"])
def test_what_needs_a_linear_operator_says_so(gaussian_data: Any, name: str) -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(ConfigError, match="linear operator"):
        SOLVERS[name](lambda x, sigma: x, Jpeg(50), x)(x, torch.tensor(1.0))


def test_a_quantised_picture_is_a_measurement_too() -> None:
    jpeg, x = Jpeg(20), torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    y = jpeg(x)
    found = Projected(lambda x, sigma: x, jpeg, y)(torch.zeros_like(x), torch.tensor(0.5))
    torch.testing.assert_close(jpeg(found), y)


def test_arguments_are_checked(gaussian_data: Any) -> None:
    operator, y = OPERATORS["superres"], measured(gaussian_data, OPERATORS["superres"])
    for make in (
        lambda: Matched(gaussian_data, operator, y, -1),
        lambda: Matched(gaussian_data, operator, y, iterations=0),
        lambda: Proximal(gaussian_data, operator, y, weight=0),
        lambda: Projected(gaussian_data, operator, y, 0.1),
        lambda: Resampled(gaussian_data, operator, y, noise=lambda draw: y),
        lambda: Resampled(gaussian_data, OPERATORS["mask"], y, noise=lambda draw: y, repeats=0),
    ):
        with pytest.raises(ConfigError, match=r"found|needs"):
            make()
