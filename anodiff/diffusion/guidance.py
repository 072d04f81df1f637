"""Classifier-free guidance: the estimate of a class, and beyond it, from a denoiser that also knows "no label"."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from anodiff.diffusion.samplers import DenoiserFn
from anodiff.errors import ConfigError

#: the label of "no label"
NO_LABEL = -1


class LabelledDenoiser(Protocol):
    """D(x, sigma, label): x (N, C, *S), sigma () or (N,), label (N,) int64 on x's device, negative is "no label"."""

    def __call__(self, x: Tensor, sigma: Tensor, *, label: Tensor) -> Tensor:
        """Estimate of x_0, the shape of x."""


def classifier_free(
    denoiser: LabelledDenoiser, label: int, weight: float = 1.0, *, clip: float | None = None
) -> DenoiserFn:
    """The denoiser D_null + weight (D_class - D_null) of Ho & Salimans 2022 (equation 6, whose w is weight - 1).

    The score is that of p(x) p(class | x)^weight at every noise level: 0 forgets the class, 1 samples it, more than 1
    moves to where the class is surest. Both estimates are one call of twice the rows, so that whoever counts rows
    counts both; a weight of 0 or 1, or "no label", needs one of them only. ``clip``: where the denoiser's own estimates
    are clamped, beyond which guidance would carry them again.

    Raises ConfigError for a weight that is not finite or below 0.
    """
    if not 0 <= weight < math.inf:
        raise ConfigError(f"guidance: expected a weight of 0 or more, found {weight}")
    alone = {0.0: NO_LABEL, 1.0: label}.get(weight, NO_LABEL if label < 0 else None)

    def single(x: Tensor, sigma: Tensor) -> Tensor:
        assert alone is not None
        return denoiser(x, sigma, label=torch.full((len(x),), alone, device=x.device))

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        level = torch.as_tensor(sigma)
        labels = torch.full((2, len(x)), NO_LABEL, device=x.device)
        labels[1].fill_(label)
        both = denoiser(
            torch.cat([x, x]), torch.cat([level, level]) if level.numel() > 1 else level, label=labels.flatten()
        )
        null, wanted = both.chunk(2)
        mixed = torch.lerp(null, wanted, weight)
        return mixed if clip is None else mixed.clamp(-clip, clip)

    return guided if alone is None else single
