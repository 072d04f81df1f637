"""A U-Net for images and volumes: Ronneberger et al. 2015 with the residual blocks and noise embedding of DDPM / EDM.

One class serves 2-D and 3-D: the rank of the input decides, never the name of the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anodiff.networks.embedding import NoiseEmbedding
from anodiff.networks.grids import crop, fold, pad, unfold

#: of the waves that tell where a voxel lies, in voxels of the image: from a small part of it to far more than all of it
SHORTEST, OCTAVES = 16, 6
WAVELENGTHS = tuple(SHORTEST * 2**octave for octave in range(OCTAVES))
CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least four channels, 32 at the most; one group where the channels cannot be divided."""
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def waves(grid: Sequence[int], step: int, device: torch.device | None = None) -> Tensor:
    """Where each voxel of a grid lies: (1, 2 len(WAVELENGTHS) axes, *grid) float32, sines and cosines along each axis.

    Counted from the centre in voxels of the image, of which ``step`` lie between two of the grid: a larger image adds
    places at its rim and changes none inside, as in `anodiff.networks.dit.positions`. Made on the ``device``: a copy to
    it at every call would wait for the host.
    """
    there: dict[str, Any] = {"dtype": torch.float64, "device": device}
    rates = 2 * math.pi * step / (SHORTEST * 2 ** torch.arange(OCTAVES, **there))
    axes = [torch.arange(size, **there) - (size - 1) / 2 for size in grid]
    angles = [rates[:, None] * axis for axis in axes]
    along = [torch.cat([each.sin(), each.cos()]) for each in angles]
    spread = [
        each.reshape(-1, *[1] * i, size, *[1] * (len(grid) - 1 - i)).expand(-1, *grid)
        for i, (each, size) in enumerate(zip(along, grid, strict=True))
    ]
    return torch.cat(spread)[None].float()


