"""Noising and reconstruction: from images to what a model of normal images makes of them, at each noise level.

All noise is a function of an image's key, the level, the draw and the voxel, so nothing here depends on batch mates.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from anodiff.anomaly.settings import DetectorSettings
from anodiff.diffusion import (
    SAMPLERS,
    NoiseSchedule,
    StepState,
    karras_grid,
    log_grid,
    make_schedule,
    sample_noise,
    step_grid,
)

DenoiserFn = Callable[[Tensor, Tensor], Tensor]

#: lowest level above 0 of a Karras or log grid: two grey levels of 256
SIGMA_END = 0.016
#: draws of one chain; the noise of step i of pair p is draw p * CHAIN_DRAWS + i, and i = 0 makes the start
CHAIN_DRAWS = 65_536


def reconstruct(
    denoiser: DenoiserFn,
    images: Tensor,
    keys: Tensor,
    settings: DetectorSettings,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """What the denoiser makes of each image from each start level, averaged over draws; -> (L, N, C, *S).

    images (N, C, *S) in [-1, 1]; keys (N,) int64 on the same device, see :func:`anodiff.diffusion.image_keys`.
    ``settings`` must be resolved (no "model" noise). ``schedule`` gives the steps of a "step" grid; vp-linear with T
    = 1000 where it is absent or not variance-preserving.

    Raises:
        ConfigError: a chain that the schedule cannot hold.
    """
    if settings.sampler == "one-step":
        return _one_step(denoiser, images, keys, settings)
    return torch.stack(
        [_chain(denoiser, images, keys, settings, level, schedule) for level in range(len(settings.levels))]
    )


def tiling(settings: DetectorSettings, size: tuple[int, ...], device: torch.device) -> Tensor:
    """The regions that are noised in turn, (B, *S) bool; each pixel lies in exactly one. One full region for "all"."""
    if settings.where == "all":
        return torch.ones(1, *size, dtype=torch.bool, device=device)
    edges = settings.box_edges(size)
    corners = product(*(range(0, side, edge) for side, edge in zip(size, edges, strict=True)))
    boxes = []
    for corner in corners:
        box = torch.zeros(size, dtype=torch.bool, device=device)
        box[tuple(slice(low, low + edge) for low, edge in zip(corner, edges, strict=True))] = True
        boxes.append(box)
    return torch.stack(boxes)


def sigma_grid(settings: DetectorSettings, level: float, schedule: NoiseSchedule | None = None) -> Tensor:
    """Levels of a chain from ``level`` to 0, (steps + 1,) float64. Raises ConfigError where the table has fewer."""
    if settings.grid == "step":
        table = schedule if schedule is not None and schedule.is_variance_preserving else make_schedule("vp-linear")
        return step_grid(table, max(1, round(float(table.t_of(level)))), settings.steps)
    make = karras_grid if settings.grid == "karras" else log_grid
    return make(level, min(SIGMA_END, level / 4), settings.steps)


def _signs(settings: DetectorSettings, like: Tensor) -> Tensor:
    return like.new_tensor([1.0, -1.0] if settings.antithetic else [1.0])


def _noise(settings: DetectorSettings, images: Tensor, keys: Tensor, levels: list[int], step: int) -> Tensor:
    """Noise (len(levels), P, N, C, *S) of one step of all pairs."""
    pairs, count = settings.pairs, len(images)
    level = torch.tensor(levels, device=keys.device).repeat_interleave(pairs * count)
    draw = (
        torch.arange(pairs, device=keys.device).mul(CHAIN_DRAWS).add(step).repeat_interleave(count).repeat(len(levels))
    )
    noise = sample_noise(
        settings.noise,
        keys.repeat(len(levels) * pairs),
        tuple(images.shape[1:]),
        level=level,
        draw=draw,
        scale=settings.noise_scale,
    )
    return noise.reshape(len(levels), pairs, *images.shape)


def _one_step(denoiser: DenoiserFn, images: Tensor, keys: Tensor, settings: DetectorSettings) -> Tensor:
    """All rows (levels x pairs x signs x boxes x images) through the denoiser in one go."""
    sigmas = images.new_tensor(settings.levels)
    noise = _noise(settings, images, keys, list(range(len(sigmas))), step=0)
    ones = (1,) * images.ndim
    scaled = sigmas.reshape(-1, 1, *ones) * noise
    noisy = images + _signs(settings, images).reshape(1, 1, -1, *ones) * scaled[:, :, None]
    boxes = tiling(settings, tuple(images.shape[2:]), images.device)
    rows = _within(boxes, noisy, images)
    denoised = denoiser(rows.flatten(0, 4), sigmas.repeat_interleave(rows[0].numel() // images[0].numel()))
    return _join(denoised.reshape(rows.shape), boxes)


def _chain(
    denoiser: DenoiserFn,
    images: Tensor,
    keys: Tensor,
    settings: DetectorSettings,
    level: int,
    schedule: NoiseSchedule | None,
) -> Tensor:
    """The reverse process from one level down to 0; rows are pairs x signs x boxes x images. -> (N, C, *S)."""
    grid = sigma_grid(settings, settings.levels[level], schedule)
    boxes = tiling(settings, tuple(images.shape[2:]), images.device)
    signs = _signs(settings, images).reshape(1, 1, -1, *(1,) * images.ndim)

    def draws(step: int) -> Tensor:
        """(1, P, G, N, C, *S)"""
        return signs * _noise(settings, images, keys, [level], step)[:, :, None]

    start = _within(boxes, images + float(grid[0]) * draws(0), images)

    def source(step: int) -> Tensor:
        noise = draws(step)[:, :, :, None]
        return noise.expand(start.shape).flatten(0, 4)

    def keep_outside(state: StepState) -> Tensor:
        """Outside its box a row stays the clean image all the way down."""
        return torch.where(_broadcast(boxes, start), state.x.reshape(start.shape), images).flatten(0, 4)

    options = {"variance": settings.variance} if settings.sampler == "ancestral" else {}
    callback = keep_outside if settings.where == "boxes" else None
    end = SAMPLERS[settings.sampler](denoiser, start.flatten(0, 4), grid, source, callback, **options)
    return _join(end.reshape(start.shape), boxes)[0]


def _within(boxes: Tensor, noisy: Tensor, images: Tensor) -> Tensor:
    """Noisy inside each box, clean outside; noisy (L, P, G, N, C, *S) -> (L, P, G, B, N, C, *S)."""
    if len(boxes) == 1:
        return noisy[:, :, :, None]
    return torch.where(_broadcast(boxes, noisy[:, :, :, None]), noisy[:, :, :, None], images)


def _broadcast(boxes: Tensor, rows: Tensor) -> Tensor:
    """Boxes (B, *S) as (B, 1, 1, *S), to be set against rows (..., B, N, C, *S)."""
    return boxes.reshape(len(boxes), 1, 1, *rows.shape[6:])


def _join(rows: Tensor, boxes: Tensor) -> Tensor:
    """Stitch the boxes and average pairs and signs; (L, P, G, B, N, C, *S) -> (L, N, C, *S)."""
    stitched = rows[:, :, :, 0]
    for k in range(1, len(boxes)):
        stitched = torch.where(boxes[k], rows[:, :, :, k], stitched)
    draws = list(stitched.flatten(1, 2).unbind(1))
    total = draws[0]
    for draw in draws[1:]:
        total = total + draw
    return total / len(draws)
