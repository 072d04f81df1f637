"""Operators obey their laws in float64: transpose, pseudo-inverse, spectrum; each against its own dense matrix."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, optimize
from torch import Tensor

from anodiff.errors import ConfigError
from anodiff.restoration.operators import (
    KSpace,
    LinearOperator,
    Mask,
    Slices,
    SuperResolution,
    cartesian_lines,
    gaussian_blur,
    motion_blur,
)
from anodiff.restoration.quantisation import Jpeg

FLAT, VOLUME = (8, 6), (4, 6, 4)


def random_mask(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.4


def half_sampled(shape: tuple[int, ...]) -> Tensor:
    """Frequencies sampled without their conjugate partners, with them, and not at all."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(6)) < 0.5


OPERATORS: dict[str, Callable[[tuple[int, ...]], LinearOperator]] = {
    "mask": lambda shape: Mask(random_mask(shape)),
    "mask of each image": lambda shape: Mask(random_mask((2, 1, *shape))),
    "kept slices": lambda shape: Slices(2, axis=0),
    "missing slices": lambda shape: Slices(3, axis=1, missing_ones=True),
    "superres": lambda shape: SuperResolution(2),
    "gaussian": lambda shape: gaussian_blur(1.0),
    "motion": lambda shape: motion_blur(3.0, 30.0),
    "kspace": lambda shape: cartesian_lines(2, seed=1),
    "kspace of any pattern": lambda shape: KSpace(half_sampled),
}


@pytest.fixture(params=[FLAT, VOLUME], ids=["2d", "3d"])
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return tuple(request.param)