class ResidualBlock(nn.Module):
    """norm -> SiLU -> conv, twice, scaled and shifted by the noise embedding; the last conv starts at zero."""

    def __init__(self, dims: int, c_in: int, c_out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        conv = CONVOLUTION[dims]
        self.norm1 = group_norm(c_in)
        self.conv1 = conv(c_in, c_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * c_out)
        self.norm2 = group_norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(c_out, c_out, 3, padding=1)
        self.shortcut = conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        modulation = self.modulation(embedding).to(h.dtype)
        scale, shift = modulation.reshape(*modulation.shape, *[1] * (h.ndim - 2)).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        return self.shortcut(x) + self.conv2(self.dropout(h))


class SelfAttention(nn.Module):
    """Scaled dot-product attention over all positions, residual."""

    def __init__(self, dims: int, channels: int, head_channels: int) -> None:
        super().__init__()
        conv = CONVOLUTION[dims]
        self.heads = max(1, channels // head_channels)
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = conv(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        n, c, *sizes = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, -1).transpose(-1, -2)
        attended = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.out(attended.transpose(-1, -2).reshape(n, c, *sizes))


class Stage(nn.Module):
    """One residual block and, where asked, attention: the unit that is checkpointed."""

    def __init__(
        self, dims: int, c_in: int, c_out: int, embedding: int, dropout: float, attention: bool, head_channels: int
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(dims, c_in, c_out, embedding, dropout)
        self.attention = SelfAttention(dims, c_out, head_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """F(x, c_noise[, label]): (N, C_in, *S) and (N,) -> (N, C_out, *S), for any spatial size S of rank ``dims``.

    Parameters
    ----------
    in_channels, out_channels:
        channels of the image
    dims:
        2 for images, 3 for volumes
    channels:
        width at each resolution, finest first; each further one halves the size
    blocks:
        residual blocks per resolution in the encoder (one more in the decoder)
    attention:
        at which resolutions the blocks are followed by self-attention
    stem:
        pixel-unshuffle factor: 2 computes a 128x128 image at 64x64, at about a quarter of the cost
    head_channels:
        channels per attention head
    dropout:
        inside the residual blocks
    checkpointing:
        recompute activations in the backward pass: less memory, about a third more time
    classes:
        how many it is told apart by a ``label`` (N,) int64; negative, or None, is "no label"
    position:
        every place is told where in the image it is: for images that are aligned with one another, where a part that is
        normal here is not normal there. Convolutions alone learn it from the rim, slowly

    ``shift`` (N, embedding.width), where there is one, is added to the embedding: what else it is told.

    Sizes that are not a multiple of ``stem * 2**(len(channels) - 1)`` are padded by replication and cropped back.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        *,
        dims: int = 2,
        channels: Sequence[int] = (64, 128, 192),
        blocks: int = 2,
        attention: Sequence[bool] = (False, False, True),
        stem: int = 1,
        head_channels: int = 32,
        dropout: float = 0.0,
        checkpointing: bool = False,
        classes: int = 0,
        position: bool = False,
    ) -> None:
        super().__init__()
        if dims not in CONVOLUTION:
            raise ValueError(f"dims must be 2 or 3, found {dims}")
        if len(channels) != len(attention):
            raise ValueError(f"attention needs {len(channels)} entries, one per resolution, found {len(attention)}")
        conv = CONVOLUTION[dims]
        out_channels = in_channels if out_channels is None else out_channels
        self.dims, self.stem, self.checkpointing, self.classes = dims, stem, checkpointing, classes
        self.multiple = stem * 2 ** (len(channels) - 1)
        width = 4 * channels[0]
        self.embedding = NoiseEmbedding(width, classes=classes)

        def stage(c_in: int, c_out: int, attended: bool) -> Stage:
            return Stage(dims, c_in, c_out, width, dropout, attended, head_channels)

        self.inlet = conv(in_channels * stem**dims, channels[0], 3, padding=1)
        self.place = conv(2 * len(WAVELENGTHS) * dims, channels[0], 1, bias=False) if position else None
        skips = [channels[0]]
        current = channels[0]
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        for level, c in enumerate(channels):
            level_blocks = nn.ModuleList()
            for _ in range(blocks):
                level_blocks.append(stage(current, c, attention[level]))
                current = c
                skips.append(c)
            self.encoder.append(level_blocks)
            last = level == len(channels) - 1
            self.down.append(nn.Identity() if last else conv(c, c, 3, stride=2, padding=1))
            if not last:
                skips.append(c)
        self.middle = nn.ModuleList([stage(current, current, attention[-1]), stage(current, current, False)])
        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(channels))):
            c = channels[level]
            level_blocks = nn.ModuleList()
            for _ in range(blocks + 1):
                level_blocks.append(stage(current + skips.pop(), c, attention[level]))
                current = c
            self.decoder.append(level_blocks)
            self.up.append(nn.Identity() if level == 0 else conv(c, c, 3, padding=1))
        self.outlet_norm = group_norm(current)
        self.outlet = conv(current, out_channels * stem**dims, 3, padding=1)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)  # type: ignore[arg-type]

    def _run(self, stage: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(stage, x, embedding, use_reentrant=False)
        return stage(x, embedding)

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The deepest activation, the skips for the decoder, and the last activation at each resolution."""
        h = self.inlet(fold(pad(x, self.multiple), self.stem))
        if self.place is not None:
            h = h + self.place(waves(h.shape[2:], self.stem, h.device).to(h))
        skips, levels = [h], []
        for level_blocks, down in zip(self.encoder, self.down, strict=True):
            for stage in level_blocks:  # type: ignore[attr-defined]
                h = self._run(stage, h, embedding)
                skips.append(h)
            levels.append(h)
            if not isinstance(down, nn.Identity):
                h = down(h)
                skips.append(h)
        return h, skips, levels

    def features(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, shift: Tensor | None = None
    ) -> list[Tensor]:
        """Encoder activations, finest first: (N, C_l, *S_l) each, on the padded grid divided by ``stem * 2**l``."""
        self._check(x)
        return self._encode(x, self.embedding(c_noise, label, shift))[2]

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.dims + 2:
            raise ValueError(f"expected (N, C, *spatial) with {self.dims} spatial dimensions, found {tuple(x.shape)}")

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        self._check(x)
        embedding = self.embedding(c_noise, label, shift)
        h, skips, _ = self._encode(x, embedding)
        for stage in self.middle:
            h = self._run(stage, h, embedding)
        for level_blocks, up in zip(self.decoder, self.up, strict=True):
            for stage in level_blocks:  # type: ignore[attr-defined]
                h = self._run(stage, torch.cat([h, skips.pop()], dim=1), embedding)
            if not isinstance(up, nn.Identity):
                h = up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.outlet(F.silu(self.outlet_norm(h)))
        return crop(unfold(h, self.stem), x.shape[2:])
