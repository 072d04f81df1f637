"""Denoising: noise that is not Gaussian made so and back, the estimate, samples of the posterior, how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anodiff.diffusion import SAMPLERS, image_keys
from anodiff.errors import ConfigError, InputError
from anodiff.restoration.arguments import check_denoising, check_images, column, positive
from anodiff.restoration.chains import Rows, watched
from anodiff.restoration.noise_level import (
    estimate_levels,
    stabilise_poisson,
    stabilise_rician,
    unstabilise_poisson,
    unstabilise_rician,
)
from anodiff.restoration.restored import Restored
from anodiff.restoration.uncertainty import tweedie_deviation

if TYPE_CHECKING:
    from anodiff.restoration.restorer import Restorer


@torch.no_grad()
def denoise(
    restorer: Restorer,
    x: Tensor,
    sigma: float | Tensor | None = None,
    *,
    noise: str = "gaussian",
    samples: int = 0,
    uncertainty: bool = False,
    foreground: Tensor | None = None,
    background: Tensor | None = None,
    zero: float | Tensor = -1.0,
    gain: float | Tensor | None = None,
    seed: int | None = None,
) -> Restored:
    """Images (N, C, *S) without their noise; arguments and errors: see :meth:`Restorer.denoise`."""
    check_images(x)
    check_denoising(noise, sigma is not None, samples, uncertainty, gain is not None)
    base = column(zero, x)
    level, told = torch.ones(len(x), dtype=torch.float64), ("given",) * len(x)
    if sigma is not None:
        level = positive(sigma, x, "sigma")
    elif noise != "poisson":
        level, told = estimate_levels(x, noise, foreground, background, base)
    if samples:
        given = sigma is not None
        restorer.check_level(float(level.max()), "" if given else "an estimate", ConfigError if given else InputError)
    view = (-1,) + (1,) * (x.ndim - 1)
    width = level.to(x.device, torch.float32).reshape(view)
    floor = base.to(x.device, torch.float32).reshape(view)
    if noise == "rician":
        estimate, nfe = _estimate(restorer, floor + width * stabilise_rician((x - floor) / width), level)
        images = floor + width * unstabilise_rician((estimate - floor) / width)
        return Restored(images, nfe, sigma=level, sigma_from=told)
    if noise == "poisson":
        counts = positive(gain, x, "gain").to(x.device, torch.float32).reshape(view)
        return _of_counts(restorer, x, floor, counts)
    images, nfe = _estimate(restorer, x, level)
    drawn, deviation, gradients = None, None, 0
    keys = image_keys(x, restorer.seed if seed is None else seed)
    if samples:
        drawn, calls = _samples(restorer, x, level, keys, samples)
        nfe += samples * calls
        deviation = drawn.std(dim=1) if samples > 1 else None
    if uncertainty and deviation is None:
        deviation, gradients = tweedie_deviation(restorer.denoiser, x, level, keys)
        nfe += 1
    return Restored(images, nfe, gradients, drawn, deviation, level, told)


def _estimate(restorer: Restorer, x: Tensor, level: Tensor) -> tuple[Tensor, int]:
    """The estimate of least squared error of images at noise levels (N,), and denoiser calls an image."""
    before = restorer.denoiser.calls
    images = restorer.denoiser(x, level).to(x.device)
    return images.clone(), (restorer.denoiser.calls - before) // len(x)


def _of_counts(restorer: Restorer, x: Tensor, zero: Tensor, gain: Tensor) -> Restored:
    """Photon counts: Anscombe's transform, spread over the model's range from ``zero`` to 1."""
    low, high = stabilise_poisson(torch.zeros_like(zero)), stabilise_poisson(gain * (1 - zero))
    unit = (1 - zero) / (high - low)
    level = unit.double().cpu().reshape(-1)
    estimate, nfe = _estimate(restorer, zero + unit * (stabilise_poisson(gain * (x - zero)) - low), level)
    images = zero + unstabilise_poisson((estimate - zero) / unit + low) / gain
    return Restored(images, nfe, sigma=level, sigma_from=("given",) * len(x), counts=True)


def _samples(restorer: Restorer, x: Tensor, level: Tensor, keys: Tensor, samples: int) -> tuple[Tensor, int]:
    """(N, K, C, *S): ancestral chains from the images themselves, each from its own level.

    A deterministic sampler would take an image to one place only: the chain needs fresh noise to be a sample.
    """
    drawn = x.new_empty(len(x), samples, *x.shape[1:], dtype=torch.float32)
    calls = 0
    for value in level.unique().tolist():
        chosen = (level == value).nonzero().flatten()
        part, grid = x[chosen.to(x.device)], restorer.grid(value)

        def chain(rows: Rows, part: Tensor = part, grid: Tensor = grid) -> Tensor:
            noisy = part[rows.image.to(part.device)].to(restorer.denoiser.device, torch.float32)
            return SAMPLERS["ancestral"](restorer.denoiser, noisy, grid, rows.source(), watched(rows.tell))

        found, calls, _ = restorer.chains(keys[chosen], samples, tuple(x.shape[1:]), grid, chain)
        drawn[chosen.to(x.device)] = found.to(x.device)
    return drawn, calls
