"""Masks and boxes of training against numpy's own spectrum and counting by hand; what the denoiser is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.interpolate import RegularGridInterpolator

from anodiff.config import parse_config
from anodiff.diffusion.objective import denoising_loss, foreground_of
from anodiff.errors import ConfigError
from anodiff.training import Trainer
from anodiff.training.masking import (
    BOX_WORDS,
    MOST_PARTS,
    MOST_RECTANGLES,
    PAPER_PX,
    PART_GRIDS,
    PART_WORDS,
    SIDES,
    bounding_box,
    filtered,
    half_widths,
    masked,
    random_boxes,
    random_parts,
    rectangles,
    uniforms,
)

KEYS = torch.arange(400, dtype=torch.int64) * 0x9E3779B97F4A7C15 % (1 << 62)


def brain(count: int, *size: int) -> torch.Tensor:
    """Black images with a textured block off the middle."""
    images = torch.full((count, 1, *size), -1.0)
    inner = tuple(slice(side // 4, side - side // 8) for side in size)
    block = images[(slice(None), slice(None), *inner)]
    images[(slice(None), slice(None), *inner)] = torch.rand(block.shape) * 0.9 + 0.1
    return images


def spectrum_by_hand(image: np.ndarray, half_width: int, low: bool) -> np.ndarray:
    """On the shifted spectrum of an image with black at 0, a centred square kept or cleared."""
    spectrum = np.fft.fftshift(np.fft.fft2((image.astype(np.float64) + 1) / 2))
    rows, columns = (side // 2 for side in image.shape)
    square = np.zeros(image.shape, dtype=bool)
    square[rows - half_width : rows + half_width + 1, columns - half_width : columns + half_width + 1] = True
    kept = np.fft.ifft2(np.fft.ifftshift(np.where(square == low, spectrum, 0))).real
    return kept * 2 - 1


@pytest.mark.parametrize("low", [True, False])
def test_filters_are_those_of_the_papers_spectrum(low: bool) -> None:
    images = torch.rand(2, 1, PAPER_PX, PAPER_PX) * 2 - 1
    found = filtered(images, torch.tensor([low, low]), torch.tensor([2.0, 7.0]))
    for row, half_width in enumerate((2, 7)):
        expected = spectrum_by_hand(images[row, 0].numpy(), half_width, low)
        np.testing.assert_allclose(found[row, 0].numpy(), expected, atol=1e-5)


def test_both_halves_of_the_spectrum_make_the_image_in_any_rank_and_size() -> None:
    for size in ((24, 17), (9, 12, 10)):
        images = torch.rand(3, 2, *size) * 2 - 1
        half_width = torch.tensor([2.0, 10.0, 6.0])
        low = filtered(images, torch.ones(3, dtype=torch.bool), half_width)
        high = filtered(images, torch.zeros(3, dtype=torch.bool), half_width)
        torch.testing.assert_close(low + high + 1, images, atol=1e-5, rtol=0)  # black is counted twice


def test_half_widths_are_the_papers_whole_numbers_each_as_likely() -> None:
    found = half_widths(torch.linspace(0, 1 - 1e-6, 9000))
    assert found.unique().tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    counts = np.bincount(found.long().numpy())[2:]
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("size", [(80, 64), (40, 32, 24)])
def test_rectangles_have_the_papers_sides_and_lie_in_the_foreground(size: tuple[int, ...]) -> None:
    inside = foreground_of(brain(60, *size))[:, 0]
    u = torch.rand(60, MOST_RECTANGLES, 2, len(size))
    one = torch.full((60,), 1.5 / (MOST_RECTANGLES + 1))  # exactly one
    found = rectangles(inside, one, u)
    assert not (found & ~inside).any()
    rows = float(bounding_box(inside)[1][0, 0])
    for each in found:
        sides = [int(bounding_box(each[None])[1][0, axis]) for axis in range(len(size))]
        assert int(each.sum()) == np.prod(sides)
        assert all(SIDES[0] * rows - 1 <= side <= SIDES[1] * rows + 1 for side in sides)
    assert not rectangles(inside, torch.zeros(60), u).any()
    more = rectangles(inside, torch.full((60,), 0.999), u)
    assert (more | ~found).all()
    assert int(more.sum()) > 2 * int(found.sum())


def test_the_bounding_box_is_that_of_the_true_voxels() -> None:
    inside = torch.rand(20, 7, 9) < 0.04
    first, extent = bounding_box(inside)
    for row, mask in enumerate(inside.numpy()):
        places = np.argwhere(mask)
        expected = (places.min(0), np.ptp(places, axis=0) + 1) if len(places) else (None, (0, 0))
        assert extent[row].tolist() == list(expected[1])
        if expected[0] is not None:
            assert first[row].tolist() == expected[0].tolist()


@pytest.mark.parametrize("kind", ["pixels", "frequency"])
def test_masks_change_the_foreground_alone_and_are_functions_of_their_key(kind: Any) -> None:
    images = brain(200, 32, 32)
    found = masked(images, kind, KEYS[:200])
    assert torch.equal(found[7:9], masked(images[7:9], kind, KEYS[7:9]))
    changed = found != images
    assert not (changed & ~foreground_of(images)).any()
    touched = changed.flatten(1).any(dim=1).float().mean()
    assert abs(float(touched) - MOST_RECTANGLES / (MOST_RECTANGLES + 1)) < 0.08  # one in six has no rectangle
    if kind == "pixels":
        assert (found[changed] == -1).all()


def test_uniform_numbers_are_uniform_and_independent_between_streams() -> None:
    first, second = uniforms(KEYS, 20, BOX_WORDS), uniforms(KEYS, 20, 1)
    assert stats.kstest(first.flatten().numpy(), "uniform").pvalue > 0.01
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.05
    assert abs(float(torch.corrcoef(first.T)[0, 1])) < 0.15
    assert torch.equal(uniforms(KEYS[5:6], 20, BOX_WORDS)[0], first[5])


@pytest.mark.parametrize("size", [(8, 7), (6, 4, 5)])
def test_a_box_has_half_of_each_side_at_every_place(size: tuple[int, ...]) -> None:
    boxes = random_boxes(size, KEYS)
    edges = [-(-side // 2) for side in size]
    assert (boxes.flatten(1).sum(dim=1) == np.prod(edges)).all()
    first, extent = bounding_box(boxes[:, 0])
    assert extent.unique(dim=0).tolist() == [edges]
    for axis, (side, edge) in enumerate(zip(size, edges, strict=True)):
        assert first[:, axis].unique().tolist() == list(range(side - edge + 1))


@pytest.mark.parametrize("size", [(24, 17), (12, 9, 10)])
def test_parts_are_where_a_smooth_random_field_is_highest(size: tuple[int, ...]) -> None:
    """The field by scipy's linear interpolation in float64, the share by sorting."""
    keys, rank, total = KEYS[:40], len(size), int(np.prod(size))
    found = random_parts(size, keys)
    assert found.shape == (40, 1, *size)
    u = uniforms(keys, 1 + sum(grid**rank for grid in PART_GRIDS), PART_WORDS).double().numpy()
    at = np.stack(np.meshgrid(*[np.linspace(0, 1, side) for side in size], indexing="ij"), axis=-1)
    for row in range(40):
        field, begin = np.zeros(size), 1
        for grid in PART_GRIDS:
            values = u[row, begin : begin + grid**rank].reshape([grid] * rank)
            field += RegularGridInterpolator([np.linspace(0, 1, grid)] * rank, values)(at)
            begin += grid**rank
        count = int(MOST_PARTS * u[row, 0] ** 2 * total) + 1
        inside = found[row, 0].numpy()
        assert abs(int(inside.sum()) - count) <= 1
        lowest, highest = field[inside].min(), field[~inside].max()
        assert lowest > highest - 1e-5
    shares = random_parts(size, KEYS).flatten(1).double().mean(dim=1)
    assert shares.mean().item() == pytest.approx(MOST_PARTS / 3, rel=0.15)
    assert shares.max() <= MOST_PARTS + 1 / total


