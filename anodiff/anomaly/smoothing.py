"""Gaussian smoothing and sums whose result for one image never depends on its batch mates.

Convolution and reduction kernels choose their algorithm by the shape of the whole batch, so their last bits change
with it. Here only elementwise sums, products, quotients and square roots are used (each correctly rounded by IEEE
754), in an order
that the size of one image fixes: results are bit-equal in a batch of 1 or 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last axis by pairwise halving, in an order fixed by that axis alone; (..., M) -> (...)."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat([folded, x[..., -1:]], dim=-1) if x.shape[-1] % 2 else folded
    return x[..., 0]


def gaussian_kernel(width: float, truncate: float = 4.0) -> list[float]:
    """One-sided weights w_0..w_r of a Gaussian of standard deviation ``width`` px, w_0 + 2 (w_1 + ... + w_r) = 1.

    r = round(truncate * width), the rule of scipy.ndimage.gaussian_filter.
    """
    radius = int(truncate * width + 0.5)
    weights = [math.exp(-0.5 * (j / width) ** 2) for j in range(radius + 1)]
    total = weights[0] + 2.0 * math.fsum(weights[1:])
    return [w / total for w in weights]


def reflected_index(size: int, radius: int) -> Tensor:
    """Positions -radius .. size - 1 + radius, mirrored into 0 .. size - 1: c b a | a b c | c b a."""
    position = torch.arange(-radius, size + radius).remainder(2 * size)
    return torch.minimum(position, 2 * size - 1 - position)


def smooth_axis(x: Tensor, width: float, axis: int, truncate: float = 4.0) -> Tensor:
    """Gaussian smoothing along one axis, borders mirrored, sums along it kept; ``width`` in px, 0 = none."""
    if width <= 0:
        return x
    first, *rest = gaussian_kernel(width, truncate)
    size, radius = x.shape[axis], len(rest)
    padded = x.index_select(axis, reflected_index(size, radius).to(x.device))
    out = padded.narrow(axis, radius, size) * first
    for j, weight in enumerate(rest, start=1):
        out += (padded.narrow(axis, radius - j, size) + padded.narrow(axis, radius + j, size)) * weight
    return out


def smooth_spatial(x: Tensor, width: float, axes: Sequence[int], truncate: float = 4.0) -> Tensor:
    """Separable Gaussian smoothing along several axes."""
    for axis in axes:
        x = smooth_axis(x, width, axis, truncate)
    return x


def smooth_maps(maps: Tensor, width: float, foreground: Tensor | None = None) -> Tensor:
    """Smooth each map by a Gaussian of standard deviation ``width`` px on the model grid; (N, *S) -> (N, *S).

    With ``foreground`` (N, *S) bool the average runs over foreground pixels only (normalised convolution), so that a
    dark background does not dilute a lesion at the rim; pixels outside become 0. Width 0 leaves the maps as they are
    inside.
    """
    axes = range(1, maps.ndim)
    if foreground is None:
        return smooth_spatial(maps, width, axes)
    inside = foreground.to(maps.dtype)
    weight = smooth_spatial(inside, width, axes)
    smoothed = smooth_spatial(torch.where(foreground, maps, torch.zeros_like(maps)), width, axes)
    return torch.where(foreground, smoothed / weight, torch.zeros_like(maps))


def resize_linear(x: Tensor, size: Sequence[int]) -> Tensor:
    """Multilinear resampling of (N, C, *s) to (N, C, *size), pixel centres aligned as in ``align_corners=False``."""
    for axis, target in enumerate(size, start=2):
        source = x.shape[axis]
        if source == target:
            continue
        place = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
        low = place.floor().long()
        share = (place - low).to(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1)).to(x.device)
        below = x.index_select(axis, low.to(x.device))
        above = x.index_select(axis, (low + 1).clamp(max=source - 1).to(x.device))
        x = below + (above - below) * share
    return x
