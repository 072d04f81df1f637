"""A picture of how training goes: held-out normals, noised, and what the averaged weights make of them."""

from __future__ import annotations

import io

import numpy as np
import torch

from anodiff.diffusion.noise import sample_noise
from anodiff.engine.device import autocast
from anodiff.training.trainer import VALIDATION, Trainer, mix

LEVELS = (0.3, 1.0, 3.0)
GAP_PX = 2


@torch.no_grad()
def preview(trainer: Trainer, count: int = 6) -> bytes:
    """A PNG: a row an image; columns: the image, then for sigma 0.3, 1 and 3 the noisy image and its reconstruction."""
    from PIL import Image

    held = trainer.validation.rows(slice(count))
    clean, denoiser = held.clean, trainer.averaged.given(held.context)
    diffusion = trainer.config.diffusion
    seed = trainer.config.training.seed
    keys = torch.tensor([mix(seed, VALIDATION, row) for row in range(len(clean))], device=clean.device)
    columns = [clean]
    for level, sigma in enumerate(LEVELS):
        noise = sample_noise(diffusion.noise, keys, tuple(clean.shape[1:]), level=level, scale=diffusion.noise_scale)
        noisy = clean + sigma * noise
        with autocast(trainer.device, trainer.precision):
            columns += [noisy / (1 + sigma**2) ** 0.5, denoiser(noisy, sigma)]
    tiles = torch.stack([_plane(column) for column in columns], dim=1).float().cpu().numpy()  # (rows, columns, C, H, W)
    tiles = np.clip((tiles + 1) * 127.5, 0, 255).astype(np.uint8)
    tiles = np.pad(tiles, [(0, 0)] * 3 + [(GAP_PX, GAP_PX)] * 2, constant_values=32)
    rows, cols, channels, height, width = tiles.shape
    grid = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * height, cols * width, channels)
    picture = grid[..., 0] if channels not in (3,) else grid
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _plane(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) of images as they are; of volumes (N, C, I, J, K) the middle slice, j downwards."""
    return images if images.ndim == 4 else images[..., images.shape[-1] // 2].transpose(-1, -2)
