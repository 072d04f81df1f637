"""Zero-shot solvers: a wrapper that turns a denoiser into a denoiser that knows a measurement y = A x + sigma_y n.

Every sampler then serves every task: ``sample(posterior, x, sigmas, noise, posterior.callback)``. Only "matched" and
"guided" aim at samples of the posterior, and only "matched" meets it where it can be checked (docs/restoration.md).

- ``matched``:   Tweedie's covariance a^2 dD/dx in place of a guess (Boys et al. 2023; Rozet et al. 2024, MMPS).
- ``guided``:    PiGDM (Song et al. 2023): the same with an isotropic covariance.
- ``proximal``:  DiffPIR (Zhu et al. 2023): a proximal step on the measurement.
- ``projected``: DDNM+ (Wang et al. 2023): the measured part is replaced.
- ``resampled``: RePaint (Lugmayr et al. 2022): measured voxels are pasted, each step is repeated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from anodiff.diffusion.linearise import linearise
from anodiff.diffusion.samplers import DenoiserFn, Grid, NoiseSource, StepState
from anodiff.errors import ConfigError
from anodiff.restoration.operators import LinearOperator, Operator, reciprocal

#: measurements are never taken for more exact: half a grey level of 256, uniformly distributed
SIGMA_FLOOR = 1 / 127.5 / math.sqrt(12)
RESIDUAL_STEPS = 3
#: a row whose residual fell below this share of what there was to explain is solved
RESIDUAL_TOLERANCE = 1e-5
#: a row whose residual stays above this share of what there was to explain has no solution to be trusted
RESIDUAL_LEFT = 0.9
#: the root mean square of a correction, in standard deviations of the data, beyond which it is none of data
LARGEST_CORRECTION = 3.0
PROXIMAL_WEIGHT = 1.0
#: as published
RESAMPLINGS = 10


class Posterior(ABC):
    """The denoiser of images that were measured as y: E[x_0 | x, y] instead of E[x_0 | x], as a solver has it.

    denoiser: D(x, sigma); where it offers ``linearise(x, sigma) -> (D, v -> J'v)``, gradients are taken by that.
    sigma_y:  standard deviation of the measurement's noise, in the units of y.
    samplers: the samplers that the solver's formulas are for.
    """

    name = ""
    samplers: tuple[str, ...] = ("dpmpp", "ancestral", "ddim", "heun")

    def __init__(self, denoiser: DenoiserFn, operator: Operator, y: Tensor, sigma_y: float = 0.0) -> None:
        if not sigma_y >= 0:
            raise ConfigError(f"sigma_y: expected a noise level of 0 or more, found {sigma_y}")
        self.denoiser, self.operator, self.y, self.sigma_y = denoiser, operator, y, float(sigma_y)

    @property
    def linear(self) -> LinearOperator:
        """The operator, where it is linear; ConfigError where not."""
        if not isinstance(self.operator, LinearOperator):
            raise ConfigError(
                f"solver {self.name!r} needs a linear operator, found {type(self.operator).__name__}; "
                "'projected' takes any"
            )
        return self.operator

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimate of the clean image, (N, C, *S), at noise level ``sigma`` (a number)."""

    def callback(self, state: StepState) -> Tensor | None:
        """What the solver changes after a step of the sampler; nothing by default."""
        return None


class Proximal(Posterior):
    """D* = argmin_z |y - A z|^2 / sigma_y^2 + (weight / sigma^2) |z - D|^2 (DiffPIR)."""

    name = "proximal"

    def __init__(
        self,
        denoiser: DenoiserFn,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        weight: float = PROXIMAL_WEIGHT,
    ) -> None:
        super().__init__(denoiser, operator, y, sigma_y)
        if not weight > 0:
            raise ConfigError(f"weight: expected a positive number, found {weight}")
        self.weight = weight

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The closed form, by the operator's spectrum."""
        denoised = self.denoiser(x, sigma)
        residual = self.y - self.linear(denoised)
        return denoised + self.linear.solve(residual, self.weight * self.sigma_y**2 / float(sigma) ** 2)


class Guided(Posterior):
    """D* = D + sigma^2 J' A' (r^2 A A' + sigma_y^2)^-1 (y - A D) with r^2 = sigma^2 s^2 / (sigma^2 + s^2) (PiGDM).

    sigma_data: s, the standard deviation of the data.
    """

    name = "guided"

    def __init__(
        self, denoiser: DenoiserFn, operator: Operator, y: Tensor, sigma_y: float = 0.0, *, sigma_data: float = 0.5
    ) -> None:
        super().__init__(denoiser, operator, y, sigma_y)
        self.sigma_data = sigma_data

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """One call and one gradient."""
        denoised, pullback = linearise(self.denoiser, x, sigma)
        variance, data = float(sigma) ** 2, self.sigma_data**2
        expected = variance * data / (variance + data)
        residual = self.linear.solve(self.y - self.linear(denoised), self.sigma_y**2 / expected) / expected
        return denoised + variance * pullback(residual)


class Matched(Posterior):
    """D* = D + sigma^2 J' A' u with (sigma^2 A J' A' + sigma_y^2) u = y - A D: the posterior's own first two moments.

    J = dD/dx, so that sigma^2 J is the covariance of x_0 given x (Tweedie); exact for Gaussian data. The system is
    solved by ``iterations`` steps of generalised conjugate residuals (Eisenstat, Elman & Schultz 1983), each one
    gradient of the denoiser, from the solution at the noise level before where that is better than nothing: along a
    chain u changes little, and 3 steps do what 20 do from nothing. So an instance serves one chain.

    A network's Jacobian is only nearly a covariance, neither symmetric nor positive. So the residual is what is made
    small, which never grows, and what is left of it is explained by the isotropic covariance r^2 of ``guided``; a row
    whose residual stays large, or whose correction is larger than data are, is left to r^2 at that noise level.

    sigma_y is at least SIGMA_FLOOR. sigma_data: standard deviation of the data. An image's solution does not depend on
    the others of the batch.

    Attributes:
        isotropic: (N,) int64, at how many noise levels each row was left to r^2; None before any.
    """

    name = "matched"

    def __init__(
        self,
        denoiser: DenoiserFn,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        iterations: int = RESIDUAL_STEPS,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__(denoiser, operator, y, sigma_y)
        self.sigma_y = max(self.sigma_y, SIGMA_FLOOR)
        if iterations < 1:
            raise ConfigError(f"iterations: expected at least 1, found {iterations}")
        self.iterations, self.sigma_data = iterations, sigma_data
        self.isotropic: Tensor | None = None
        self._solution: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """One call and at most ``iterations`` + 1 gradients."""
        variance = float(sigma) ** 2
        denoised, pullback = linearise(self.denoiser, x, sigma)
        unexplained = self.y - self.linear(denoised)

        def covariance(u: Tensor) -> Tensor:
            return variance * pullback(self.linear.adjoint(u))

        solution, change, residual = self._solved(covariance, unexplained, torch.zeros_like(denoised))
        reduced = _norms(residual) <= RESIDUAL_LEFT * _norms(unexplained)
        sound = reduced & (_norms(change) <= LARGEST_CORRECTION * self.sigma_data * math.sqrt(change[0].numel()))
        self._solution = _where(sound, solution, torch.zeros_like(solution))
        self.isotropic = (~sound).long() + (0 if self.isotropic is None else self.isotropic)
        left = _where(sound, residual, unexplained)
        expected = variance * self.sigma_data**2 / (variance + self.sigma_data**2)
        isotropic = self.linear.solve(left, self.sigma_y**2 / expected)
        return denoised + _where(sound, change, torch.zeros_like(change)) + isotropic

    def _solved(
        self, covariance: Callable[[Tensor], Tensor], unexplained: Tensor, change: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u, sigma^2 J' A' u (``change``, 0 at first), and what u leaves of ``unexplained``: in no row more of it."""
        noise, operator = self.sigma_y**2, self.linear
        solution, residual = torch.zeros_like(unexplained), unexplained
        whole = _norms(unexplained)
        if self._solution is not None:
            brought = covariance(self._solution)
            left = unexplained - operator(brought) - noise * self._solution
            better = _norms(left) < whole
            solution, change = _where(better, self._solution, solution), _where(better, brought, change)
            residual = _where(better, left, residual)
        earlier: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(self.iterations):
            direction, pulled = residual, covariance(residual)
            applied = operator(pulled) + noise * direction
            for u, c, r in earlier:
                share = _row_sums(applied * r)
                direction, pulled = direction - _rows(share, u), pulled - _rows(share, c)
                applied = applied - _rows(share, r)
            size = _norms(applied)
            # What is left of a solved row is rounding, and scaling it up would make it a direction.
            active = (size > 0) & (_norms(residual) > RESIDUAL_TOLERANCE * whole)
            scale = torch.where(active, 1 / torch.where(active, size, 1), 0)
            u, c, r = _rows(scale, direction), _rows(scale, pulled), _rows(scale, applied)
            earlier.append((u, c, r))
            step = _row_sums(residual * r)
            # J'A'u needs no gradient of its own: u is a sum of directions, and each is pulled back already.
            solution, change, residual = solution + _rows(step, u), change + _rows(step, c), residual - _rows(step, r)
        return solution, change, residual


class Projected(Posterior):
    """D* = D + L A+ (y - A D), then less fresh noise in the measured part (DDNM+).

    sigmas, noise: the grid and the noise source of the sampler, needed where ``sigma_y`` > 0: how far a step may trust
    y (L = min(1, s up / (k sigma_y)) for singular value s) depends on the step, and the noise that y brings along is
    taken off what the ancestral sampler adds. For an operator that is not linear: the nearest image measured as y.
    """

    name = "projected"

    def __init__(
        self,
        denoiser: DenoiserFn,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        sigmas: Grid | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        super().__init__(denoiser, operator, y, sigma_y)
        self._next: dict[float, float] = {}
        self._noise = noise
        if self.sigma_y > 0:
            if sigmas is None or noise is None:
                raise ConfigError("solver 'projected' needs the grid and the noise source where sigma_y > 0")
            levels = [float(s) for s in torch.as_tensor(sigmas, dtype=torch.float64).reshape(-1)]
            self._next = dict(pairwise(levels))
            self.samplers = ("ancestral",)
            _ = self.linear

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """One call."""
        denoised = self.denoiser(x, sigma)
        if self.sigma_y == 0:
            return self.operator.project(denoised, self.y)
        trust = self._trust(float(sigma), self._next[float(sigma)])
        back = self.linear.adjoint(self.y - self.linear(denoised))
        return denoised + self.linear.spectral(back, lambda s2: trust(s2) * reciprocal(s2))

    def callback(self, state: StepState) -> Tensor | None:
        """Takes the noise of y off the noise that the step added."""
        if self.sigma_y == 0 or state.sigma_next == 0:
            return None
        assert self._noise is not None
        up, weight = _ancestral(state.sigma, state.sigma_next)
        trust = self._trust(state.sigma, state.sigma_next)

        def surplus(s2: Tensor) -> Tensor:
            brought = (weight * self.sigma_y * trust(s2)) ** 2 * reciprocal(s2)
            return up - (up**2 - brought).clamp(min=0).sqrt()

        return state.x - self.linear.spectral(self._noise(state.i + 1), surplus)

    def _trust(self, sigma: float, sigma_next: float) -> Callable[[Tensor], Tensor]:
        up, weight = _ancestral(sigma, sigma_next)
        return lambda s2: (s2.sqrt() * (up / (weight * self.sigma_y))).clamp(max=1)


class Resampled(Posterior):
    """Measured voxels are pasted after each step, at its noise level, and each step is done ``repeats`` times.

    For masks only. noise: a source of its own (not the sampler's), for the pasted voxels and the steps done again.
    """

    name = "resampled"
    samplers = ("ancestral",)

    def __init__(
        self,
        denoiser: DenoiserFn,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        noise: NoiseSource,
        repeats: int = RESAMPLINGS,
    ) -> None:
        super().__init__(denoiser, operator, y, sigma_y)
        if not operator.is_mask:
            raise ConfigError(f"solver 'resampled' needs a mask, found {type(operator).__name__}")
        if repeats < 1:
            raise ConfigError(f"repeats: expected at least 1, found {repeats}")
        self.noise, self.repeats = noise, repeats

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser itself."""
        return self.denoiser(x, sigma)

    def callback(self, state: StepState) -> Tensor:
        """Paste; then up to the level before and down again, ``repeats - 1`` times, unless the chain is at its end."""
        a, b = state.sigma, state.sigma_next
        draw = 3 * self.repeats * state.i
        x = self._paste(state.x, b, draw)
        if b == 0:
            return x
        up, weight = _ancestral(a, b)
        for _ in range(self.repeats - 1):
            draw += 3
            x = x + math.sqrt(a * a - b * b) * self.noise(draw + 1)
            denoised = self.denoiser(x, torch.tensor(a, dtype=torch.float64))
            x = self._paste(x + weight * (denoised - x) + up * self.noise(draw + 2), b, draw)
        return x

    def _paste(self, x: Tensor, level: float, draw: int) -> Tensor:
        # Below its own noise level y is noisier than x ought to be: from there on the denoiser has the word.
        if level < self.sigma_y:
            return x
        added = math.sqrt(level**2 - self.sigma_y**2)
        known = self.y + added * self.noise(draw) if added else self.y
        return self.operator(known) + (x - self.operator(x))


SOLVERS: dict[str, type[Posterior]] = {each.name: each for each in (Matched, Guided, Proximal, Projected, Resampled)}


def _ancestral(a: float, b: float) -> tuple[float, float]:
    """Of the ancestral step from level a to b: its noise, and the weight of the estimate in it."""
    return (b / a) * math.sqrt(a * a - b * b), 1 - (b / a) ** 2


def _row_sums(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1)


def _norms(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def _where(rows: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """The images (N, C, *S) of ``chosen`` where a row (N,) is True, else of ``other``."""
    return torch.where(rows.reshape(-1, *(1,) * (chosen.ndim - 1)), chosen, other)


def _rows(factors: Tensor, values: Tensor) -> Tensor:
    """One factor (N,) an image, times the images (N, C, *S)."""
    return factors.reshape(-1, *(1,) * (values.ndim - 1)) * values
