"""A U-Net of short clips, factorised in space and time (after Ho et al. 2022, Video Diffusion Models).

Every frame goes through the same 2-D U-Net; after each of its stages the frames see one another, at each place for
itself, by attention over time. Nothing is mixed in space and time at once, so a clip costs its frames and little more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anodiff.networks.unet import Stage, UNet, group_norm


class TemporalAttention(nn.Module):
    """Scaled dot-product attention over the ``frames`` of a clip at each place, residual, starting at no effect.

    (N * frames, C, *S) -> the same, the frames of a clip one after the other. Places in time are learnt.
    """

    def __init__(self, frames: int, channels: int, head_channels: int) -> None:
        super().__init__()
        self.frames = frames
        self.heads = next(n for n in range(max(1, channels // head_channels), 0, -1) if channels % n == 0)
        self.norm = group_norm(channels)
        self.place = nn.Parameter(torch.randn(frames, channels) * 0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        # (N, frames, C, P) -> (N, P, frames, C): each place is a sequence of its own
        apart = self.norm(x).reshape(-1, self.frames, c, x[0, 0].numel()).permute(0, 3, 1, 2)
        qkv = self.qkv(apart + self.place)
        q, k, v = qkv.reshape(-1, self.frames, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(apart.shape)
        return x + self.out(attended).permute(0, 2, 3, 1).reshape(x.shape)


class SpaceTimeUNet(nn.Module):
    """F(x, c_noise): (N, frames * C, H, W) and (N,) -> the same with the channels of ``out_channels``.

    Args:
        frames: of a clip, whose channels follow one another.
        in_channels, out_channels: of all frames together; out_channels may be a multiple of in_channels (a learnt
            variance), whose parts then follow one another, each with all frames.
        shape: of the `UNet` that every frame goes through.

    Raises ValueError for channels that are not as many for each frame.
    """

    def __init__(self, frames: int, in_channels: int, out_channels: int | None = None, **shape: Any) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if in_channels % frames or out_channels % in_channels:
            raise ValueError(
                f"expected channels that {frames} frames share evenly, found {in_channels} in and {out_channels} out"
            )
        self.frames, self.parts = frames, out_channels // in_channels
        self.unet = UNet(in_channels // frames, out_channels // frames, **shape)
        head_channels = shape.get("head_channels", 32)
        for stage in self.unet.modules():
            if isinstance(stage, Stage):
                mixed = TemporalAttention(frames, stage.block.conv2.out_channels, head_channels)
                stage.attention = nn.Sequential(stage.attention, mixed)  # type: ignore[assignment]

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        n, _, *sizes = x.shape
        each = x.reshape(n * self.frames, -1, *sizes)
        out = self.unet(each, c_noise.repeat_interleave(self.frames))
        parts: Tensor = out.reshape(n, self.frames, self.parts, -1, *sizes).transpose(1, 2)
        return parts.reshape(n, -1, *sizes)
