"""How sure a denoised image is, voxel by voxel, from the denoiser's own gradient."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from anodiff.diffusion import sample_noise
from anodiff.diffusion.linearise import linearise

#: voxels of one probe lie so far apart along each axis; what a denoiser links beyond that averages out by their signs
PROBE_PX = 4
PROBE_LEVEL = 2


def tweedie_deviation(denoiser: object, x: Tensor, level: Tensor, keys: Tensor) -> tuple[Tensor, int]:
    """Deviation of x_0 given x (N, C, *S) at noise levels (N,): sigma sqrt(diag dD/dx), and the gradients it took.

    The diagonal is probed by combs with random signs (keys: (N,) int64), C * 4^rank of them: without bias, and
    exact for a denoiser that looks less than 4 voxels far.
    """
    _, pullback = linearise(denoiser, x, level)  # type: ignore[arg-type]
    signs = sample_noise("gaussian", keys, tuple(x.shape[1:]), level=PROBE_LEVEL).sign().to(x.device)
    diagonal = torch.zeros_like(x, dtype=torch.float32)
    offsets = list(product(range(x.shape[1]), *(range(min(PROBE_PX, side)) for side in x.shape[2:])))
    for channel, *corner in offsets:
        comb = torch.zeros_like(diagonal)
        place: tuple[slice | int, ...] = (slice(None), channel, *(slice(start, None, PROBE_PX) for start in corner))
        comb[place] = signs[place]
        diagonal[place] = (pullback(comb).to(x.device) * comb)[place]
    sigma = level.to(x.device, torch.float32).reshape(-1, *(1,) * (x.ndim - 1))
    return sigma * diagonal.clamp(min=0).sqrt(), len(offsets)
