"""Samplers: plain functions that walk a noisy image down (or up) a grid of noise levels with a denoiser.

All share one signature. ``denoiser(x, sigma)`` is any callable from a noisy image (N, C, *spatial) = x_0 + sigma * n
and a noise level (a 0-dim float64 CPU tensor) to an estimate of x_0; ``x`` is at level ``sigmas[0]``; the grid
descends, and may end at 0. Grids are Python floats in the loop, so nothing waits for an accelerator. The random
samplers take the noise of step i from ``noise(i + 1)``: draw 0 is left for the noise that made x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from anodiff.errors import ConfigError

DenoiserFn = Callable[[Tensor, Tensor], Tensor]
#: D(x, sigma), and where the reverse variance lies between the small (0) and the large one (1), in the logarithm
VarianceFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Level = TypeVar("Level", float, Tensor)
NoiseSource = Callable[[int], Tensor]


@dataclass(frozen=True)
class StepState:
    """What a callback sees after step i: x is now at ``sigma_next``; ``denoised`` is the estimate at ``sigma``."""

    i: int
    sigma: float
    sigma_next: float
    x: Tensor
    denoised: Tensor


Callback = Callable[[StepState], Tensor | None]  # a returned tensor replaces x
Grid = Tensor | Sequence[float]


def sample_ddim(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Grid,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    *,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12), which at eta = 0 is Euler's method on the probability flow; order 1.

    eta: share of the ancestral noise put back at each step: 0 deterministic, 1 the small-variance ancestral sampler.
    One denoiser call a step. Raises ConfigError for a grid that does not descend, or noise missing where eta > 0.
    """
    source = _required(noise, "sample_ddim with eta > 0") if eta > 0 else None
    for i, (a, b) in enumerate(_steps(sigmas)):
        denoised = denoiser(x, _level(a))
        up = eta * (b / a) * math.sqrt(a * a - b * b)
        x = denoised + (x - denoised) * (math.sqrt(b * b - up * up) / a)
        if source is not None and up > 0:
            x = x + source(i + 1) * up
        x = _after(callback, i, a, b, x, denoised)
    return x


def sample_ancestral(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Grid,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    *,
    variance: str = "small",
    eta: float = 1.0,
    preserving: bool = True,
) -> Tensor:
    """DDPM (Ho et al. 2020, algorithm 2) on any stride.

    variance: "small", the posterior's own variance b^2 (a^2 - b^2) / a^2 from level a to b, the same for every process;
              "large", beta of the stride from a to b. That one belongs to the variance-preserving process: its beta is
              (a^2 - b^2) / (1 + a^2), on the additive scale of x a variance of (a^2 - b^2)(1 + b^2) / (1 + a^2).
              "learned", the denoiser's own ``with_variance(x, sigma) -> (D, share)``: ln variance = share ln large +
              (1 - share) ln small (Nichol & Dhariwal 2021, equation 15), ``preserving`` saying which large is meant.
    eta:      share of the noise, for "small" only (0 is DDIM). Noise is drawn at every step but one that ends at 0.
    One denoiser call a step; weak order 1. Raises ConfigError for a grid that does not descend or missing noise.
    """
    if variance == "small":
        return sample_ddim(denoiser, x, sigmas, noise, callback, eta=eta)
    if variance not in ("large", "learned"):
        raise ConfigError(f"variance must be 'small', 'large' or 'learned', found {variance!r}")
    if eta != 1:
        raise ConfigError(f"the {variance} variance is defined for eta = 1 only, found {eta}")
    source = _required(noise, "sample_ancestral")
    learned = _with_variance(denoiser) if variance == "learned" else None
    for i, (a, b) in enumerate(_steps(sigmas)):
        denoised, share = (denoiser(x, _level(a)), None) if learned is None else learned(x, _level(a))
        x = denoised + (x - denoised) * (b * b / (a * a))
        if b > 0:
            small, large = step_variances(a, b, preserving or share is None)
            x = x + source(i + 1) * (math.sqrt(large) if share is None else between(small, large, share).sqrt())
        x = _after(callback, i, a, b, x, denoised)
    return x


def sample_dpmpp_2m(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Grid,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): two-step exponential integrator in ln(sigma); order 2.

    One denoiser call a step; the first step and one that ends at 0 are of order 1. Deterministic: ``noise`` is unused.
    Raises ConfigError for a grid that does not descend.
    """
    previous: Tensor | None = None
    h_previous = math.nan
    for i, (a, b) in enumerate(_steps(sigmas)):
        denoised = denoiser(x, _level(a))
        target = denoised
        h = math.log(a / b) if b > 0 else math.inf
        if previous is not None and b > 0:
            target = denoised + (denoised - previous) * (h / (2 * h_previous))
        x = target + (x - target) * (b / a)
        previous, h_previous = denoised, h
        x = _after(callback, i, a, b, x, denoised)
    return x


def sample_heun(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Grid,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's method on the probability flow dx/dsigma = (x - D) / sigma (Karras et al. 2022, algorithm 1); order 2.

    Two denoiser calls a step, one where the step ends at 0. Deterministic: ``noise`` is not used.
    Raises ConfigError for a grid that does not descend.
    """
    for i, (a, b) in enumerate(_steps(sigmas)):
        x, denoised = _heun_step(denoiser, x, a, b)
        x = _after(callback, i, a, b, x, denoised)
    return x


