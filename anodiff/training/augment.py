"""Augmentation of a batch: one affine map, window and gain an image, drawn from numbers the caller supplies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from anodiff.config import AugmentConfig
from anodiff.engine.device import to_device

#: uniform numbers an image consumes, whatever is switched on, so that switching one does not shift the others
NUMBERS = 8


def is_identity(settings: AugmentConfig) -> bool:
    """True where nothing is switched on."""
    return settings == AugmentConfig()


def augment(images: Tensor, settings: AugmentConfig, u: Tensor) -> Tensor:
    """Transform (N, C, H, W) in [-1, 1] by ``u`` (N, 8) uniform in [0, 1); the border is repeated outwards.

    With ``settings.crop`` = (h, w) the result is (N, C, h, w). The background value of -1 stays -1 under a gain, which
    acts on the distance from -1.
    """
    if is_identity(settings):
        return images
    n, _, height, width = images.shape
    u = to_device(u, images.device, torch.float32)
    sign = 2 * u - 1
    angle = sign[:, 0] * math.radians(settings.rotate_deg)
    zoom = 1 + sign[:, 1] * settings.scale
    shift = torch.stack([2 / width * sign[:, 2], 2 / height * sign[:, 3]], dim=1) * settings.shift_px
    mirror_x = torch.where((u[:, 4] < 0.5) & settings.flip_lr, -1.0, 1.0)
    mirror_y = torch.where((u[:, 5] < 0.5) & settings.flip_ud, -1.0, 1.0)
    if settings.shift_px or settings.rotate_deg or settings.scale:
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # affine_grid works in units of half the side, so a rotation of a non-square image needs the aspect ratio
        aspect = height / width
        theta = torch.stack(
            [
                torch.stack([cos * mirror_x, -sin * aspect * mirror_x, shift[:, 0]], dim=1),
                torch.stack([sin / aspect * mirror_y, cos * mirror_y, shift[:, 1]], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    else:
        # exact: no interpolation where only mirroring is asked for
        shape = (n, 1, 1, 1)
        images = torch.where((mirror_x < 0).view(shape), images.flip(-1), images)
        images = torch.where((mirror_y < 0).view(shape), images.flip(-2), images)
    if settings.crop is not None:
        images = window(images, settings.crop, u[:, 2:4])
    if settings.transpose:
        images = torch.where((u[:, 7] < 0.5).view(n, 1, 1, 1), images.mT, images)
    if settings.gain:
        gain = 1 + sign[:, 6] * settings.gain
        images = (images + 1) * gain.view(-1, 1, 1, 1) - 1
    return images


def window(images: Tensor, size: tuple[int, int], u: Tensor) -> Tensor:
    """Windows (N, C, h, w) of images (N, C, H, W), every place as likely: ``u`` (N, 2) uniform in [0, 1) says which."""
    n, _, height, width = images.shape
    places = to_device(torch.tensor([height - size[0] + 1, width - size[1] + 1]), images.device)
    # a float32 below 1, times a count, may round up to the count itself
    start = torch.minimum((u * places).long(), places - 1)
    rows = start[:, 0, None] + torch.arange(size[0], device=images.device)
    columns = start[:, 1, None] + torch.arange(size[1], device=images.device)
    image = torch.arange(n, device=images.device)
    return images[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
