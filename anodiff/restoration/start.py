"""Where a chain of generation starts: the mean of what the model draws, plus noise of the highest level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anodiff.diffusion import sample_noise

#: antithetic pairs of noise drawn for the estimate, and rounds of it
PAIRS, ROUNDS = 4, 2
#: deviations of the data above which their mean is lost in the noise
LOST = 100.0
_KEY = 0x5EED


@torch.no_grad()
def mean_image(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    sigma: float,
    sigma_data: float,
    family: str,
    scale: str,
    device: torch.device,
) -> Tensor:
    """Mean of the model's images (1, C, *S), by the denoiser alone; zeros where ``sigma`` is so high that none is seen.

    A network that learnt levels up to a few deviations of the data still sees their mean there: started at noise about
    0, a chain ends in images that are too bright or too dark. One round is the mean of D(m + sigma n, sigma) over pairs
    +-n; of Gaussian data it takes the estimate m to mu + (m - mu) s^2 / (s^2 + sigma^2), for each direction in which
    they have the deviation s. Costs 2 x PAIRS x ROUNDS calls.
    """
    mean = torch.zeros(1, *shape, device=device)
    if sigma > LOST * sigma_data:
        return mean
    keys = torch.full((PAIRS,), _KEY, dtype=torch.int64, device=device)
    drawn = sample_noise(family, keys, shape, draw=torch.arange(PAIRS, device=device), scale=scale)
    noise = sigma * torch.cat([drawn, -drawn])
    level = torch.full((2 * PAIRS,), sigma, device=device)
    for _ in range(ROUNDS):
        mean = denoiser(mean + noise, level).float().mean(dim=0, keepdim=True)
    return mean