def invert(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Grid,
    method: str = "ddim",
    callback: Callback | None = None,
) -> Tensor:
    """Probability flow upwards: from an image taken to be at level ``sigmas[0]`` to its latent at ``sigmas[-1]``.

    sigmas: ascending, from a small sigma_min > 0 (a clean image is close to its own noisy version there).
    method: "ddim" (order 1) or "heun" (order 2, twice the calls). Sampling down the reversed grid with the same method
    returns the input up to the method's error. Raises ConfigError for another method or grid.
    """
    if method not in ("ddim", "heun"):
        raise ConfigError(f"inversion method must be 'ddim' or 'heun', found {method!r}")
    for i, (a, b) in enumerate(_steps(sigmas, ascending=True)):
        if method == "heun":
            x, denoised = _heun_step(denoiser, x, a, b)
        else:
            denoised = denoiser(x, _level(a))
            x = denoised + (x - denoised) * (b / a)
        x = _after(callback, i, a, b, x, denoised)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddim": sample_ddim,
    "ancestral": sample_ancestral,
    "dpmpp": sample_dpmpp_2m,
    "heun": sample_heun,
}


def step_variances(a: Level, b: Level, preserving: bool) -> tuple[Level, Level]:
    """(small, large) variance of the reverse step from level a to b, in the units of x_0 + sigma n.

    Small is the posterior's, b^2 (a^2 - b^2) / a^2. Large is beta of the stride, which on this scale is a^2 - b^2 for
    the additive process and (a^2 - b^2)(1 + b^2) / (1 + a^2) for the variance-preserving one.
    """
    beta = a * a - b * b
    return b * b * beta / (a * a), beta * (1 + b * b) / (1 + a * a) if preserving else beta


def between(small: float, large: float, share: Tensor) -> Tensor:
    """The variance at ``share`` of the way from small to large, linear in the logarithm; shape of ``share``."""
    return (share * math.log(large / small) + math.log(small)).exp()


def nfe(name: str, n_steps: int, final_zero: bool = True) -> int:
    """Denoiser calls of a sampler of :data:`SAMPLERS` on a grid of ``n_steps`` steps (ending at 0 or not)."""
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r} (known: {', '.join(SAMPLERS)})")
    if name == "heun":
        return 2 * n_steps - (1 if final_zero else 0)
    return n_steps


def _heun_step(denoiser: DenoiserFn, x: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    denoised = denoiser(x, _level(a))
    slope = (x - denoised) / a
    ahead = x + slope * (b - a)
    if b == 0:
        return ahead, denoised
    slope_ahead = (ahead - denoiser(ahead, _level(b))) / b
    return x + (slope + slope_ahead) * ((b - a) / 2), denoised


def _with_variance(denoiser: DenoiserFn) -> VarianceFn:
    learned: VarianceFn | None = getattr(denoiser, "with_variance", None)
    if learned is None:
        raise ConfigError("the learned variance needs a denoiser that offers with_variance(x, sigma), found another")
    return learned


def _level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


def _steps(sigmas: Grid, ascending: bool = False) -> list[tuple[float, float]]:
    """(from, to) of each step. Raises ConfigError unless strictly monotonic, positive, and 0 only at the lower end."""
    levels = [float(s) for s in torch.as_tensor(sigmas, dtype=torch.float64).cpu().reshape(-1)]
    steps = list(pairwise(levels))
    if ascending:
        if not (levels and levels[0] > 0 and all(a < b < math.inf for a, b in steps)):
            raise ConfigError(f"an inversion grid must ascend strictly from a level above 0, found {_brief(levels)}")
    elif not (levels and levels[0] < math.inf and levels[-1] >= 0 and all(a > b for a, b in steps)):
        raise ConfigError(f"a sampling grid must descend strictly to a level of 0 or more, found {_brief(levels)}")
    return steps


def _brief(levels: list[float]) -> str:
    shown = ", ".join(f"{s:g}" for s in levels[:4])
    return f"[{shown}, ... {levels[-1]:g}]" if len(levels) > 4 else f"[{shown}]"


def _required(noise: NoiseSource | None, what: str) -> NoiseSource:
    if noise is None:
        raise ConfigError(f"{what} needs a noise source")
    return noise


def _after(callback: Callback | None, i: int, a: float, b: float, x: Tensor, denoised: Tensor) -> Tensor:
    if callback is None:
        return x
    replaced = callback(StepState(i, a, b, x, denoised))
    return x if replaced is None else replaced
