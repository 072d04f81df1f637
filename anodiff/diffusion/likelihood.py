"""Likelihood of images under a denoiser: the discrete and the continuous variational bound, and the probability flow.

All three are -log p(x) in nats, in the same parts. ``prior`` is what the noisiest level costs, ``reconstruction`` what
the values cost once the least noisy level is known, ``chain`` what lies between. They are written for additive noise
x + sigma n; a variance-preserving process differs in its prior alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from anodiff.diffusion.linearise import Pullback, linearise
from anodiff.diffusion.samplers import DenoiserFn, NoiseSource, VarianceFn, between, step_variances
from anodiff.errors import ConfigError

EXACT = "exact"


@dataclass(frozen=True)
class Likelihood:
    """-log p of N images in nats an image, (N,) float64 each part.

    terms: (N, L) float64, the chain's share of each noise level; sigmas: (L,) those levels. Empty for the flow.
    dims:  values an image. calls: denoiser calls an image. gradients: of the denoiser, an image.
    """

    prior: Tensor
    chain: Tensor
    reconstruction: Tensor
    terms: Tensor
    sigmas: Tensor
    dims: int
    calls: int
    gradients: int = 0

    @property
    def nats(self) -> Tensor:
        """-log p, (N,)."""
        return self.prior + self.chain + self.reconstruction

    def bits_per_dim(self, density_width: float | Tensor | None = None) -> Tensor:
        """(N,) bits a value. density_width: where the values are real numbers, the bin that the bits are stated for."""
        bits = self.nats / (self.dims * math.log(2))
        return bits if density_width is None else bits - torch.as_tensor(density_width, dtype=torch.float64).log2()


def discrete_bound(
    denoiser: DenoiserFn,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    noise: NoiseSource,
    *,
    preserving: bool,
    width: float | Tensor | None = None,
    edges: bool = True,
    learned: VarianceFn | None = None,
) -> Likelihood:
    """Variational bound of a chain of T levels (Ho et al. 2020, equation 5), with one draw of noise a level.

    With the small (posterior) variance the step from level a to b < a costs (1/b^2 - 1/a^2) |x - D|^2 / 2, for every
    process. With few steps this is far above -log p even for a perfect denoiser: state the schedule and T.

    Args:
        denoiser: D(x, sigma). x: images (N, C, *S).
        sigmas: (T,) ascending levels. noise: draw t = 1..T gives the (N, C, *S) normal numbers of level t.
        preserving: whether the process ends in N(0, 1) (variance-preserving) or in N(0, sigma_T^2) (additive).
        width, edges: see `reconstruction_nats`.
        learned: D and the share of each value's reverse variance (Nichol & Dhariwal 2021); None is the small variance,
            and a decoder of standard deviation sigma_1.

    Raises ConfigError for levels that do not ascend.
    """
    levels = _ascending(sigmas)
    terms = []
    reconstruction = x.new_zeros(len(x), dtype=torch.float64)
    for t, a in enumerate(levels, start=1):
        noisy = x + a * noise(t)
        denoised, share = (denoiser(noisy, _level(a)), None) if learned is None else learned(noisy, _level(a))
        b = levels[t - 2] if t > 1 else 0.0
        if t == 1:
            std = a if share is None else between(*decoder_variances(a), share.double()).sqrt()
            reconstruction = reconstruction_nats(x, denoised, std, width, edges)
        elif share is None:
            terms.append((1 / b**2 - 1 / a**2) / 2 * _square(x - denoised))
        else:
            terms.append(_rows(step_nats((x - denoised).double(), a, b, share, preserving)))
    return _assembled(x, levels[-1], preserving, terms, levels[1:], reconstruction, len(levels))


def continuous_bound(
    denoiser: DenoiserFn,
    x: Tensor,
    low: float,
    high: float,
    levels: int,
    noise: NoiseSource,
    *,
    preserving: bool,
    width: float | Tensor | None = None,
    edges: bool = True,
) -> Likelihood:
    """The bound of infinitely many steps: the integral of |x - D|^2 / sigma^2 over ln sigma from level low to high.

    Kingma et al. 2021, equation 17. It is summed by the midpoint rule at ``levels`` levels, evenly spaced in the
    logarithm, alike for all images; draw k = 1..levels is the noise of level k, draw 0 that of the reconstruction.
    One draw a level leaves an error of about sqrt(2 h ln(s / low) / dims) nats a dimension on data of deviation s, with
    h the distance of two levels: 0.01 at 128 x 128 pixels and 64 levels.
    Arguments otherwise as for `discrete_bound`. One call a level and one more.
    """
    low, high = _ascending([low, high])
    h = math.log(high / low) / levels
    middles = [low * math.exp((k + 0.5) * h) for k in range(levels)]
    terms = [
        h / sigma**2 * _square(x - denoiser(x + sigma * noise(k), _level(sigma)))
        for k, sigma in enumerate(middles, start=1)
    ]
    reconstruction = reconstruction_nats(x, denoiser(x + low * noise(0), _level(low)), low, width, edges)
    return _assembled(x, high, preserving, terms, middles, reconstruction, levels + 1)


def flow_likelihood(
    denoiser: DenoiserFn,
    x: Tensor,
    low: float,
    high: float,
    steps: int,
    noise: NoiseSource,
    *,
    preserving: bool,
    width: float | Tensor | None = None,
    edges: bool = True,
    method: str = "heun",
    probes: int | str = 1,
    sigma_data: float = 0.5,
) -> Likelihood:
    """-log p by the probability flow (Song et al. 2021, section 4.3), from a draw at level low up to level high.

    ln p of x at level low is ln N(x; 0, prior) at level high plus the integral of trace(1 - dD/dx) over ln sigma, along
    dx/d(ln sigma) = x - D. Values are decoded from level low, which makes it a bound for them (Song et al. 2021b).

    Args:
        steps: of the solver, evenly spaced in ln sigma. method: "heun" (2 calls a step) or "rk4" (4 calls).
        probes: random signs a trace is estimated with (Hutchinson; one draw for the whole path), or "exact": a gradient
            a value and call, for small images. Signs are those of the noise of draws 1, 2, ...; draw 0 makes level low.
        sigma_data: about the data's deviation. The path is solved for x / sqrt(sigma_data^2 + sigma^2), which for
            Gaussian data of that deviation is at rest.
        Others as for `continuous_bound`.

    Raises ConfigError for another method or no probe.
    """
    if method not in TABLEAUS:
        raise ConfigError(f"method: expected one of {', '.join(TABLEAUS)}, found {method!r}")
    low, high = _ascending([low, high])
    start = x + low * noise(0)
    directions = _directions(x, probes, noise)
    h = math.log(high / low) / steps
    offsets, mixes, weights = TABLEAUS[method]
    point, gained = start / math.hypot(sigma_data, low), x.new_zeros(len(x), dtype=torch.float64)
    for step in range(steps):
        slopes: list[tuple[Tensor, Tensor]] = []
        for offset, mix in zip(offsets, mixes, strict=True):
            at = point + h * sum(weight * slope for weight, (slope, _) in zip(mix, slopes, strict=True))
            slopes.append(_flow(denoiser, at, low * math.exp((step + offset) * h), sigma_data, directions))
        point = point + h * sum(weight * slope for weight, (slope, _) in zip(weights, slopes, strict=True))
        gained = gained + h * sum(weight * rate for weight, (_, rate) in zip(weights, slopes, strict=True))
    prior_std = math.sqrt(1 + high**2) if preserving else high
    prior = _rows(gaussian_nats(point * math.hypot(sigma_data, high), prior_std))
    denoised = denoiser(start, _level(low))
    decoded = reconstruction_nats(x, denoised, low, width, edges) - _rows(gaussian_nats(start - x, low))
    calls = steps * len(weights)
    gradients = calls * (_dims(x) if directions is None else len(directions))
    empty = x.new_zeros(len(x), 0, dtype=torch.float64)
    return Likelihood(prior, -gained, decoded, empty, empty[0], _dims(x), calls + 1, gradients)


#: Runge-Kutta methods: where each stage is evaluated, from which slopes, and how the slopes are weighted
TABLEAUS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "heun": ((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def decoder_variances(sigma: float) -> tuple[float, float]:
    """(small, large) variance of the values given level 1: that level's, and a quarter of it.

    The posterior's own, 0, has no logarithm.
    """
    return sigma**2 / 4, sigma**2


def step_nats(error: Tensor, a: Tensor | float, b: Tensor | float, share: Tensor, preserving: bool) -> Tensor:
    """KL of the reverse step from a to b > 0 with a learned variance, in nats, shape and type of ``error`` = x_0 - D.

    a, b: levels, numbers or tensors that broadcast. ln variance = share ln large + (1 - share) ln small (Nichol &
    Dhariwal 2021, equation 15).
    """
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    small, large = step_variances(a, b, preserving)
    span, miss = ((large / small).log(), (1 - (b / a) ** 2) ** 2 / small)
    ratio = share.to(error) * span.to(error)  # ln(variance / small)
    return (ratio - 1 + (1 + miss.to(error) * error.square()) * (-ratio).exp()) / 2


def gaussian_nats(x: Tensor, std: float | Tensor) -> Tensor:
    """-ln N(x; 0, std^2), float64, shape of x."""
    std = torch.as_tensor(std, dtype=torch.float64, device=x.device)
    return (x.double() / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2


def reconstruction_nats(
    x: Tensor, mean: Tensor, std: float | Tensor, width: float | Tensor | None = None, edges: bool = True
) -> Tensor:
    """-ln p(x | mean, std) an image, (N,) float64: a Gaussian's density, or its mass in the bin around each value.

    width: of the bins, one number or (N, C): 2/255 for 8 bit, 2/65535 for 16 bit in [-1, 1]; None is the density.
    edges: the bins at -1 and 1 reach to infinity (Ho et al. 2020, equation 13): right where these are the type's ends.
    """
    error = x.double() - mean.double()
    if width is None:
        return _rows(gaussian_nats(error, std))
    half = torch.as_tensor(width, dtype=torch.float64, device=x.device) / 2
    if half.ndim:
        half = half.reshape(*half.shape, *(1,) * (x.ndim - half.ndim))
    std = torch.as_tensor(std, dtype=torch.float64, device=x.device)
    lower, upper = (error - half) / std, (error + half) / std
    if edges:
        lower = torch.where(x <= -1 + half, -math.inf, lower)
        upper = torch.where(x >= 1 - half, math.inf, upper)
    # By symmetry both ends are brought to the left of the mean, where the logarithm of the mass below is exact.
    flip = lower + upper > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    below, above = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    return -_rows(above + torch.log1p(-(below - above).exp()))


def prior_nats(x: Tensor, sigma: float, preserving: bool) -> Tensor:
    """KL(N(x, sigma^2) | N(0, P^2)) an image, (N,) float64: P^2 = 1 + sigma^2 if variance-preserving, else sigma^2."""
    prior = 1 + sigma**2 if preserving else sigma**2
    spread = sigma**2 / prior
    return _rows((x.double().square() / prior + spread - 1 - math.log(spread)) / 2)


def standardised(terms: Tensor, normals: Tensor) -> Tensor:
    """(N,) float64 anomaly score: root mean square over the levels of terms (N, L) in deviations of normals' (M, L).

    -log p itself is no anomaly score: smooth anomalies are likelier than normal images (Nalisnick et al. 2019). Each
    level in deviations from normal images, too small counting like too large, takes that away.
    Raises ConfigError for fewer than 2 normals, other levels, or a level at which all normals are equal.
    """
    if normals.ndim != 2 or normals.shape[0] < 2 or normals.shape[1:] != terms.shape[1:]:
        wanted = f"at least 2 normal images with {terms.shape[1]} levels"
        raise ConfigError(f"standardising: expected {wanted}, found {tuple(normals.shape)}")
    mean, std = normals.double().mean(0), normals.double().std(0)
    if not bool((std > 0).all()):
        raise ConfigError("standardising: expected normal images that differ, found a level at which all are equal")
    return ((terms.double() - mean) / std).square().mean(1).sqrt()


def _flow(
    denoiser: DenoiserFn, y: Tensor, sigma: float, sigma_data: float, directions: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """dy/d(ln sigma) of y = x / sqrt(sigma_data^2 + sigma^2), and the divergence (N,) float64 of dx/d(ln sigma)."""
    scale = math.hypot(sigma_data, sigma)
    x = y * scale
    with torch.no_grad():
        denoised, pullback = linearise(denoiser, x, _level(sigma))
        trace = _trace(pullback, x) if directions is None else _probed_trace(pullback, directions)
    return ((x - denoised) - x * (sigma / scale) ** 2) / scale, _dims(x) - trace


def _trace(pullback: Pullback, x: Tensor) -> Tensor:
    """The trace of J (N,), one gradient a value."""
    trace = x.new_zeros(len(x), dtype=torch.float64)
    for i in range(_dims(x)):
        basis = torch.zeros_like(x).flatten(1)
        basis[:, i] = 1
        trace = trace + pullback(basis.reshape(x.shape)).flatten(1)[:, i].double()
    return trace


def _probed_trace(pullback: Pullback, directions: Sequence[Tensor]) -> Tensor:
    """Hutchinson's estimate of the trace of J (N,): the mean of v'Jv over signs v."""
    return torch.stack([_rows(signs.double() * pullback(signs).double()) for signs in directions]).mean(0)


def _directions(x: Tensor, probes: int | str, noise: NoiseSource) -> list[Tensor] | None:
    if probes == EXACT:
        return None
    if not isinstance(probes, int) or probes < 1:
        raise ConfigError(f"probes: expected 1 or more, or {EXACT!r}, found {probes!r}")
    return [torch.where(noise(draw) < 0, -1.0, 1.0).to(x) for draw in range(1, probes + 1)]


def _assembled(
    x: Tensor,
    top: float,
    preserving: bool,
    terms: Sequence[Tensor],
    levels: Sequence[float],
    reconstruction: Tensor,
    calls: int,
) -> Likelihood:
    stacked = torch.stack(list(terms), dim=1) if terms else x.new_zeros(len(x), 0, dtype=torch.float64)
    sigmas = torch.tensor(list(levels), dtype=torch.float64)
    return Likelihood(prior_nats(x, top, preserving), stacked.sum(1), reconstruction, stacked, sigmas, _dims(x), calls)


def _ascending(sigmas: Tensor | Sequence[float]) -> list[float]:
    levels = [float(s) for s in torch.as_tensor(sigmas, dtype=torch.float64).cpu().reshape(-1)]
    if not levels or levels[0] <= 0 or any(b <= a for a, b in pairwise(levels)):
        shown = ", ".join(f"{s:g}" for s in levels[:4])
        raise ConfigError(f"a likelihood needs noise levels that ascend from above 0, found [{shown}, ...]")
    return levels


def _square(x: Tensor) -> Tensor:
    return _rows(x.double().square())


def _rows(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def _dims(x: Tensor) -> int:
    return x[0].numel()


def _level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)