def test_the_loss_asks_for_the_original_inside_the_box() -> None:
    """Spelt out in float64: the mean over the pixels of the box of the squared error against the unmasked image."""
    clean, shown, noise = (torch.randn(3, 2, 6, 6) for _ in range(3))
    where = random_boxes((6, 6), KEYS[:3])
    sigma, weight = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    seen = []

    def denoiser(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return 0.3 * x

    found = denoising_loss(denoiser, clean, sigma, noise, weight, shown=shown, where=where)
    for row in range(3):
        x = shown[row].double() + sigma[row] * noise[row].double()
        torch.testing.assert_close(seen[0][row].double(), x, atol=1e-6, rtol=1e-6)
        squared = (0.3 * x - clean[row].double()) ** 2
        expected = weight[row] * squared[where[row].expand(2, 6, 6)].mean()
        torch.testing.assert_close(found[row].double(), expected.double(), rtol=1e-5, atol=1e-6)


def recipe(tiny: dict[str, Any], **diffusion: Any) -> Any:
    return parse_config(tiny | {"diffusion": tiny["diffusion"] | diffusion, "augment": {}})


@pytest.mark.parametrize("volume", [False, True])
def test_a_trainer_shows_masked_images_with_noise_in_a_box(tiny_recipe: dict[str, Any], volume: bool) -> None:
    extra = {"volume": {"mode": "patches", "patch": [8, 8, 8]}} if volume else {}
    size = (8, 8, 8) if volume else (16, 16)
    config = recipe(tiny_recipe | extra, mask="pixels", noise_where="box")
    images = brain(8, *size)
    trainer = Trainer(config, images, images, device=torch.device("cpu"), precision="fp32")
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    keys = KEYS[:8]
    trainer._denoising_loss(trainer.denoiser, trainer.validation, torch.full((8,), 0.5), keys)
    sigma = float(trainer._levels(torch.tensor([0.5]))[0])
    shown = seen[0] * (sigma**2 + config.diffusion.sigma_data**2) ** 0.5  # c_in of edm
    boxes = random_boxes(size, keys)
    outside = ~boxes.expand_as(shown)
    torch.testing.assert_close(shown[outside], masked(images, "pixels", keys)[outside], atol=1e-5, rtol=1e-5)
    assert float((shown - masked(images, "pixels", keys))[~outside].std()) == pytest.approx(sigma, rel=0.1)
    assert torch.isfinite(trainer.step())


def test_a_trainer_asks_for_all_of_an_image_that_is_noisy_in_parts(tiny_recipe: dict[str, Any]) -> None:
    images = brain(8, 16, 16)
    trainer = Trainer(
        recipe(tiny_recipe, noise_where="parts"), images, images, device=torch.device("cpu"), precision="fp32"
    )
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    loss = trainer._denoising_loss(trainer.denoiser, trainer.validation, torch.full((8,), 0.5), KEYS[:8])
    sigma, weight = (float(each[0]) for each in trainer._levels(torch.tensor([0.5])))
    shown = seen[0] * (sigma**2 + trainer.config.diffusion.sigma_data**2) ** 0.5  # c_in of edm
    noisy = random_parts((16, 16), KEYS[:8]).expand_as(shown)
    torch.testing.assert_close(shown[~noisy], images[~noisy], atol=1e-5, rtol=1e-5)
    assert ((shown - images)[noisy] != 0).float().mean() > 0.99
    answer = trainer.denoiser(shown, torch.full((8,), sigma))
    expected = weight * (answer - images).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.float(), expected.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{"mask": "pixels"}, {"noise_where": "box"}, {"noise_where": "parts"}])
@pytest.mark.parametrize("learned", [{"variance": "learned"}, {"schedule": "learned"}])
def test_the_bound_is_not_of_masked_images(
    tiny_recipe: dict[str, Any], changes: dict[str, str], learned: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="is of noise on whole images"):
        recipe(tiny_recipe, **changes, **learned)
