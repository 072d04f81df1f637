"""Denoisers with known answers and images with known anomalies: nothing here needs training."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

SIZE = 24


class GaussianDenoiser(nn.Module):
    """The exact denoiser of pixels that are independently N(mean(p), std^2): D = (std^2 x + s^2 mean) / (std^2 +
    s^2)."""

    def __init__(self, mean: Tensor, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.std = std
        self.inputs: list[Tensor] = []
        self.sigmas: list[Tensor] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.inputs.append(x.clone())
        self.sigmas.append(sigma.clone())
        noise = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return (self.std**2 * x + noise * self.mean) / (self.std**2 + noise)


class ConvolutionalDenoiser(nn.Module):
    """A fixed random network with convolutions, and optionally an activation whose last bits depend on the row's place.

    Kernels of exp end in a scalar remainder, so at sizes that are no multiple of the vector width SiLU is not the
    same for the first and the last row of a batch, even of a fixed one.
    """

    def __init__(self, channels: int = 1, *, smooth: bool = False) -> None:
        super().__init__()
        self.activation = torch.nn.functional.silu if smooth else torch.nn.functional.relu
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.first = nn.Conv2d(channels, 11, 3, padding=1)
            self.second = nn.Conv2d(11, channels, 3, padding=1)

    def features(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        hidden = self.activation(self.first(x / (1 + sigma.reshape(-1, 1, 1, 1))))
        return [hidden, torch.nn.functional.avg_pool2d(hidden, 2)]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.second(self.features(x, sigma)[0])


@pytest.fixture
def anatomy() -> Tensor:
    """The mean normal image, (1, H, W) in [-1, 1]: two smooth structures."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    return (0.8 * torch.exp(-4 * (x**2 + y**2)) - 0.5 * torch.exp(-20 * ((x - 0.4) ** 2 + y**2)) - 0.3)[None]


@pytest.fixture
def normals(anatomy: Tensor) -> Callable[[int, int], Tensor]:
    """normals(n, seed) -> (n, 1, H, W)."""

    def draw(count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return anatomy + 0.1 * torch.randn(count, *anatomy.shape, generator=generator)

    return draw


@pytest.fixture
def lesioned(normals: Callable[[int, int], Tensor]) -> Callable[[int, int, float], tuple[Tensor, Tensor]]:
    """lesioned(n, seed, contrast) -> images (n, 1, H, W) with a 5 x 5 lesion each, masks (n, H, W)."""

    def draw(count: int, seed: int, contrast: float) -> tuple[Tensor, Tensor]:
        images = normals(count, seed)
        masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        corners = torch.randint(3, SIZE - 8, (count, 2), generator=torch.Generator().manual_seed(seed + 1))
        for mask, (top, left) in zip(masks, corners.tolist(), strict=True):
            mask[top : top + 5, left : left + 5] = True
        return images + contrast * masks[:, None], masks

    return draw


@pytest.fixture
def model(anatomy: Tensor) -> SimpleNamespace:
    """A model of the normals that knows them exactly."""
    return SimpleNamespace(denoiser=GaussianDenoiser(anatomy, 0.1), calibrations={})


@pytest.fixture
def gaussian_denoiser() -> type[GaussianDenoiser]:
    return GaussianDenoiser


@pytest.fixture
def convolutional_denoiser() -> type[ConvolutionalDenoiser]:
    return ConvolutionalDenoiser
