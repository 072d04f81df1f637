"""Noise schedules (step t <-> noise level sigma) and the grids of sigma that samplers walk down.

Every forward process of this library has the marginal ``x_t = alpha_t * (x_0 + sigma_t * n)``. Dividing by ``alpha_t``
leaves additive noise of level ``sigma_t``, in the units of the [-1, 1] data, and that is all a sampler ever sees.
Tables are float64 and live on the CPU.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from anodiff.errors import ConfigError

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: a beta of 1 would erase the image and make sigma infinite


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Table of a discrete forward process: after ``t`` noising steps the image is ``alpha_t * (x_0 + sigma_t * n)``.

    name:    what :func:`make_schedule` calls it.
    alphas:  (T,) float64, factor on the image; 1 everywhere for additive processes.
    sigmas:  (T,) float64, ascending, noise level relative to the image; ``sigmas[t - 1]`` belongs to step t = 1..T.

    Step t counts noising steps. Networks and papers often count timesteps from 0: their timestep i is step i + 1 here
    (timestep 250 of 1000 is step 251: sigma 0.958 on the linear and 0.427 on the cosine schedule).
    """

    name: str
    alphas: Tensor
    sigmas: Tensor

    def __post_init__(self) -> None:
        if self.sigmas.ndim != 1 or self.sigmas.shape != self.alphas.shape or self.sigmas.numel() < 1:
            raise ConfigError(
                f"schedule {self.name!r}: alphas and sigmas must be two equally long vectors, "
                f"found shapes {tuple(self.alphas.shape)} and {tuple(self.sigmas.shape)}"
            )
        sigmas = self.sigmas.double()
        if not bool(torch.isfinite(sigmas).all()) or sigmas[0] <= 0 or bool((sigmas.diff() <= 0).any()):
            raise ConfigError(f"schedule {self.name!r}: sigmas must be finite, positive and strictly ascending")

    @property
    def num_steps(self) -> int:
        """T, the number of noising steps."""
        return self.sigmas.numel()

    @property
    def sigma_min(self) -> float:
        """Noise level after the first step."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """Noise level after the last step."""
        return float(self.sigmas[-1])

    @cached_property
    def is_variance_preserving(self) -> bool:
        """True where ``alpha^2 * (1 + sigma^2) = 1`` in the whole table (DDPM), False for additive processes."""
        return bool(torch.allclose(self.alphas**2 * (1 + self.sigmas**2), torch.ones_like(self.sigmas), rtol=1e-9))

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64. Variance-preserving: ``1 - abar_t / abar_{t-1}``; additive: ``sigma_t^2 - sigma_{t-1}^2``."""
        if self.is_variance_preserving:
            abar = torch.cat([self.alphas.new_ones(1), self.alphas**2])
            return 1 - abar[1:] / abar[:-1]
        return torch.cat([self.sigmas.new_zeros(1), self.sigmas**2]).diff()

    def sigma_of(self, t: Tensor | float) -> Tensor:
        """Noise level of step ``t``: float64, shape of ``t``, on the CPU.

        Real steps between 1 and T are interpolated in ln(sigma); between 0 (clean) and 1 sigma grows linearly.
        Raises ConfigError for a step outside 0..T.
        """
        t = torch.as_tensor(t, dtype=torch.float64).cpu()
        if bool(((t < 0) | (t > self.num_steps) | t.isnan()).any()):
            raise ConfigError(f"schedule {self.name!r} has steps 0 to {self.num_steps}, found step {_range(t)}")
        index = (t - 1).clamp(0, self.num_steps - 1)
        low = index.floor().long()
        high = (low + 1).clamp(max=self.num_steps - 1)
        log_sigmas = self.sigmas.log()
        # exp(log(.)) would be off by a rounding at whole steps, where the table itself is wanted.
        between = torch.lerp(log_sigmas[low], log_sigmas[high], index - low).exp()
        sigma = torch.where(index == low, self.sigmas[low], between)
        return torch.where(t < 1, t * self.sigmas[0], sigma)

    def t_of(self, sigma: Tensor | float) -> Tensor:
        """Real step of a noise level, the inverse of :meth:`sigma_of`: float64, shape of ``sigma``, same device.

        Levels above ``sigma_max`` give T. Raises nothing, so that it can be used on an accelerator without waiting.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        table = self.sigmas.to(sigma.device)
        if table.numel() == 1:
            return (sigma / table[0]).clamp(0, 1)
        high = torch.searchsorted(table, sigma.contiguous()).clamp(1, table.numel() - 1)
        low = high - 1
        position = sigma.clamp(min=table[0], max=table[-1])
        share = (position / table[low]).log() / (table[high] / table[low]).log()
        return torch.where(sigma < table[0], sigma / table[0], 1 + low + share)

    def alpha_of(self, sigma: Tensor | float) -> Tensor:
        """Factor on the image at a noise level: ``1 / sqrt(1 + sigma^2)`` if variance-preserving, else 1. float64."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return (1 + sigma**2).rsqrt() if self.is_variance_preserving else torch.ones_like(sigma)


