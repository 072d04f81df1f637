"""Data whose exact denoiser is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor


class Mixture:
    """Scalar data of several Gaussian components; one component is Gaussian data. Everything in the input's dtype."""

    def __init__(self, means: tuple[float, ...], shares: tuple[float, ...], std: float) -> None:
        self.means, self.shares, self.std = means, shares, std

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x_0 | x_0 + sigma n = x], elementwise."""
        variance = self.std**2 + torch.as_tensor(sigma, dtype=x.dtype) ** 2
        if len(self.means) == 1:
            return self.means[0] + (x - self.means[0]) * (self.std**2 / variance)
        offsets = [x - mean for mean in self.means]
        logits = torch.stack([math.log(p) - e**2 / (2 * variance) for p, e in zip(self.shares, offsets, strict=True)])
        posterior_means = [mean + self.std**2 / variance * e for mean, e in zip(self.means, offsets, strict=True)]
        return (logits.softmax(0) * torch.stack(posterior_means)).sum(0)

    def quantile(self, u: Tensor, sigma: float = 0.0) -> Tensor:
        """Quantiles of the data with noise of level sigma added, by bisection in float64."""
        std = math.sqrt(self.std**2 + sigma**2)
        low = torch.full_like(u, min(self.means) - 40 * std)
        high = torch.full_like(u, max(self.means) + 40 * std)
        for _ in range(80):
            middle = (low + high) / 2
            cdf = sum(
                share * torch.special.ndtr((middle - mean) / std)
                for mean, share in zip(self.means, self.shares, strict=True)
            )
            low, high = torch.where(cdf < u, middle, low), torch.where(cdf < u, high, middle)
        return (low + high) / 2


@pytest.fixture(scope="session")
def gaussian() -> Mixture:
    """N(0.3, 0.1^2)."""
    return Mixture((0.3,), (1.0,), 0.1)


@pytest.fixture(scope="session")
def mixture() -> Mixture:
    """30 % N(-0.6, 0.1^2) and 70 % N(0.4, 0.1^2)."""
    return Mixture((-0.6, 0.4), (0.3, 0.7), 0.1)
