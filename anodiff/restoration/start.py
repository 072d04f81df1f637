"""Where chains from noise alone start: the mean of what the model draws, plus noise of the highest level."""

from __future__ import annotations

import torch
from torch import Tensor

from anodiff.diffusion import sample_noise
from anodiff.diffusion.samplers import DenoiserFn

#: antithetic pairs of noise drawn for the estimate, and rounds of it
PAIRS, ROUNDS = 2, 2
_KEY = 0x5EED


@torch.no_grad()
def mean_image(
    denoiser: DenoiserFn,
    shape: tuple[int, ...],
    sigma: float,
    family: str,
    scale: str,
    device: torch.device,
    rows: int = 2 * PAIRS,
) -> Tensor:
    """Mean of the model's images (1, C, *S), by the denoiser alone, which is shown up to ``rows`` images at once.

    A chain that starts at noise of level sigma about 0 ends short of the mean of the data mu: of Gaussian data by
    mu s / sqrt(s^2 + sigma^2) in each direction in which they have the deviation s. The direction, not the pixel,
    counts: the brightness of a whole image of N pixels has sqrt(N) times the deviation of one pixel's, so that it is
    seen even at the highest levels. One round is the mean of D(m + sigma n, sigma) over pairs +-n, which takes the
    estimate m to mu + (m - mu) s^2 / (s^2 + sigma^2). Costs 2 x PAIRS x ROUNDS calls.
    """
    mean = torch.zeros(1, *shape, device=device)
    level = torch.tensor(sigma, dtype=torch.float64)
    for _ in range(ROUNDS):
        total = torch.zeros_like(mean)
        for numbers in torch.arange(2 * PAIRS, device=device).split(rows):
            keys = torch.full_like(numbers, _KEY)
            noise = sample_noise(family, keys, shape, draw=numbers // 2, scale=scale)
            sign = (1 - 2 * (numbers % 2)).view(-1, *[1] * len(shape))
            total += denoiser(mean + sigma * sign * noise, level).float().sum(dim=0, keepdim=True)
        mean = total / (2 * PAIRS)
    return mean
