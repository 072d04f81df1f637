"""JPEG of colour: the tables and the pictures of an encoder; a projection, beside a solver of its quadratic program."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.optimize import minimize

from anodiff.restoration.quantisation import BLOCK, TO_YCC, Jpeg


def compressed(picture: np.ndarray, quality: int, mode: str = "RGB") -> Image.Image:
    """What Pillow makes of (h, w, 3) uint8, without subsampling; of mode YCbCr neither side converts colours."""
    buffer = io.BytesIO()
    Image.fromarray(picture, mode).save(buffer, format="JPEG", quality=quality, subsampling=0)
    found = Image.open(buffer)
    found.draft(mode, found.size)
    return found


def random_picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def smooth_picture(side: int = 48) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    planes = [128 + 50 * np.sin(x / (3 + n) + n) + 40 * np.cos(y / (7 - n)) for n in range(3)]
    return np.stack(planes, axis=2).astype(np.uint8)


def ours(picture: np.ndarray, quality: int) -> np.ndarray:
    """The operator on colours 0..255 (h, w, 3), float64."""
    x = torch.from_numpy(picture.astype(np.float64) / 127.5 - 1).permute(2, 0, 1)[None]
    return (Jpeg(quality)(x)[0].permute(1, 2, 0).numpy() + 1) * 127.5


def test_tables_are_those_of_the_reference_implementation_at_every_quality() -> None:
    for quality in range(1, 101):
        steps = (Jpeg(quality).steps * 127.5).numpy()
        found = compressed(random_picture(0, BLOCK), quality).quantization  # type: ignore[attr-defined]
        np.testing.assert_allclose(steps[0].ravel(), found[0], atol=1e-9, err_msg=str(quality))
        np.testing.assert_allclose(steps[1].ravel(), found[1], atol=1e-9, err_msg=str(quality))
        np.testing.assert_array_equal(steps[1], steps[2])


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_a_smooth_picture_is_that_of_an_encoder_up_to_rounding(quality: int) -> None:
    """An encoder rounds colours, luminance and chrominance to whole numbers: what is at the border of a cell flips."""
    picture = smooth_picture()
    off = ours(picture, quality).clip(0, 255) - np.asarray(compressed(picture, quality)).astype(float)
    assert np.median(np.abs(off)) < 1
    assert np.sqrt((off**2).mean()) < 1.5
    assert np.abs(off.mean(axis=(0, 1))).max() < 0.3


def blocks(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (n, 8, 8, 3)."""
    height, width = (side // BLOCK for side in picture.shape[:2])
    parts = picture.reshape(height, BLOCK, width, BLOCK, 3).swapaxes(1, 2)
    return parts.reshape(-1, BLOCK, BLOCK, 3).astype(np.float64)


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_random_luminance_and_chrominance_are_those_of_an_encoder_up_to_rounding(quality: int) -> None:
    """Nothing is rounded before the transform: only what an encoder's whole-number cosines put over a border flips."""
    planes, zero = random_picture(1, 64), np.array([0.0, 128.0, 128.0])
    found = ours((planes - zero) @ np.linalg.inv(np.array(TO_YCC)).T, quality) @ np.array(TO_YCC).T + zero
    off = blocks(found.clip(0, 255)) - blocks(np.asarray(compressed(planes, quality, "YCbCr")))
    steps = np.moveaxis(Jpeg(quality).steps.numpy() * 127.5, 0, -1)
    share = dctn(blocks(planes) - 128, axes=(1, 2), norm="ortho") / steps
    clear = (np.abs(share - np.floor(share) - 0.5) * steps > 0.1).all(axis=(1, 2))
    assert clear.mean() > 0.25
    assert np.abs(off).max(axis=(1, 2))[clear].max() < 1
    assert np.abs(found - planes).mean() > 1  # and it is no identity


def pictures(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("lead", [(), (2,)], ids=["2d", "3d"])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_colour_quantisation_is_a_projection(quality: int, lead: tuple[int, ...]) -> None:
    jpeg = Jpeg(quality)
    truth, x = (0.5 * pictures(seed, 2, 3, *lead, 16, 24) for seed in (0, 4))
    y = jpeg(truth)
    torch.testing.assert_close(jpeg(y), y)
    nearest = jpeg.project(x, y)
    torch.testing.assert_close(jpeg(nearest), y)
    torch.testing.assert_close(jpeg.project(nearest, y), nearest)
    assert (nearest - truth).norm() < (x - truth).norm()
    # of a convex set, the angle at the nearest point to any other of the set is obtuse
    others = (jpeg.project(0.5 * pictures(seed, *x.shape), y) for seed in range(10, 15))
    assert max(float(((x - nearest) * (other - nearest)).sum()) for other in (truth, y, *others)) < 1e-6


def test_the_projection_is_the_solution_of_its_quadratic_program() -> None:
    """By a solver for bounds, frequency by frequency, since the cosine transform is orthonormal."""
    jpeg = Jpeg(50)
    x, truth = (0.7 * pictures(seed, 1, 3, BLOCK, BLOCK) for seed in (1, 2))
    found = jpeg.project(x, jpeg(truth))[0].numpy()

    def coefficients(image: np.ndarray) -> np.ndarray:
        return dctn(np.tensordot(np.array(TO_YCC), image - 1 / 255, 1), axes=(1, 2), norm="ortho")

    steps, back = jpeg.steps.numpy(), np.linalg.inv(np.array(TO_YCC))
    wanted = coefficients(x[0].numpy())
    low = np.rint(coefficients(truth[0].numpy()) / steps) * steps - steps / 2
    best = np.empty_like(wanted)
    for place in np.ndindex(BLOCK, BLOCK):
        at = (slice(None), *place)
        bounds = list(zip(low[at], low[at] + steps[at], strict=True))
        goal = back @ wanted[at]
        solved = minimize(
            lambda u, goal=goal: ((back @ u - goal) ** 2).sum(),
            low[at],
            jac=lambda u, goal=goal: 2 * back.T @ (back @ u - goal),
            bounds=bounds,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        best[at] = solved.x
    expected = np.tensordot(back, idctn(best, axes=(1, 2), norm="ortho"), 1) + 1 / 255
    np.testing.assert_allclose(found, expected, atol=1e-3)
    clamped = np.clip(wanted, low, low + steps)
    oblique = np.tensordot(back, idctn(clamped, axes=(1, 2), norm="ortho"), 1) + 1 / 255
    assert np.abs(oblique - expected).max() > 0.02  # clamping alone would have been another image


def test_channels_that_are_no_colours_are_grey_images_of_their_own() -> None:
    x = 0.5 * pictures(3, 1, 3, 16, 16)
    alone = torch.cat([Jpeg(30)(x[:, n : n + 1]) for n in range(3)], dim=1)
    torch.testing.assert_close(Jpeg(30, colour=False)(x), alone)
    assert (Jpeg(30)(x) - alone).abs().max() > 0.05
    grey = 0.5 * pictures(5, 1, 1, 16, 16)
    torch.testing.assert_close(Jpeg(30)(grey.expand(1, 3, 16, 16)), Jpeg(30)(grey).expand(1, 3, 16, 16))
