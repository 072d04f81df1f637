"""Training objectives: which noise levels are trained on, how each is weighted, and the denoising loss.

Every published recipe is a pair (p, w): ``loss = E_{sigma ~ p} w(sigma) * mean (D(x_0 + sigma n, sigma) - x_0)^2``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anodiff.diffusion.likelihood import decoder_variances, gaussian_nats, step_nats
from anodiff.diffusion.samplers import VarianceFn, between
from anodiff.diffusion.schedule import NoiseSchedule
from anodiff.errors import ConfigError

#: weight of the variational bound in the hybrid loss, a step (Nichol & Dhariwal 2021, section 3.1)
BOUND_WEIGHT = 0.001
#: below this step a level counts as the first
FIRST_STEP = 1.5
#: share of an image's range above its darkest value that still counts as background
BACKGROUND_SHARE = 0.05


class SigmaDistribution(Protocol):
    """A distribution of noise levels, given by its quantile function."""

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels (float64, shape of u) at probabilities ``u`` in [0, 1); rising in u."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma) ~ N(mean, std^2): Karras et al. 2022, table 1 (mean -1.2, std 1.2)."""

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at probabilities ``u``; the outer 1e-6 of probability is folded in: none is 0 or infinite."""
        inner = u.double().clamp(1e-6, 1 - 1e-6)
        return (self.mean + self.std * torch.special.ndtri(inner)).exp()


@dataclass(frozen=True)
class LogUniform:
    """ln(sigma) uniform between the logarithms of ``sigma_min`` and ``sigma_max``."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"need 0 < sigma_min < sigma_max, found {self.sigma_min:g} and {self.sigma_max:g}")

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at probabilities ``u``."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (low + (high - low) * u.double()).exp()


@dataclass(frozen=True)
class Fixed:
    """One noise level and no other: a denoising auto-encoder, whose network never needs to know the level."""

    sigma: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"need 0 < sigma, found {self.sigma:g}")

    def quantile(self, u: Tensor) -> Tensor:
        """The level, whatever the probability."""
        return torch.full_like(u, self.sigma, dtype=torch.float64)


@dataclass(frozen=True)
class UniformStep:
    """Step t uniform on ``first``..``last`` (default 1..T) of a schedule, as DDPM networks are trained (Ho et al.)."""

    schedule: NoiseSchedule
    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self._last <= self.schedule.num_steps:
            raise ConfigError(
                f"need 1 <= first <= last <= {self.schedule.num_steps}, found first {self.first} and last {self._last}"
            )

    @property
    def _last(self) -> int:
        return self.schedule.num_steps if self.last is None else self.last

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at probabilities ``u``: the table's own entries."""
        count = self._last - self.first + 1
        offset = (u.double() * count).long().clamp(0, count - 1)
        return self.schedule.sigmas.to(u.device)[self.first - 1 + offset]


SIGMA_DISTRIBUTIONS = ("lognormal", "loguniform", "fixed", "uniform-t")


def sigma_distribution(name: str, schedule: NoiseSchedule | None = None, **options: float) -> SigmaDistribution:
    """Distribution by name: "lognormal" (mean, std), "loguniform" (sigma_min, sigma_max), "fixed" (sigma), "uniform-t"
    (first, last).

    "uniform-t" needs the schedule. Raises ConfigError for an unknown name or option.
    """
    makers: dict[str, Callable[..., SigmaDistribution]] = {
        "lognormal": LogNormal,
        "loguniform": LogUniform,
        "fixed": Fixed,
    }
    try:
        if name in makers:
            return makers[name](**options)
        if name == "uniform-t":
            if schedule is None:
                raise ConfigError("the sigma distribution 'uniform-t' needs a noise schedule")
            return UniformStep(schedule, **{key: int(value) for key, value in options.items()})
    except TypeError as error:
        raise ConfigError(f"sigma distribution {name!r}: {str(error).split('() ')[-1]}") from None
    nearest = difflib.get_close_matches(name, SIGMA_DISTRIBUTIONS, n=1, cutoff=0.0)[0]
    known = ", ".join(SIGMA_DISTRIBUTIONS)
    raise ConfigError(f"unknown sigma distribution {name!r}; did you mean {nearest!r}? (known: {known})")


def stratified_uniform(n: int, generator: torch.Generator | None = None, rank: int = 0, world: int = 1) -> Tensor:
    """(n,) float64 in [0, 1), on the CPU: one number in each of ``n * world`` equal strata, in random order.

    All ranks must pass generators in the same state: they then draw the same global batch and each keeps its own part,
    so ``world`` processes of n images see what one process of ``n * world`` images sees.
    """
    total = n * world
    jitter = torch.rand(total, generator=generator, dtype=torch.float64)
    order = torch.randperm(total, generator=generator)
    strata = ((torch.arange(total, dtype=torch.float64) + jitter) / total).clamp(max=1 - 2.0**-53)
    return strata[order][rank * n : (rank + 1) * n]


def draw_sigma(distribution: SigmaDistribution, u: Tensor) -> Tensor:
    """(n,) float64 noise levels from (n,) uniform numbers; stratified u (see above) give a low-variance batch."""
    return distribution.quantile(u)


