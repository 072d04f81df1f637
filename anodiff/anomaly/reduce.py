"""From an anomaly map to one score an image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from anodiff.anomaly.smoothing import tree_sum

Reduction = Literal["mean", "max", "topk"]


def reduce_maps(maps: Tensor, reduction: Reduction, *, topk: float = 0.005, foreground: Tensor | None = None) -> Tensor:
    """One score an image, in the units of the map; (N, *S) -> (N,).

    ``mean``, ``max``, or ``topk``: the mean of the largest ``topk`` share of the foreground pixels (one pixel at
    least). ``foreground`` (N, *S) bool limits all three; an image without any foreground pixel is reduced over all
    of its pixels. The result for an image does not depend, to the bit, on the other images of the batch.

    Raises:
        ValueError: another ``reduction``.
    """
    values = maps.flatten(1)
    if foreground is None:
        inside = torch.ones_like(values, dtype=torch.bool)
    else:
        inside = foreground.flatten(1)
        inside = inside | ~inside.any(dim=1, keepdim=True)
    if reduction == "mean":
        return tree_sum(torch.where(inside, values, torch.zeros_like(values))) / inside.sum(dim=1)
    if reduction == "max":
        return torch.where(inside, values, torch.full_like(values, -torch.inf)).amax(dim=1)
    if reduction == "topk":
        return _topk_mean(values, inside, topk)
    raise ValueError(f"reduction: expected mean, max or topk, found {reduction!r}")


def _topk_mean(values: Tensor, inside: Tensor, share: float) -> Tensor:
    """Mean of the round(share * foreground) largest values of each row."""
    pixels = values.shape[1]
    most = max(1, min(pixels, round(share * pixels)))
    wanted = (share * inside.sum(dim=1).double()).round().long().clamp(1, most)
    masked = torch.where(inside, values, torch.full_like(values, -torch.inf))
    largest = masked.topk(most, dim=1).values
    taken = torch.arange(most, device=values.device) < wanted[:, None]
    return tree_sum(torch.where(taken, largest, torch.zeros_like(largest))) / wanted
