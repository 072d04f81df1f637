"""Simplex fields against a direct evaluation in float64, and against the published generator's statistics."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from anodiff.diffusion import sample_noise, simplex
from anodiff.diffusion.philox import philox


def gradient(key: int, octave: int, draw: int, i: int, j: int, m: int) -> list[int]:
    """The gradient of one lattice point, hashed on its own."""
    position = (i >> 2 & 0xFFFF) | (i + j & 0xFFFF) << 16
    counter = (position, m & 0xFFFF, draw, (64 + octave) << 24)
    words = philox(
        tuple(torch.tensor([c]) for c in counter),  # type: ignore[arg-type]
        (torch.tensor([key & 0xFFFFFFFF]), torch.tensor([key >> 32])),
    )
    signs_and_axis = int(words[i & 3]) * 24 >> 32
    axis, signs = divmod(signs_and_axis, 8)
    return [(-1 if signs >> (2 - c) & 1 else 1) * (11 if c == axis else 4) for c in range(3)]


def direct(key: int, draw: int, voxel: tuple[int, ...]) -> float:
    """One voxel by the definition: every lattice point of a generous box, in float64."""
    total = 0.0
    norm = math.sqrt(sum(0.8 ** (2 * k) for k in range(6)))
    for k in range(6):
        f = 64 / 2**k
        shift = 0.6180339887498949 * (k + 1)
        z = 1 / 6 if len(voxel) == 2 else voxel[0] / f
        x = (voxel[-1] / f + shift, voxel[-2] / f + 2 * shift, z)
        stretched = [c - sum(x) / 6 for c in x]
        value = power = 0.0
        for point in product(*(range(math.floor(c) - 3, math.floor(c) + 5) for c in stretched)):
            d = [c - (p + sum(point) / 3) for c, p in zip(x, point, strict=True)]
            square = sum(c * c for c in d)
            if square < 2:
                kernel = (2 - square) ** 4
                value += kernel * sum(g * c for g, c in zip(gradient(key, k, draw, *point), d, strict=True))
                power += 51 * kernel**2 * square
        total += 0.8**k / norm * value / math.sqrt(power)
    return total


@pytest.mark.parametrize("shape", [(1, 40, 50), (1, 5, 20, 20)])
def test_fields_are_what_the_definition_says(shape: tuple[int, ...]) -> None:
    """To the quantum: 100 weights, each off by at most 2^-21, times gradient components of at most 11."""
    key = 0x1234_5678_9ABC_DEF0 >> 1
    field = sample_noise("simplex", torch.tensor([key]), shape, draw=6)[0, 0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        voxel = tuple(int(torch.randint(0, n, (), generator=generator)) for n in shape[1:])
        assert float(field[voxel]) == pytest.approx(direct(key, 6, voxel), abs=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (4, 16, 20)])
def test_unit_variance_and_exact_sums(size: tuple[int, ...]) -> None:
    """The variance in closed form (components of a gradient are uncorrelated, of mean square 51), and the quanta.

    Every weight is a multiple of the quantum and no sum can reach 2^24 of them: float32 makes no rounding error.
    """
    tile = simplex.tile_geometry((0,) * len(size), size, torch.device("cpu"))
    voxels = math.prod(size)
    ends = torch.cat([tile.offsets[1:].long(), torch.tensor([len(tile.weights)])])
    voxel = torch.repeat_interleave(torch.arange(voxels), ends - tile.offsets)
    weights = tile.weights.double()
    variance = torch.zeros(voxels, dtype=torch.float64).index_add_(0, voxel, 51 * weights**2)
    assert torch.allclose(variance, torch.ones_like(variance), rtol=0, atol=1e-4)
    quanta = weights / simplex.QUANTUM
    assert torch.equal(quanta, quanta.round())
    largest = torch.zeros(voxels, dtype=torch.float64).index_add_(0, voxel, quanta.abs() * 11)
    assert float(largest.max()) < 2**24


def test_tiles_cover_a_window_once() -> None:
    cases = [((128, 128), (0, 0)), ((300, 517), (5, 7)), ((3, 20_000), (0, 0)), ((40, 70, 90), (1, 2, 3))]
    for spatial, start in cases:
        counts = torch.zeros(spatial, dtype=torch.int64)
        for corner, size in simplex.tiles(spatial, start):
            assert math.prod(size) <= simplex.TILE_VOXELS
            counts[tuple(slice(c - s, c - s + n) for c, s, n in zip(corner, start, size, strict=True))] += 1
        assert bool((counts == 1).all())


@pytest.fixture(scope="module")
def published() -> torch.Tensor:
    keys = torch.randint(0, 2**62, (32,), generator=torch.Generator().manual_seed(0))
    return sample_noise("simplex", keys, (1, 256, 256), scale="published").squeeze(1)


def test_statistics_of_the_published_generator(published: torch.Tensor) -> None:
    """AnoDDPM's generator, measured: pooled std 0.508, field means 0.068, excess kurtosis -0.21, values below 2.2."""
    fields = published
    assert float(fields.std()) == pytest.approx(0.508, abs=0.01)
    assert float(fields.mean((1, 2)).std()) == pytest.approx(0.068, abs=0.02)
    assert 1.7 < float(fields.abs().max()) < 2.8
    standard = fields / fields.std()
    assert float((standard**4).mean() - 3) == pytest.approx(-0.21, abs=0.15)


def test_spectrum_of_the_published_generator(published: torch.Tensor) -> None:
    """AnoDDPM's, measured: power 2.2e7 at 1 cycle an image of 256 px, 5.5e5 at 8, 1.5e4 at 32 and 71 at 127."""
    power = torch.fft.fft2(published).abs().square().mean(0)
    frequency = torch.fft.fftfreq(256, 1 / 256)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().round()
    radial = [float(power[radius == r].mean()) for r in (1, 8, 32, 127)]
    for measured, published in zip(radial, (2.2e7, 5.5e5, 1.5e4, 71), strict=True):
        assert abs(math.log(measured / published)) < math.log(2.5), radial


def test_rows_and_columns_look_alike() -> None:
    keys = torch.randint(0, 2**62, (256,), generator=torch.Generator().manual_seed(2))
    fields = sample_noise("simplex", keys, (1, 64, 64)).squeeze(1)
    for lag in (1, 4, 16):
        along = float((fields[:, :, lag:] * fields[:, :, :-lag]).mean())
        down = float((fields[:, lag:] * fields[:, :-lag]).mean())
        assert along == pytest.approx(down, abs=0.05)