@pytest.fixture(params=list(OPERATORS))
def operator(request: pytest.FixtureRequest, shape: tuple[int, ...]) -> LinearOperator:
    return OPERATORS[request.param](shape)


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn((2, 2, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def matrix_of(operator: LinearOperator, shape: tuple[int, ...]) -> np.ndarray:
    """A of the first image and channel, column by column."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, 1, 1, *shape)
    return np.stack([operator(each.expand(2, 1, *shape))[0].flatten().numpy() for each in basis], axis=1)


def test_transpose(operator: LinearOperator, shape: tuple[int, ...]) -> None:
    x = images(shape)
    y = torch.randn(operator(x).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert inner(operator(x), y) == pytest.approx(inner(x, operator.adjoint(y)), rel=1e-12, abs=1e-12)


def test_pseudo_inverse(operator: LinearOperator, shape: tuple[int, ...]) -> None:
    """The four conditions of Penrose: A A+ A = A, A+ A A+ = A+, and A A+ and A+ A symmetric."""
    x, other = images(shape), images(shape, 1)
    y = operator(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=1e-9, atol=1e-9)
    once = operator.pinv(noise)
    torch.testing.assert_close(operator.pinv(operator(once)), once, rtol=1e-9, atol=1e-9 * float(once.abs().max()))
    assert inner(operator(operator.pinv(noise)), y) == pytest.approx(inner(noise, operator(operator.pinv(y))), rel=1e-9)
    assert inner(operator.pinv(y), other) == pytest.approx(inner(x, operator.pinv(operator(other))), rel=1e-9)


def test_spectrum_agrees_with_the_dense_matrix(operator: LinearOperator, shape: tuple[int, ...]) -> None:
    """Functions of A'A, against numpy's own decomposition of the dense matrix."""
    a = matrix_of(operator, shape)
    x = images(shape)[:, :1]
    y = operator(x)
    weight = 0.3
    dense = a.T @ np.linalg.solve(a @ a.T + weight * np.eye(len(a)), y[0].flatten().numpy())
    np.testing.assert_allclose(operator.solve(y, weight)[0].flatten().numpy(), dense, rtol=1e-9, atol=1e-10)
    values, vectors = np.linalg.eigh(a.T @ a)
    values[values < 1e-9] = 0
    expected = vectors @ (np.sqrt(values + 0.2) * (vectors.T @ x[0].flatten().numpy()))
    found = operator.spectral(x, lambda s2: (s2 + 0.2).sqrt())
    np.testing.assert_allclose(found[0].flatten().numpy(), expected, rtol=1e-8, atol=1e-9)


def test_projection_is_the_nearest_consistent_image(operator: LinearOperator, shape: tuple[int, ...]) -> None:
    x, truth = images(shape), images(shape, 3)
    y = operator(truth)
    nearest = operator.project(x, y)
    torch.testing.assert_close(operator(nearest), y, rtol=1e-9, atol=1e-9)
    step = nearest - x  # nothing in it that A cannot see
    torch.testing.assert_close(operator.pinv(operator(step)), step, rtol=1e-8, atol=1e-8)


def test_masks_lose_what_they_say() -> None:
    x = images(FLAT)
    assert not Slices(2, axis=0)(x)[:, :, 1::2].any()
    assert torch.equal(Slices(2, axis=0)(x)[:, :, ::2], x[:, :, ::2])
    assert torch.equal(Slices(3, axis=0, missing_ones=True)(x)[:, :, :2], x[:, :, :2])
    assert not Slices(3, axis=0, missing_ones=True)(x)[:, :, 2::3].any()
    each = Mask(random_mask((2, 1, *FLAT)))
    assert torch.equal(each.rows(torch.tensor([1]))(x[1:]), each(x)[1:])


def test_gaussian_blur_is_that_of_scipy() -> None:
    x = images((16, 12))
    found = gaussian_blur(1.0)(x)[0, 0].numpy()
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), 1.0, mode="wrap", truncate=8)
    np.testing.assert_allclose(found, expected, atol=0.01)  # frequencies below the cutoff are missing in ours
    smooth = torch.zeros(1, 1, 16, 12, dtype=torch.float64) + torch.sin(torch.arange(12) * 2 * torch.pi / 12)
    np.testing.assert_allclose(
        gaussian_blur(1.0)(smooth)[0, 0].numpy(),
        ndimage.gaussian_filter(smooth[0, 0].numpy(), 1.0, mode="wrap", truncate=8),
        atol=1e-12,
    )


def test_motion_blur_moves_along_its_angle() -> None:
    point = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    point[0, 0, 7, 7] = 1
    flat, upright = motion_blur(5, 0)(point)[0, 0], motion_blur(5, 90)(point)[0, 0]
    assert flat[7].sum() == pytest.approx(1, abs=1e-2)
    torch.testing.assert_close(flat, upright.T)
    assert (flat[7] > 0.1).sum() == 5


def test_accelerated_lines_are_as_many_as_said_and_hold_the_centre() -> None:
    x = torch.ones(1, 1, 8, 32, dtype=torch.float64)
    noise = images((8, 32))[:1, :1]
    lines = cartesian_lines(4)(noise).abs().sum(dim=(0, 1, 2)) > 0
    assert int(lines.sum()) == 8
    torch.testing.assert_close(cartesian_lines(4).adjoint(cartesian_lines(4)(x)), x)


def test_the_nearest_image_of_given_averages_within_a_range(shape: tuple[int, ...]) -> None:
    """Against a solver of general quadratic programs, block by block; far out of range, at its ends, and inside it."""
    operator, x = SuperResolution(2), 2 * images(shape)
    y = operator(images(shape, 3)).clamp(-1, 1)
    y[0, 0, 0] = -1
    found = operator.project_within(x, y, -1, 1)
    torch.testing.assert_close(operator(found), y, atol=1e-9, rtol=0)
    assert float(found.abs().max()) <= 1
    split = tuple(part for side in shape for part in (side // 2, 2))
    last = range(2, 2 + len(split))
    order = (0, 1, *last[::2], *last[1::2])
    blocks = [each.reshape(2, 2, *split).permute(order).reshape(-1, 2 ** len(shape)) for each in (x, found)]
    for start, block, mean in list(zip(*blocks, y.flatten(), strict=True))[::3]:
        begin = np.full(len(start), float(mean))
        best = optimize.minimize(
            lambda z, start=start.numpy(): ((z - start) ** 2).sum(),
            begin,
            method="SLSQP",
            bounds=[(-1, 1)] * len(start),
            constraints={"type": "eq", "fun": lambda z, mean=float(mean): z.mean() - mean},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(block.numpy(), best.x, atol=1e-5)
    easy = operator.project_within(x, y, -9, 9)
    torch.testing.assert_close(easy, operator.project(x, y))


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_quantisation_is_a_projection(quality: int) -> None:
    jpeg = Jpeg(quality)
    truth, x = images((16, 24)).clamp(-1, 1), images((16, 24), 4)
    y = jpeg(truth)
    torch.testing.assert_close(jpeg(y), y)
    nearest = jpeg.project(x, y)
    torch.testing.assert_close(jpeg(nearest), y)
    torch.testing.assert_close(jpeg.project(nearest, y), nearest)
    assert torch.equal(jpeg.pinv(y), y)
    assert (nearest - truth).norm() < (x - truth).norm()


def test_quantisation_is_that_of_a_jpeg_file() -> None:
    """Against Pillow's encoder: the same picture but for its rounding to whole grey levels."""
    y, x = np.mgrid[:32, :32]
    picture = (128 + 60 * np.sin(x / 3) + 40 * np.cos(y / 5)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=30)
    decoded = np.asarray(Image.open(buffer)).astype(float)
    ours = Jpeg(30)(torch.from_numpy(picture.astype(np.float64) / 127.5 - 1)[None, None])
    off = ours[0, 0].numpy() * 127.5 + 127.5 - decoded
    assert np.abs(off).max() < 1.2
    assert abs(off.mean()) < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Slices(1),
        lambda: SuperResolution(1),
        lambda: gaussian_blur(0),
        lambda: motion_blur(-1),
        lambda: cartesian_lines(1),
        lambda: Jpeg(0),
        lambda: Mask(torch.zeros(4, 4)),
        lambda: SuperResolution(3)(images(FLAT)),
        lambda: Slices(2, axis=2)(images(FLAT)),
        lambda: Mask(random_mask((4, 4)))(images(FLAT)),
        lambda: Jpeg(50)(images(FLAT)),
        lambda: cartesian_lines(2, axis=3)(images(FLAT)),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="found"):
        make()