def _range(t: Tensor) -> str:
    low, high = float(t.min()), float(t.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def from_betas(name: str, betas: Tensor) -> NoiseSchedule:
    """Variance-preserving schedule of a (T,) table of betas in (0, 1): ``alpha_t^2 = prod(1 - beta)``. Ho et al. 2020.

    Raises ConfigError for a beta outside (0, 1).
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if bool(((betas <= 0) | (betas >= 1) | betas.isnan()).any()):
        raise ConfigError(f"schedule {name!r}: every beta must lie between 0 and 1, found {_range(betas)}")
    log_abar = torch.log1p(-betas).cumsum(0)
    # expm1 keeps the first levels exact where 1 - abar would cancel.
    return NoiseSchedule(name, (log_abar / 2).exp(), (-log_abar).expm1().sqrt())


def _beta_range(num_steps: int, beta_start: float | None, beta_end: float | None) -> tuple[float, float]:
    # The published 1e-4..0.02 belong to 1000 steps; another T keeps the same total noise (Nichol & Dhariwal 2021).
    start = min(0.1 / num_steps, MAX_BETA) if beta_start is None else beta_start
    end = min(20.0 / num_steps, MAX_BETA) if beta_end is None else beta_end
    return start, end


def _linear_betas(num_steps: int, beta_start: float | None, beta_end: float | None) -> Tensor:
    return torch.linspace(*_beta_range(num_steps, beta_start, beta_end), num_steps, dtype=torch.float64)


def _vp_linear(num_steps: int, beta_start: float | None = None, beta_end: float | None = None) -> NoiseSchedule:
    return from_betas("vp-linear", _linear_betas(num_steps, beta_start, beta_end))


def _vp_scaled_linear(num_steps: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64)
    return from_betas("vp-scaled-linear", roots**2)


def _vp_cosine(num_steps: int, offset: float = 0.008) -> NoiseSchedule:
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    abar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas("vp-cosine", (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA))


def _vp_sigmoid(
    num_steps: int, beta_start: float | None = None, beta_end: float | None = None, half_width: float = 6.0
) -> NoiseSchedule:
    start, end = _beta_range(num_steps, beta_start, beta_end)
    ramp = torch.linspace(-half_width, half_width, num_steps, dtype=torch.float64).sigmoid()
    return from_betas("vp-sigmoid", start + (end - start) * ramp)


def _additive(num_steps: int, beta_start: float | None = None, beta_end: float | None = None) -> NoiseSchedule:
    sigmas = _linear_betas(num_steps, beta_start, beta_end).cumsum(0).sqrt()
    return NoiseSchedule("additive", torch.ones_like(sigmas), sigmas)


def _edm(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
    sigmas = karras_grid(sigma_max, sigma_min, num_steps, rho, final_zero=False).flip(0)
    return NoiseSchedule("edm", torch.ones_like(sigmas), sigmas)


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "vp-linear": _vp_linear,
    "vp-scaled-linear": _vp_scaled_linear,
    "vp-cosine": _vp_cosine,
    "vp-sigmoid": _vp_sigmoid,
    "additive": _additive,
    "edm": _edm,
}


def make_schedule(name: str, num_steps: int = 1000, **options: float) -> NoiseSchedule:
    """Schedule by name, with ``num_steps`` = T noising steps.

    - ``vp-linear`` (beta_start, beta_end): DDPM, Ho et al. 2020. Left out, the betas are 0.1/T and 20/T: the published
      1e-4 and 0.02 at T = 1000, and the same total noise at any other T.
    - ``vp-scaled-linear`` (beta_start, beta_end): sqrt(beta) linear, as latent-diffusion networks are trained.
    - ``vp-cosine`` (offset): Nichol & Dhariwal 2021, equation 17, beta clipped at 0.999.
    - ``vp-sigmoid`` (beta_start, beta_end, half_width): beta on a sigmoid ramp.
    - ``additive`` (beta_start, beta_end): ``x_{t+1} = x_t + sqrt(beta_t) * n``, so ``sigma_t^2 = sum(beta)``.
    - ``edm`` (sigma_min, sigma_max, rho): Karras et al. 2022, equation 5, read upwards.

    Raises ConfigError for an unknown name (naming the nearest), an unknown option or a value out of range.
    """
    if name not in SCHEDULES:
        nearest = difflib.get_close_matches(name, SCHEDULES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown noise schedule {name!r}; did you mean {nearest!r}? (known: {', '.join(SCHEDULES)})")
    if num_steps < 1:
        raise ConfigError(f"schedule {name!r} needs at least 1 step, found {num_steps}")
    try:
        return SCHEDULES[name](num_steps, **options)
    except TypeError as error:
        raise ConfigError(f"schedule {name!r}: {str(error).split('() ')[-1]}") from None


def karras_grid(sigma_max: float, sigma_min: float, n: int, rho: float = 7.0, final_zero: bool = True) -> Tensor:
    """Grid of Karras et al. 2022, equation 5: n levels, sigma_max down to sigma_min, evenly spaced in sigma^(1/rho).

    Returns (n + 1,) float64, descending and ending at 0, or (n,) ending at sigma_min where ``final_zero`` is False.
    With ``final_zero`` n is the number of sampler steps. Raises ConfigError unless 0 < sigma_min < sigma_max and n >= 1
    (at n = 1 the grid is sigma_max alone).
    """
    _check_grid_arguments(sigma_max, sigma_min, n)
    if rho <= 0:
        raise ConfigError(f"rho of a Karras grid must be positive, found {rho:g}")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _finish(((1 - ramp) * top + ramp * bottom) ** rho, sigma_max, sigma_min, final_zero)


def log_grid(sigma_max: float, sigma_min: float, n: int, final_zero: bool = True) -> Tensor:
    """Like :func:`karras_grid`, evenly spaced in ln(sigma): the limit of rho to infinity."""
    _check_grid_arguments(sigma_max, sigma_min, n)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    grid = ((1 - ramp) * math.log(sigma_max) + ramp * math.log(sigma_min)).exp()
    return _finish(grid, sigma_max, sigma_min, final_zero)


def step_grid(schedule: NoiseSchedule, start_step: int, n: int, final_zero: bool = True) -> Tensor:
    """The n levels of a schedule at steps start_step * (n, n-1, ..., 1) / n, rounded: "trailing" strides.

    Returns (n + 1,) float64 ending at 0, or (n,) where ``final_zero`` is False; ``n = start_step`` is the full chain of
    the DDPM papers. Few steps on such a grid lose fine detail even with a perfect network: prefer :func:`karras_grid`.
    Raises ConfigError unless 1 <= n <= start_step <= T.
    """
    if not 1 <= n <= start_step <= schedule.num_steps:
        raise ConfigError(
            f"a step grid needs 1 <= n <= start step <= {schedule.num_steps}, found n = {n} and start step {start_step}"
        )
    steps = (torch.arange(n, 0, -1, dtype=torch.float64) * (start_step / n)).round().long()
    grid = schedule.sigmas[steps - 1]
    return torch.cat([grid, grid.new_zeros(1)]) if final_zero else grid


def _check_grid_arguments(sigma_max: float, sigma_min: float, n: int) -> None:
    if n < 1:
        raise ConfigError(f"a grid needs at least 1 step, found {n}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigError(f"a grid needs 0 < sigma_min < sigma_max, found {sigma_min:g} and {sigma_max:g}")


def _finish(grid: Tensor, sigma_max: float, sigma_min: float, final_zero: bool) -> Tensor:
    # The ends as asked for, not as powers and logarithms round them: a start level must be found again exactly.
    if grid.numel() > 1:
        grid[-1] = sigma_min
    grid[0] = sigma_max
    return torch.cat([grid, grid.new_zeros(1)]) if final_zero else grid
