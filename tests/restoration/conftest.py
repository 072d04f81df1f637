"""Gaussian data: the denoiser, and the posterior of every linear measurement, are known in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from anodiff.restoration.operators import LinearOperator

SIDE = 6


class GaussianData:
    """Images (1, 6, 6) of N(mean, covariance), smooth with a little grain, in float64."""

    shape = (1, SIDE, SIDE)

    def __init__(self) -> None:
        grid = torch.cartesian_prod(*[torch.arange(SIDE, dtype=torch.float64)] * 2)
        distance = torch.cdist(grid, grid)
        self.size = len(grid)
        self.mean = 0.3 * torch.sin(grid[:, 0] / 2)
        eye = torch.eye(self.size, dtype=torch.float64)
        self.covariance = 0.25 * torch.exp(-(distance**2) / (2 * 1.5**2)) + 0.0025 * eye
        self._values, self._vectors = torch.linalg.eigh(self.covariance)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x_0 | x_0 + sigma n = x]."""
        share = self._values / (self._values + float(sigma) ** 2)
        coordinates = (x.flatten(1) - self.mean) @ self._vectors
        return (self.mean + (coordinates * share) @ self._vectors.T).reshape(x.shape)

    def jacobian(self, sigma: float) -> Tensor:
        return self._vectors @ torch.diag(self._values / (self._values + sigma**2)) @ self._vectors.T

    def draw(self, seed: int = 0) -> Tensor:
        """One image (1, 1, 6, 6)."""
        noise = torch.randn(self.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (self.mean + torch.linalg.cholesky(self.covariance) @ noise).reshape(1, *self.shape)

    def matrix(self, operator: LinearOperator) -> Tensor:
        basis = torch.eye(self.size, dtype=torch.float64).reshape(-1, *self.shape)
        return operator(basis).flatten(1).T

    def posterior(self, operator: LinearOperator, y: Tensor, sigma_y: float) -> tuple[Tensor, Tensor]:
        """Mean (36,) and covariance (36, 36) of x_0 given y."""
        a = self.matrix(operator)
        noise = sigma_y**2 * torch.eye(len(a), dtype=torch.float64)
        gain = self.covariance @ a.T @ torch.linalg.inv(a @ self.covariance @ a.T + noise)
        return self.mean + gain @ (y.flatten() - a @ self.mean), self.covariance - gain @ a @ self.covariance


@pytest.fixture(scope="session")
def gaussian_data() -> GaussianData:
    return GaussianData()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, above all where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
