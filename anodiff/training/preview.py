"""A picture of how training goes: held-out normals, noised, and what the averaged weights make of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.diffusion.noise import sample_noise
from anodiff.engine.device import autocast
from anodiff.training.trainer import VALIDATION, Trainer, mix

if TYPE_CHECKING:
    from anodiff.config import AnodiffConfig

LEVELS = (0.3, 1.0, 3.0)
GAP_PX = 2
#: tiles are enlarged by whole factors until a label fits over them
TILE_PX = 72
#: of the lines above the tiles, two of them, and of the column beside them
LINE_PX, MARGIN_PX, FONT_PX = 16, 24, 12
GROUND, INK = 32, 224


@torch.no_grad()
def preview(trainer: Trainer, count: int = 6) -> bytes:
    """A PNG: a row an image; columns: the image, then for sigma 0.3, 1 and 3 the noisy image and its reconstruction."""
    held = trainer.validation.rows(slice(count))
    clean, denoiser = held.clean, trainer.averaged.given(trainer.context(held), held.label)
    diffusion = trainer.config.diffusion
    seed = trainer.config.training.seed
    keys = torch.tensor([mix(seed, VALIDATION, row) for row in range(len(clean))], device=clean.device)
    columns, titles = [clean], [("", "image")]
    for level, sigma in enumerate(LEVELS):
        noise = sample_noise(diffusion.noise, keys, tuple(clean.shape[1:]), level=level, scale=diffusion.noise_scale)
        noisy = clean + sigma * noise
        with autocast(trainer.device, trainer.precision):
            columns += [noisy / (1 + sigma**2) ** 0.5, denoiser(noisy, sigma)]
        titles += [(f"sigma {sigma:g}", "noisy"), ("", "denoised")]
    part = shown_channels(trainer.config)
    tiles = torch.stack([_plane(column)[:, part] for column in columns], dim=1).float().cpu().numpy()
    return labelled(np.clip((tiles + 1) * 127.5, 0, 255).astype(np.uint8), titles)


def shown_channels(config: AnodiffConfig) -> slice:
    """Which channels make a picture: those of the middle slice, or of the current frame; three as colours, else one."""
    channels = config.preprocess.channels
    first = 0 if config.volume is None else config.volume.neighbours * channels
    return slice(first, first + (3 if channels == 3 else 1))


def labelled(tiles: NDArray[np.uint8], titles: Sequence[tuple[str, str]]) -> bytes:
    """A PNG of tiles (rows, columns, C, H, W) with the two lines of each column's title above, and rows numbered."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(1, math.ceil(TILE_PX / tiles.shape[-1]))
    tiles = tiles.repeat(zoom, axis=-1).repeat(zoom, axis=-2)
    tiles = np.pad(tiles, [(0, 0)] * 3 + [(GAP_PX, GAP_PX)] * 2, constant_values=GROUND)
    rows, columns, channels, height, width = tiles.shape
    grid = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    mode = "RGB" if channels == 3 else "L"
    picture = Image.new(mode, (MARGIN_PX + columns * width, 2 * LINE_PX + rows * height), (GROUND,) * channels)
    picture.paste(Image.fromarray(grid if channels == 3 else grid[..., 0]), (MARGIN_PX, 2 * LINE_PX))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    ink = (INK,) * channels
    for column, lines in enumerate(titles):
        for number, line in enumerate(lines):
            draw.text((MARGIN_PX + column * width + GAP_PX, number * LINE_PX + 1), line, fill=ink, font=font)
    for row in range(rows):
        middle = 2 * LINE_PX + row * height + height // 2
        draw.text((GAP_PX, middle - FONT_PX // 2), str(row + 1), fill=ink, font=font)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _plane(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) of images as they are; of volumes (N, C, I, J, K) the middle slice, j downwards."""
    return images if images.ndim == 4 else images[..., images.shape[-1] // 2].transpose(-1, -2)