LOSS_WEIGHTS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "edm": lambda sigma, sigma_data, gamma: (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2,
    "eps": lambda sigma, sigma_data, gamma: sigma**-2,
    "x0": lambda sigma, sigma_data, gamma: torch.ones_like(sigma),
    "v": lambda sigma, sigma_data, gamma: 1 + sigma**-2,
    "min-snr": lambda sigma, sigma_data, gamma: (sigma**-2).clamp(max=gamma),
}


def loss_weight(name: str, sigma: Tensor, *, sigma_data: float = 0.5, gamma: float = 5.0) -> Tensor:
    """w(sigma) on the squared error of the image estimate: float64, shape of sigma.

    "eps": 1/sigma^2, the plain noise-prediction loss (Ho et al. 2020); "x0": 1; "v": 1 + 1/sigma^2 (Salimans & Ho
    2022); "edm": (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022); "min-snr": min(1/sigma^2, gamma)
    (Hang et al. 2023). Raises ConfigError for an unknown name.
    """
    if name not in LOSS_WEIGHTS:
        nearest = difflib.get_close_matches(name, LOSS_WEIGHTS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown loss weight {name!r}; did you mean {nearest!r}? (known: {', '.join(LOSS_WEIGHTS)})")
    return LOSS_WEIGHTS[name](sigma.double(), sigma_data, gamma)


def within_foreground(noise: Tensor, clean: Tensor) -> Tensor:
    """Noise (N, C, *S), zero where the clean image (N, C, *S) is background: within 5 % of its range above its darkest.

    A denoising auto-encoder is asked about clean images. Their background is as clean as in training only if it was
    clean there too (Kascenas et al. 2022).
    """
    return noise * foreground_of(clean)


def foreground_of(clean: Tensor) -> Tensor:
    """bool (N, 1, *S): where images (N, C, *S) are more than 5 % of their range above their darkest."""
    grey = clean.mean(dim=1, keepdim=True)
    axes = tuple(range(1, clean.ndim))
    darkest, brightest = grey.amin(dim=axes, keepdim=True), grey.amax(dim=axes, keepdim=True)
    return grey > darkest + BACKGROUND_SHARE * (brightest - darkest)


def denoising_loss(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    sigma: Tensor,
    noise: Tensor,
    weight: Tensor,
    *,
    shown: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """(N,) float32 loss of each image: ``weight * mean_pixels (D(clean + sigma * noise, sigma) - clean)^2``.

    clean:  (N, C, *spatial) in [-1, 1]; noise: the same shape, of unit variance unless the recipe says otherwise.
    sigma:  (N,) noise levels in data units; weight: (N,), see :func:`loss_weight`.
    shown:  what is made noisy where that is not the clean image (masked, say), which stays what is asked for.
    where:  bool (N, 1, *spatial), the pixels that count, at least one an image; None is all.
    The noisy image and the loss are float32 whatever precision the network runs in.
    """
    clean = clean.float()
    level = sigma.to(device=clean.device, dtype=torch.float32).view(-1, *(1,) * (clean.ndim - 1))
    denoised = denoiser((clean if shown is None else shown.float()) + level * noise.float(), sigma)
    squared = (denoised.float() - clean).square()
    if where is None:
        error = squared.flatten(1).mean(1)
    else:
        error = (squared * where).flatten(1).sum(1) / (clean.shape[1] * where.flatten(1).sum(1))
    return weight.to(device=error.device, dtype=torch.float32) * error


def hybrid_loss(
    learned: VarianceFn, clean: Tensor, sigma: Tensor, noise: Tensor, weight: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """(N,) float32: the denoising loss, and 0.001 T of the variational bound's term for the learned variance.

    Nichol & Dhariwal 2021, equations 15 and 16. The bound trains the variance alone: the error in it has no gradient. A
    level between two steps of the schedule steps down by one step; near step 1 and below, the term is the decoder's.

    learned: D and the share of the reverse variance, see ``Denoiser.with_variance``. Others as for `denoising_loss`.
    """
    clean = clean.float()
    view = (-1,) + (1,) * (clean.ndim - 1)
    level = sigma.to(device=clean.device, dtype=torch.float32).view(view)
    denoised, share = learned(clean + level * noise.float(), sigma)
    error, share = denoised.float() - clean, share.float()
    simple = weight.to(device=error.device, dtype=torch.float32) * error.square().flatten(1).mean(1)
    t = schedule.t_of(sigma.double().cpu())
    below = schedule.sigma_of((t - 1).clamp(min=1)) if schedule.num_steps > 1 else t
    first = (t < FIRST_STEP).to(error.device).view(view)
    a = sigma.double().cpu()
    step = step_nats(
        error.detach(),
        torch.where(t < FIRST_STEP, 2.0, a).to(error.device).view(view),
        torch.where(t < FIRST_STEP, 1.0, below).to(error.device).view(view),
        share,
        schedule.is_variance_preserving,
    )
    decoder = gaussian_nats(error.detach(), between(*decoder_variances(1.0), share).sqrt() * level).float()
    bound = torch.where(first, decoder, step).flatten(1).mean(1)
    return simple + BOUND_WEIGHT * schedule.num_steps * bound
