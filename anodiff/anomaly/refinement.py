"""Chains that look at their own intermediate result: guided to the input, harmonised with it, or stitched into it.

All on the additive scale of the library, x_t / alpha_t; the papers' formulas are methods 5.5 to 5.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from anodiff.anomaly.perceptual import FeatureDistance, anomalous_region, region_mask
from anodiff.anomaly.settings import Harmonise, Stitch
from anodiff.diffusion import SAMPLERS, StepState

DenoiserFn = Callable[[Tensor, Tensor], Tensor]
#: step of the chain -> noise (N, C, *S); 0 is the noise of the start
NoiseOf = Callable[[int], Tensor]


def guided(denoiser: DenoiserFn, target: Tensor, weight: float) -> DenoiserFn:
    """A denoiser whose estimate is pulled to ``target``: D* = D + w s^2 / (1 + s^2) (y - D) at level s (DDAD).

    That is eps* = eps - sqrt(1 - a) w (y_t - x_t), y_t = sqrt(a) y + sqrt(1 - a) eps, of Mousakhan et al. 2023 with
    a = 1 / (1 + s^2): strong where there is much noise, none at its end. Above w = (1 + s^2) / s^2 it overshoots.
    """

    def pulled(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        level = torch.as_tensor(sigma, dtype=torch.float64).square()
        share = (weight * level / (1.0 + level)).to(denoised).reshape(-1, *[1] * (x.ndim - 1))
        return denoised + share * (target - denoised)

    return pulled


def harmonised(
    denoiser: DenoiserFn,
    walked: DenoiserFn,
    images: Tensor,
    grid: Tensor,
    noise: NoiseOf,
    sampler: str,
    options: dict[str, str],
    settings: Harmonise,
) -> Tensor:
    """A chain that is given back what it should not have changed (THOR, Bercea et al. 2024); -> (K, N, C, *S).

    At each level of ``settings.at`` the estimate x0 becomes M x0 + (1 - M) x, M a mask by how much they differ, and
    the chain goes on from there with the noise it started from. Kept are the estimates at these levels and at
    ``settings.looks``, and last the end: K of them. ``denoiser`` gives features, ``walked`` the estimates.
    """
    distance = FeatureDistance(denoiser, images)
    start_noise = noise(0)
    walked_levels = [float(level) for level in grid[:-1]]
    at = {nearest(walked_levels, level) for level in settings.at}
    kept: dict[int, Tensor] = {}
    looked = [nearest(walked_levels, level) for level in settings.levels]

    def look(state: StepState) -> Tensor | None:
        if state.i in looked:
            kept[state.i] = state.denoised
        if state.i not in at:
            return None
        mask = region_mask(distance.relative(state.denoised), settings.side).unsqueeze(1)
        mixed = mask * state.denoised + (1.0 - mask) * images
        return mixed + state.sigma_next * start_noise

    x = images + float(grid[0]) * start_noise
    end = SAMPLERS[sampler](walked, x, grid, noise, look, **options)
    return torch.stack([*(kept[i] for i in looked), end])


def stitched(
    denoiser: DenoiserFn,
    walked: DenoiserFn,
    images: Tensor,
    first: Tensor,
    grid: Tensor,
    noise: NoiseOf,
    settings: Stitch,
) -> Tensor:
    """What was anomalous is filled in anew, in its healthy surroundings (AutoDDPM, Bercea et al. 2023); (N, C, *S).

    ``first`` (N, C, *S): a chain's reconstruction, whose difference from the images says what is anomalous. From the
    whole of it, noised to ``grid[0]``, an ancestral chain goes down; after each step the rest is the image at the
    same level, and each step is done ``settings.repeats`` times (RePaint's resampling). The noise is three draws a step
    and repeat, after draw 0 of the start.
    """
    soft = FeatureDistance(denoiser, images).soft_mask(first)
    unknown = anomalous_region(soft, settings.share, settings.side).unsqueeze(1)
    x = first + float(grid[0]) * noise(0)
    draw = 1
    for a, b in pairwise(grid.tolist()):
        for repeat in range(settings.repeats):
            down = SAMPLERS["ancestral"](walked, x, (a, b), lambda _, n=draw: noise(n))
            x = torch.where(unknown, down, images + b * noise(draw + 1) if b > 0 else images)
            if repeat + 1 < settings.repeats:
                x = x + math.sqrt(a * a - b * b) * noise(draw + 2)
            draw += 3
    return x


def nearest(levels: Sequence[float], wanted: float) -> int:
    """Which of the (positive) levels lies nearest, in their logarithm."""
    return min(range(len(levels)), key=lambda i: abs(math.log(levels[i] / wanted)))
