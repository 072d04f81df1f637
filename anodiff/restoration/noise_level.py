"""How noisy an image is, and noise that is not Gaussian: made so, denoised, and taken back without bias."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

#: median of |n| for standard normal n, and of a Rayleigh variable
NORMAL_MEDIAN, RAYLEIGH_MEDIAN = 0.6744897501960817, math.sqrt(2 * math.log(2))
#: fewer background voxels say nothing of the noise
FEWEST_BACKGROUND = 64
#: estimated levels lie on a grid of so many a doubling, 2^(k / 8): images of about one noise share a chain
LEVELS_A_DOUBLING = 8
#: no estimate is below this
LOWEST_LEVEL = 0.002
#: up to this signal-to-noise ratio the Rician inverse is a table, above it its own limit
RICIAN_TABLE_END, RICIAN_TABLE_SIZE = 12.0, 481


def estimate_sigma(images: Tensor, foreground: Tensor | None = None) -> Tensor:
    """(N,) standard deviation of white Gaussian noise in images (N, C, *S), float64, on the CPU.

    Median absolute value of the finest diagonal wavelet band (Donoho & Johnstone 1994; Haar, undecimated) over the
    ``foreground`` (N, *S) bool, since a constant background has no noise. An image that was resized has less noise than
    its file, and no white one: the estimate is for the pixels given.
    """
    x = images.detach().double().cpu()
    band = (x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1]).abs() / 2
    found = []
    for i, values in enumerate(band):
        if foreground is not None:
            f = foreground[i].cpu()
            inside = f[..., 1:, 1:] & f[..., 1:, :-1] & f[..., :-1, 1:] & f[..., :-1, :-1]
            values = values[:, inside] if inside.any() else values
        found.append(values.flatten().median() / NORMAL_MEDIAN)
    return torch.stack(found)


def estimate_rician_sigma(
    images: Tensor, foreground: Tensor, zero: Tensor, background: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(N,) deviation of the two channels behind a magnitude image, and (N,) bool: whether its background told it.

    The median of the ``background`` (N, *S) bool, where only noise is; None is all outside the ``foreground``.
    ``zero`` (N,): the value that magnitude 0 has. Where the background is small, was set to one value, or half of it
    and more lies on the lowest value that the intensities were clipped to, the foreground's estimate is taken, as for
    Gaussian noise. A clip below the median does not change it.
    """
    found = estimate_sigma(images, foreground)
    told = torch.zeros(len(images), dtype=torch.bool)
    outside = ~foreground if background is None else background
    for i, image in enumerate(images.detach().double().cpu()):
        values = image[:, outside[i].cpu()]
        if values.numel() < FEWEST_BACKGROUND:
            continue
        median = values.median()
        if median > image.min() and median > float(zero[i]):
            found[i], told[i] = (median - float(zero[i])) / RAYLEIGH_MEDIAN, True
    return found, told


def round_levels(levels: Tensor) -> Tensor:
    """The nearest levels of the fixed grid 2^(k / LEVELS_A_DOUBLING), at most 4.5 % away."""
    return torch.exp2((levels.log2() * LEVELS_A_DOUBLING).round() / LEVELS_A_DOUBLING)


def estimate_levels(
    images: Tensor, noise: str, foreground: Tensor | None, background: Tensor | None, zero: Tensor
) -> tuple[Tensor, tuple[str, ...]]:
    """(N,) levels of "gaussian" or "rician" noise, on the fixed grid, and where each is from: "foreground" or
    "background". None is everything for the foreground, and what is not foreground for the background."""
    told = torch.zeros(len(images), dtype=torch.bool)
    if noise == "rician":
        everywhere = torch.ones((len(images), *images.shape[2:]), dtype=torch.bool)
        inside = everywhere if foreground is None else foreground
        level, told = estimate_rician_sigma(images, inside, zero, background)
    else:
        level = estimate_sigma(images, foreground)
    # An image without noise is handed to a denoiser that changes next to nothing.
    return round_levels(level.clamp(min=LOWEST_LEVEL)), tuple("background" if each else "foreground" for each in told)


def stabilise_rician(magnitude: Tensor) -> Tensor:
    """f(m) = sqrt(max(m^2 - 1/2, 0)) of a magnitude in units of its noise: deviation about 1 (Foi 2011, the limit)."""
    return (magnitude**2 - 0.5).clamp(min=0).sqrt()


def unstabilise_rician(mean: Tensor) -> Tensor:
    """The amplitude, in units of the noise, whose stabilised magnitudes have this mean: the exact unbiased inverse."""
    amplitudes, means = _rician_table()
    table = np.interp(mean.double().cpu().numpy(), means, amplitudes)
    limit = (mean.double() ** 2 - 0.5).clamp(min=0).sqrt()
    near = torch.from_numpy(table).to(mean.device)
    return torch.where(mean > float(means[-1]), limit, near).to(mean.dtype)


@lru_cache(maxsize=1)
def _rician_table() -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes and E f(m), m of a Rice distribution, by the trapezoidal rule."""
    from scipy.special import i0e

    amplitudes = np.linspace(0, RICIAN_TABLE_END, RICIAN_TABLE_SIZE)
    m = np.linspace(0, RICIAN_TABLE_END + 10, 8001)
    a = amplitudes[:, None]
    density = m * np.exp(-((m - a) ** 2) / 2) * i0e(m * a)
    return amplitudes, np.trapezoid(density * np.sqrt(np.maximum(m**2 - 0.5, 0)), m, axis=1)


def stabilise_poisson(counts: Tensor) -> Tensor:
    """2 sqrt(k + 3/8), deviation about 1 (Anscombe 1948); negative counts are taken as 0."""
    return 2 * (counts.clamp(min=0) + 0.375).sqrt()


def unstabilise_poisson(mean: Tensor) -> Tensor:
    """The expected count whose stabilised counts have this mean (Makitalo & Foi 2011, closed form of the exact one)."""
    d = mean.clamp(min=2 * math.sqrt(0.375))
    root = math.sqrt(1.5)
    return (d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8).clamp(min=0)
