"""Noising and reconstruction: from images to what a model of normal images makes of them, at each noise level.

All noise is a function of an image's key, the level, the draw and the voxel, so nothing here depends on batch mates.
The
rows of an image stand together: where they fill the network's batch, as those of the default preset do, the network
sees an image in the same places whatever its mates are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from anodiff.anomaly.refinement import guided, harmonised, stitched
from anodiff.anomaly.settings import DetectorSettings, Harmonise, Stitch
from anodiff.anomaly.trajectory import estimates
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
from anodiff.engine.device import to_device

#: values of images x levels x draws beyond which the levels are noised one after the other
VALUES_AT_ONCE = 1 << 25

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
    levels: Sequence[int] | None = None,
) -> Tensor:
    """What the denoiser makes of each image from each start level, averaged over draws; -> (L, N, C, *S).

    With ``settings.refine`` L counts what its chain gives: its estimates on the way and its end, or both its ends. With
    ``settings.fusion`` "images" it is 1, the mean of all levels.

    images (N, C, *S) in [-1, 1]; keys (N,) int64 on the same device, see :func:`anodiff.diffusion.image_keys`.
    ``settings`` must be resolved (no "model" noise). ``schedule`` gives the steps of a "step" grid; vp-linear with T
    = 1000 where it is absent or not variance-preserving. ``levels``: numbers of those that are wanted, by default all;
    each has the same bits alone.

    Raises:
        ConfigError: a chain that the schedule cannot hold, or a refinement by a denoiser without features.
    """
    if settings.refine is not None:
        return _refined(denoiser, images, keys, settings, schedule)
    every = list(range(len(settings.levels)) if levels is None else levels)
    if settings.trajectory != "each":
        found = [_one_trajectory(denoiser, images, keys, settings)[every]]
    elif settings.sampler == "one-step":
        # The rows of all levels of a volume, or of a large image, at once would not fit into memory.
        large = images.ndim > 4 or images.numel() * len(every) * settings.draws > VALUES_AT_ONCE
        parts = [[level] for level in every] if large else [every]
        found = [_one_step(denoiser, images, keys, settings, part) for part in parts]
    else:
        found = [_chain(denoiser, images, keys, settings, level, schedule) for level in every]
    return _mean(torch.cat(found)) if settings.fusion == "images" else torch.cat(found)


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


def _noise(settings: DetectorSettings, images: Tensor, keys: Tensor, levels: list[int], step: int) -> Tensor:
    """Signed noise (N, len(levels), P, G, C, *S) of one step: P pairs, G = 2 signs where antithetic."""
    count, pairs = len(levels), settings.pairs
    if settings.noise == "none":
        return images.new_zeros(len(keys), count, 1, 1, *images.shape[1:])
    level = to_device(torch.tensor(levels), keys.device).repeat_interleave(pairs)
    draw = torch.arange(pairs, device=keys.device).mul(CHAIN_DRAWS).add(step).repeat(count)
    noise = sample_noise(
        settings.noise,
        keys.repeat_interleave(count * pairs),
        tuple(images.shape[1:]),
        level=level.repeat(len(keys)),
        draw=draw.repeat(len(keys)),
        scale=settings.noise_scale,
    )
    noise = noise.reshape(len(keys), count, pairs, 1, *images.shape[1:])
    return torch.cat([noise, -noise], dim=3) if settings.antithetic else noise


def _one_step(
    denoiser: DenoiserFn, images: Tensor, keys: Tensor, settings: DetectorSettings, levels: list[int]
) -> Tensor:
    """Those levels' rows (images x levels x pairs x signs x boxes) through the denoiser in one go."""
    sigmas = images.new_tensor([settings.levels[level] for level in levels])
    noise = _noise(settings, images, keys, levels, step=0)
    clean = _as_rows(images)
    noisy = clean.squeeze(4) + sigmas.reshape(-1, *(1,) * (noise.ndim - 2)) * noise
    boxes = tiling(settings, tuple(images.shape[2:]), images.device)
    rows = _within(boxes, noisy, clean)
    told = sigmas.repeat_interleave(math.prod(rows.shape[2:5])).repeat(len(images))
    shown = _beside(denoiser, clean.expand(rows.shape).flatten(0, 4))
    return _join(shown(rows.flatten(0, 4), told).reshape(rows.shape), boxes)


