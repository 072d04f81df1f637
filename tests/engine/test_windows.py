from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from anodiff.diffusion import SAMPLERS, karras_grid
from anodiff.engine.inference import InferenceDenoiser
from anodiff.engine.windows import WindowDenoiser, axis_plan, starts
from anodiff.errors import ConfigError


def local(x: Tensor, sigma: Tensor | float, context: Tensor | None = None) -> Tensor:
    """Reaches one voxel far: exact for independent voxels."""
    noise = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1)) ** 2
    return (0.25 * x + noise * (0.1 if context is None else context)) / (0.25 + noise)


class Marks:
    """Estimates the number of its own call, and remembers the shapes it saw."""

    network_batch = 3

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, sigma: Tensor | float, context: Tensor | None = None) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.full_like(x, float(len(self.shapes)))


@pytest.mark.parametrize("taper", ["hann", "linear"])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("side", "edge"), [(1, 4), (4, 4), (5, 4), (17, 6), (16, 8), (9, 1)])
def test_weights_sum_to_one_and_windows_cover(side: int, edge: int, overlap: float, taper: Any) -> None:
    plan = axis_plan(side, edge, overlap, taper)
    total = torch.zeros(side, dtype=torch.float64)
    for place, weights in plan:
        assert place.stop - place.start == min(side, edge) == len(weights)
        assert bool((weights > 0).all())
        total[place] += weights
    assert torch.allclose(total, torch.ones(side, dtype=torch.float64), atol=1e-6)
    first = starts(side, edge, overlap)
    assert first[0] == 0
    assert first[-1] == max(0, side - edge)
    gaps = [b - a for a, b in pairwise(first)]
    assert all(gap <= max(1, edge * (1 - overlap)) for gap in gaps)


@pytest.mark.parametrize("size", [(11, 9, 7), (5, 20), (3, 3, 3)])
def test_local_denoiser_gives_what_it_gives_without_windows(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 2, *size)
    sigma = torch.tensor([0.3, 2.0])
    windows = WindowDenoiser(local, (4,) * len(size), 0.5)
    assert torch.allclose(windows(x, sigma), local(x, sigma), atol=1e-6)
    context = torch.randn(2, 2, *size)
    assert torch.allclose(windows.given(context)(x, sigma), local(x, sigma, context), atol=1e-6)
    assert windows.calls == 2 * 2 * windows.count(size)


def test_whole_chain_is_that_of_the_whole_volume() -> None:
    """Averaged inside the loop: every step of a sampler sees one estimate."""
    x, grid = torch.randn(1, 1, 9, 8, 7), karras_grid(2.0, 0.05, 4)
    args = (x, grid, lambda step: torch.zeros_like(x))
    whole = SAMPLERS["dpmpp"](local, *args)
    assert torch.allclose(SAMPLERS["dpmpp"](WindowDenoiser(local, (4, 4, 4)), *args), whole, atol=1e-5)


def test_overlaps_are_weighted_means() -> None:
    """Two windows that estimate 1 and 2: between them the mean rises along the taper, in closed form."""

    def numbered(x: Tensor, sigma: Tensor | float, context: Tensor | None = None) -> Tensor:
        return torch.arange(1.0, len(x) + 1).reshape(-1, 1, 1).expand(x.shape)

    found = WindowDenoiser(numbered, (4,), 0.5, "linear")(torch.zeros(1, 1, 6), 1.0)
    # weights of a triangle of 4 are 1/4 3/4 3/4 1/4
    assert torch.allclose(found, torch.tensor([[[1, 1, 1.25, 1.75, 2, 2]]]))


def test_the_network_sees_one_window_shape_and_bounded_batches() -> None:
    marks = Marks()
    WindowDenoiser(marks, (4, 4), 0.5)(torch.zeros(2, 1, 13, 9), 1.0)
    assert {shape[1:] for shape in marks.shapes} == {(1, 4, 4)}
    assert max(shape[0] for shape in marks.shapes) == 3


def test_memory_beyond_the_estimate_does_not_grow_with_the_image() -> None:
    """The largest batch that the network is given is the same for a small and a large image (4096 x 4096)."""
    seen: list[int] = []

    def network(x: Tensor, sigma: Tensor | float, context: Tensor | None = None) -> Tensor:
        seen.append(x.numel())
        return x

    largest = []
    for side in (2048, 4096):
        seen.clear()
        image = torch.zeros(1, 1, side, side)
        image[0, 0, -1, -2] = 1
        found = WindowDenoiser(network, (512, 512), 0.25)(image, 1.0)
        largest.append(max(seen))
        assert torch.equal(found.argmax(), image.argmax())
    assert largest[0] == largest[1]


@pytest.mark.parametrize("dims", [2, 3])
def test_same_bits_whatever_the_batch_mates(dims: int, convolutional: type[torch.nn.Module]) -> None:
    inner = InferenceDenoiser(convolutional(dims), "cpu", "fp32", 4)
    windows = WindowDenoiser(inner, (8,) * dims, 0.5)
    x = torch.randn(3, 1, *(19, 12, 10)[:dims])
    together = windows(x, torch.tensor([0.5, 1.0, 2.0]))
    assert torch.equal(together[1:2], windows(x[1:2], 1.0))
    assert torch.equal(together, windows(x, torch.tensor([0.5, 1.0, 2.0])))
    assert windows.device == inner.device
    assert windows.network_batch == 4


@pytest.fixture
def convolutional() -> type[torch.nn.Module]:
    class Convolutional(torch.nn.Module):
        def __init__(self, dims: int) -> None:
            super().__init__()
            kind = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
            self.layers = torch.nn.Sequential(kind(1, 6, 3, padding=1), torch.nn.ReLU(), kind(6, 1, 3, padding=1))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.layers(x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1))))

    return Convolutional


def test_refused() -> None:
    for arguments in (((0, 4), 0.5), ((4, 4), 0.95), ((4, 4), -0.1), ((), 0.5)):
        with pytest.raises(ConfigError, match="expected"):
            WindowDenoiser(local, *arguments)
    with pytest.raises(ConfigError, match="taper"):
        WindowDenoiser(local, (4,), 0.5, "box")  # type: ignore[arg-type]
    windows = WindowDenoiser(local, (4, 4))
    with pytest.raises(ConfigError, match="3 sides"):
        windows(torch.zeros(1, 1, 4, 4, 4), 1.0)
    with pytest.raises(ConfigError, match="features"):
        windows.features(torch.zeros(1, 1, 4, 4), 1.0)
