"""A diffusion transformer for images and volumes: DiT with adaLN-zero (Peebles & Xie 2023).

One class serves 2-D and 3-D, and any size: patches are counted from the centre of the image, so that a larger image
adds positions at its rim and changes none inside. Attention is global, its cost the square of the number of patches.
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
from anodiff.networks.unet import CONVOLUTION

#: wavelength ratio of the positional encoding (Vaswani et al. 2017, section 3.5)
LONGEST = 10_000.0
#: how many activations ``features`` gives, evenly spaced over the depth
FEATURE_MAPS = 3


def positions(grid: Sequence[int], width: int, device: torch.device | None = None) -> Tensor:
    """Sin-cos encoding of a grid of patches: (patches, width) float32, row-major, made on the ``device``.

    An equal share of the width for each axis: sines, then cosines, of the patch's distance from the centre on a
    geometric ladder of frequencies (Vaswani et al. 2017); what the axes cannot share is 0.
    """
    count = width // (2 * len(grid))
    there: dict[str, Any] = {"dtype": torch.float64, "device": device}
    ladder = torch.exp(torch.arange(count, **there) * (-math.log(LONGEST) / max(count, 1)))
    axes = [torch.arange(size, **there) - (size - 1) / 2 for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(grid))
    angles = places[:, :, None] * ladder
    encoded = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    return F.pad(encoded, (0, width - encoded.shape[1])).float()


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (N, L, W) scaled by 1 + scale and shifted, both (N, W)."""
    return torch.addcmul(shift[:, None], x, scale[:, None] + 1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each scaled, shifted and gated by the noise embedding; gates start at 0."""

    def __init__(self, width: int, head_channels: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.rise = nn.Linear(width, expansion * width)
        self.fall = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Tokens (N, L, W) and embedding (N, W) -> tokens (N, L, W)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding).to(x.dtype).chunk(6, dim=1)
        x = x + gate1[:, None] * self.dropout(self._attend(modulate(self.norm1(x), scale1, shift1)))
        h = self.fall(self.dropout(F.gelu(self.rise(modulate(self.norm2(x), scale2, shift2)), approximate="tanh")))
        return x + gate2[:, None] * h

    def _attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


class DiT(nn.Module):
    """F(x, c_noise[, label]): (N, C_in, *S) and (N,) -> (N, C_out, *S), for any spatial size S of rank ``dims``.

    Parameters
    ----------
    in_channels, out_channels:
        channels of what the network sees (the image's, then the context's) and of the image
    dims:
        2 for images, 3 for volumes
    patch:
        side of a patch in voxels: 2 costs 4 times (2-D; 8 in 3-D) the tokens of 4
    width:
        channels of a token
    depth:
        number of blocks
    head_channels:
        channels per attention head; divides ``width``
    expansion:
        width of the perceptron's hidden layer, in widths
    dropout:
        after attention and inside the perceptron
    checkpointing:
        recompute activations in the backward pass: less memory, about a third more time
    classes:
        how many it is told apart by a ``label`` (N,) int64; negative, or None, is "no label"

    ``shift`` (N, embedding.width), where there is one, is added to the embedding: what else it is told.

    Sizes that are not a multiple of ``patch`` are padded by replication and cropped back.
    Raises ValueError for another rank, or heads that do not divide the width.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        *,
        dims: int = 2,
        patch: int = 4,
        width: int = 256,
        depth: int = 8,
        head_channels: int = 32,
        expansion: int = 4,
        dropout: float = 0.0,
        checkpointing: bool = False,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if dims not in CONVOLUTION:
            raise ValueError(f"dims must be 2 or 3, found {dims}")
        if width % head_channels:
            raise ValueError(f"head_channels must divide the width {width}, found {head_channels}")
        out_channels = in_channels if out_channels is None else out_channels
        self.dims, self.patch, self.width = dims, patch, width
        self.checkpointing, self.classes = checkpointing, classes
        self.embedding = NoiseEmbedding(width, classes=classes)
        self.inlet = nn.Linear(in_channels * patch**dims, width)
        self.blocks = nn.ModuleList([Block(width, head_channels, expansion, dropout) for _ in range(depth)])
        self.outlet_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.outlet_modulation = nn.Linear(width, 2 * width)
        self.outlet = nn.Linear(width, out_channels * patch**dims)
        for layer in (self.outlet_modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """See the class; raises ValueError for another rank."""
        self._check(x)
        embedding = self.embedding(c_noise, label, shift)
        h, grid = self._tokens(x)
        for block in self.blocks:
            h = self._run(block, h, embedding)
        scale, shift = self.outlet_modulation(embedding).to(h.dtype).chunk(2, dim=1)
        h = self.outlet(modulate(self.outlet_norm(h), scale, shift))
        return crop(unfold(self._map(h, grid), self.patch), x.shape[2:])

    def features(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, shift: Tensor | None = None
    ) -> list[Tensor]:
        """Activations after each third of the blocks, (N, width, *grid) each, on the grid of patches."""
        self._check(x)
        embedding = self.embedding(c_noise, label, shift)
        depth, count = len(self.blocks), min(FEATURE_MAPS, len(self.blocks))
        wanted = {-(-depth * (i + 1) // count) for i in range(count)}
        h, grid = self._tokens(x)
        maps = []
        for done, block in enumerate(self.blocks, start=1):
            h = self._run(block, h, embedding)
            if done in wanted:
                maps.append(self._map(h, grid))
        return maps

    def _tokens(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Patches (N, L, width) with their positions, and the grid (one size an axis) that they came from."""
        folded = fold(pad(x, self.patch), self.patch)
        grid = list(folded.shape[2:])
        tokens = self.inlet(folded.flatten(2).transpose(1, 2))
        return tokens + positions(grid, self.width, tokens.device).to(tokens), grid

    def _map(self, tokens: Tensor, grid: list[int]) -> Tensor:
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)
        return block(x, embedding)

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.dims + 2:
            raise ValueError(f"expected (N, C, *spatial) with {self.dims} spatial dimensions, found {tuple(x.shape)}")
