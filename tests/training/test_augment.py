"""Random windows and transposition: exact, everywhere, and drawn from numbers of their own."""

from __future__ import annotations

import numpy as np
import torch

from anodiff.config import AugmentConfig
from anodiff.training.augment import NUMBERS, augment, window


def numbered(count: int, height: int, width: int) -> torch.Tensor:
    """Images whose pixels all differ, (N, 2, H, W)."""
    return torch.arange(count * 2 * height * width, dtype=torch.float32).reshape(count, 2, height, width)


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(seed))


def test_a_crop_is_a_window_pixel_for_pixel() -> None:
    images, u = numbered(40, 13, 21), numbers(40)
    found = augment(images, AugmentConfig(crop=(8, 9)), u)
    assert found.shape == (40, 2, 8, 9)
    for image, part, place in zip(images.numpy(), found.numpy(), u.double().numpy(), strict=True):
        top, left = int(place[2] * 6), int(place[3] * 13)
        np.testing.assert_array_equal(part, image[:, top : top + 8, left : left + 9])


def test_every_place_is_reached_and_none_beyond() -> None:
    images = numbered(1, 10, 12).expand(600, -1, -1, -1)
    corner = window(images, (8, 8), numbers(600)[:, 2:4])[:, 0, 0, 0]
    assert set(corner.tolist()) == {float(12 * top + left) for top in range(3) for left in range(5)}
    last = torch.full((1, 2), float(np.nextafter(np.float32(1), np.float32(0))))
    assert window(images[:1], (8, 8), last)[0, 0, -1, -1] == 10 * 12 - 1
    assert torch.equal(window(images[:1], (10, 12), last), images[:1])


def test_transposing_with_flips_gives_the_eight_orientations() -> None:
    image = numbered(1, 9, 9)
    settings = AugmentConfig(flip_lr=True, flip_ud=True, transpose=True)
    found = augment(image.expand(200, -1, -1, -1), settings, numbers(200))
    plane = image[0].numpy()
    wanted = {np.rot90(each, k, (1, 2)).tobytes() for each in (plane, plane[:, :, ::-1]) for k in range(4)}
    assert {each.numpy().tobytes() for each in found.contiguous()} == wanted


def test_switching_one_on_does_not_move_the_others() -> None:
    images, u = numbered(30, 12, 12), numbers(30)
    cropped = augment(images, AugmentConfig(crop=(8, 8)), u)
    both = augment(images, AugmentConfig(crop=(8, 8), transpose=True), u)
    turned = u[:, 7] < 0.5
    assert torch.equal(both[turned], cropped[turned].mT)
    assert torch.equal(both[~turned], cropped[~turned])
    assert 5 < int(turned.sum()) < 25
