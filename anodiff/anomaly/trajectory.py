"""One deterministic trajectory that serves all levels of a preset, in place of a chain from each.

On the probability flow dx/dsigma = (x - D(x, sigma)) / sigma (Song et al. 2021; Karras et al. 2022, equation 1) every
level lies on the way to every other one. So the image is noised once, to the highest level, and carried down
("shared"), or carried up from a level close to 0 without any noise ("inverted", DDIM inversion); at each level the
denoiser's estimate D(x_s, s), which the step needs anyway, is that level's reconstruction.

The flow keeps marginals: for a normal image, and an exact solver, D(x_s, s) has the law that independent noise of
level s would give it. What changes is the joint law over levels, and what is left of the image: going down, all that
the highest level took away is gone at each level; going up, each level takes away its own share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from anodiff.anomaly.settings import DetectorSettings
from anodiff.diffusion import SAMPLERS, StepState, invert

DenoiserFn = Callable[[Tensor, Tensor], Tensor]

#: exponent of the Karras spacing, as of `anodiff.diffusion.karras_grid`
RHO = 7.0


def nodes_through(levels: Sequence[float], count: int, spacing: str) -> list[float]:
    """``count`` levels, descending, all of ``levels`` (distinct) among them, as evenly spaced as these allow.

    Even in sigma^(1/7) for "karras" and in ln(sigma) for "log": time and again the longest interval is cut into one
    part more. Raises ValueError where ``count`` is less than there are levels.
    """
    fixed = sorted(levels, reverse=True)
    if count < len(fixed):
        raise ValueError(f"nodes: expected at least one a level ({len(fixed)}), found {count}")
    place: Callable[[float], float] = math.log if spacing == "log" else lambda level: level ** (1 / RHO)
    back: Callable[[float], float] = math.exp if spacing == "log" else lambda u: u**RHO
    widths = [place(high) - place(low) for high, low in pairwise(fixed)]
    parts = [1] * len(widths)
    for _ in range(count - len(fixed)):
        longest = max(range(len(widths)), key=lambda i: widths[i] / parts[i])
        parts[longest] += 1
    found = [fixed[0]]
    for (high, low), width, cut in zip(pairwise(fixed), widths, parts, strict=True):
        found += [back(place(high) - width * part / cut) for part in range(1, cut)] + [low]
    return found


def estimates(denoiser: DenoiserFn, x: Tensor, settings: DetectorSettings, lowest: float) -> Tensor:
    """The estimates of x0 at each of ``settings.levels`` on the one trajectory through ``x``; -> (L, *x.shape).

    x (N, C, *S) is at the highest level, for "shared"; at ``lowest``, a clean image, for "inverted". The denoiser is
    asked ``settings.steps`` times a row (Heun: 2 steps - 1).
    """
    kept: dict[float, Tensor] = {}
    wanted = set(settings.levels)

    def look(state: StepState) -> None:
        if state.sigma in wanted:
            kept[state.sigma] = state.denoised

    if settings.trajectory == "shared":
        grid = [*nodes_through(settings.levels, settings.steps, settings.grid), 0.0]
        SAMPLERS[settings.sampler](denoiser, x, grid, None, look)
    else:
        grid = nodes_through([*settings.levels, lowest], settings.steps, settings.grid)[::-1]
        top = invert(denoiser, x, grid, settings.sampler, look)
        kept[grid[-1]] = denoiser(top, torch.tensor(grid[-1], dtype=torch.float64))
    return torch.stack([kept[level] for level in settings.levels])