def _chain(
    denoiser: DenoiserFn,
    images: Tensor,
    keys: Tensor,
    settings: DetectorSettings,
    level: int,
    schedule: NoiseSchedule | None,
) -> Tensor:
    """The reverse process from one level down to 0; rows are images x pairs x signs x boxes. -> (1, N, C, *S)."""
    grid = sigma_grid(settings, settings.levels[level], schedule)
    boxes = tiling(settings, tuple(images.shape[2:]), images.device)
    clean = _as_rows(images)
    noisy = clean.squeeze(4) + float(grid[0]) * _noise(settings, images, keys, [level], 0)
    start = _within(boxes, noisy, clean)

    def source(step: int) -> Tensor:
        return _noise(settings, images, keys, [level], step).unsqueeze(4).expand(start.shape).flatten(0, 4)

    def keep_outside(state: StepState) -> Tensor:
        """Outside its box a row stays the clean image all the way down."""
        return torch.where(boxes.unsqueeze(1), state.x.reshape(start.shape), clean).flatten(0, 4)

    as_rows = clean.expand(start.shape).flatten(0, 4)
    denoiser = _beside(denoiser, as_rows)
    if settings.guidance:
        denoiser = guided(denoiser, as_rows, settings.guidance)
    callback = keep_outside if settings.where == "boxes" else None
    options = _options(settings)
    end = SAMPLERS[settings.sampler](denoiser, start.flatten(0, 4), grid, source, callback, **options)
    return _join(end.reshape(start.shape), boxes)


def _one_trajectory(denoiser: DenoiserFn, images: Tensor, keys: Tensor, settings: DetectorSettings) -> Tensor:
    """All levels read on one trajectory; rows are images x pairs x signs. -> (L, N, C, *S)."""
    highest = max(settings.levels)
    boxes = tiling(settings, tuple(images.shape[2:]), images.device)
    clean = _as_rows(images)
    noise = _noise(settings, images, keys, [settings.levels.index(highest)], 0)
    start = _within(boxes, clean.squeeze(4) + highest * noise, clean)
    as_rows = clean.expand(start.shape).flatten(0, 4)
    denoiser = _beside(denoiser, as_rows)
    if settings.guidance:
        denoiser = guided(denoiser, as_rows, settings.guidance)
    lowest = min(SIGMA_END, min(settings.levels) / 4)
    read = estimates(denoiser, start.flatten(0, 4), settings, lowest)
    return torch.cat([_join(level.reshape(start.shape), boxes) for level in read])


def _refined(
    denoiser: DenoiserFn, images: Tensor, keys: Tensor, settings: DetectorSettings, schedule: NoiseSchedule | None
) -> Tensor:
    """A single chain an image that looks at its own intermediate result; -> (settings.reconstructions, N, C, *S)."""

    def source(step: int) -> Tensor:
        return _noise(settings, images, keys, [0], step).flatten(0, 3)

    walked = _beside(denoiser, images)
    if settings.guidance:
        walked = guided(walked, images, settings.guidance)
    options = _options(settings)
    grid = sigma_grid(settings, settings.levels[0], schedule)
    if isinstance(settings.refine, Harmonise):
        return harmonised(denoiser, walked, images, grid, source, settings.sampler, options, settings.refine)
    assert isinstance(settings.refine, Stitch)
    start = images + float(grid[0]) * source(0)
    first = SAMPLERS[settings.sampler](walked, start, grid, source, **options)
    again = settings.model_copy(update={"steps": settings.refine.steps})
    lower = sigma_grid(again, settings.refine.level, schedule)
    drawn = settings.steps + 1
    second = stitched(denoiser, walked, images, first, lower, lambda draw: source(drawn + draw), settings.refine)
    return torch.stack([first, second])


def _beside(denoiser: DenoiserFn, images: Tensor) -> DenoiserFn:
    """The denoiser with the noise-free image beside each row, where it was trained to be told of that."""
    return denoiser.given(images) if getattr(denoiser, "sees_image", False) else denoiser  # type: ignore[attr-defined]


def _options(settings: DetectorSettings) -> dict[str, str]:
    return {"variance": settings.variance} if settings.sampler == "ancestral" else {}


def _as_rows(images: Tensor) -> Tensor:
    """(N, C, *S) -> (N, 1, 1, 1, 1, C, *S), to stand beside rows."""
    return images.reshape(len(images), 1, 1, 1, 1, *images.shape[1:])


def _within(boxes: Tensor, noisy: Tensor, clean: Tensor) -> Tensor:
    """Noisy inside each box, clean outside; noisy (N, L, P, G, C, *S) -> (N, L, P, G, B, C, *S)."""
    rows = noisy.unsqueeze(4)
    return rows if len(boxes) == 1 else torch.where(boxes.unsqueeze(1), rows, clean)


def _mean(levels: Tensor) -> Tensor:
    """(L, N, C, *S) -> (1, N, C, *S), levels added in order."""
    total = levels[0]
    for level in levels[1:]:
        total = total + level
    return (total / len(levels)).unsqueeze(0)


def _join(rows: Tensor, boxes: Tensor) -> Tensor:
    """Stitch the boxes and average pairs and signs; (N, L, P, G, B, C, *S) -> (L, N, C, *S)."""
    stitched = rows[:, :, :, :, 0]
    for k in range(1, len(boxes)):
        stitched = torch.where(boxes[k], rows[:, :, :, :, k], stitched)
    draws = list(stitched.flatten(2, 3).unbind(2))
    total = draws[0]
    for draw in draws[1:]:
        total = total + draw
    return (total / len(draws)).transpose(0, 1)
