"""What networks do to the grid of an image or volume: pad to a multiple and crop back, fold pixels into channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pad(x: Tensor, multiple: int) -> Tensor:
    """x (N, C, *S), each side grown to a multiple by replication, as evenly as possible at both ends."""
    missing = [(-size) % multiple for size in x.shape[2:]]
    if not any(missing):
        return x
    amounts = [amount for gap in reversed(missing) for amount in (gap // 2, gap - gap // 2)]
    return F.pad(x, amounts, mode="replicate")


def crop(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Inverse of :func:`pad`: the middle of x (N, C, *S), of the spatial ``sizes``."""
    for axis, size in enumerate(sizes, start=2):
        gap = x.shape[axis] - size
        if gap:
            x = x.narrow(axis, gap // 2, size)
    return x


def fold(x: Tensor, factor: int) -> Tensor:
    """Pixel-unshuffle by rank: (N, C, H, W) -> (N, C f^2, H/f, W/f), and likewise with f^3 for volumes."""
    if factor == 1:
        return x
    n, c, *sizes = x.shape
    split = [part for size in sizes for part in (size // factor, factor)]
    rank = len(sizes)
    inner = [3 + 2 * i for i in range(rank)]
    outer = [2 + 2 * i for i in range(rank)]
    return (
        x.reshape(n, c, *split)
        .permute(0, 1, *inner, *outer)
        .reshape(n, c * factor**rank, *(size // factor for size in sizes))
    )


def unfold(x: Tensor, factor: int) -> Tensor:
    """Inverse of :func:`fold`: (N, C f^2, H, W) -> (N, C, f H, f W)."""
    if factor == 1:
        return x
    n, c, *sizes = x.shape
    rank = len(sizes)
    channels = c // factor**rank
    order = [part for i in range(rank) for part in (2 + rank + i, 2 + i)]
    return (
        x.reshape(n, channels, *[factor] * rank, *sizes)
        .permute(0, 1, *order)
        .reshape(n, channels, *(size * factor for size in sizes))
    )
