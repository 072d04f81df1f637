"""From one error map a noise level to one map an image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Fusion = Literal["mean", "sqrt-mean", "max", "harmonic", "images"]

#: keeps the harmonic mean finite where a level sees no error (THOR's epsilon, methods 5.6)
HARMONIC_FLOOR = 1e-3


def fuse(errors: Tensor, fusion: Fusion, limits: tuple[float, float | None] | None = None) -> Tensor:
    """Join the levels' (standardised) errors; (L, N, *S) -> (N, *S), in the units of the errors, within ``limits``.

    ``mean``; ``sqrt-mean``: the square of the mean of (signed) square roots, which one loud level cannot dominate;
    ``max``: the value furthest from 0; ``harmonic``: L / sum 1 / (e + 0.001) of the positive parts less that of the
    negative parts, high only where all levels agree (THOR). All keep signs, so that a polarity can be applied
    afterwards. ``images``: levels were averaged as images, and have one error map.

    Raises:
        ValueError: another ``fusion``.
    """
    joined = _joined(list(errors.unbind(0)), fusion)
    return joined if limits is None else joined.clamp(*limits)


def _joined(levels: list[Tensor], fusion: Fusion) -> Tensor:
    if fusion in ("mean", "images"):
        return _mean(levels)
    if fusion == "sqrt-mean":
        root = _mean([level.sign() * level.abs().sqrt() for level in levels])
        return root * root.abs()
    if fusion == "max":
        out = levels[0]
        for level in levels[1:]:
            out = torch.where(level.abs() > out.abs(), level, out)
        return out
    if fusion == "harmonic":
        return _harmonic([level.clamp(min=0) for level in levels]) - _harmonic(
            [(-level).clamp(min=0) for level in levels]
        )
    raise ValueError(f"fusion: expected mean, sqrt-mean, max, harmonic or images, found {fusion!r}")


def _mean(levels: list[Tensor]) -> Tensor:
    total = levels[0]
    for level in levels[1:]:
        total = total + level
    return total / len(levels)


def _harmonic(levels: list[Tensor]) -> Tensor:
    inverse = 1.0 / (levels[0] + HARMONIC_FLOOR)
    for level in levels[1:]:
        inverse = inverse + 1.0 / (level + HARMONIC_FLOOR)
    return (len(levels) / inverse - HARMONIC_FLOOR).clamp(min=0)
