"""The contact sheet: every picture whole, in order, enlarged or shrunk by whole factors."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from anodiff.visualize.contact import GAP_PX, LARGE_PX, contact_sheet


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_stand_row_by_row_as_they_are() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (80, 100), dtype=np.uint8) for _ in range(5)]
    sheet = opened(contact_sheet(pictures))
    assert sheet.shape == (2 * (80 + GAP_PX) + GAP_PX, 3 * (100 + GAP_PX) + GAP_PX)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, 3)
        top, left = GAP_PX + row * (80 + GAP_PX), GAP_PX + column * (100 + GAP_PX)
        np.testing.assert_array_equal(sheet[top : top + 80, left : left + 100], picture)


def test_small_ones_are_enlarged_large_ones_shrunk_and_colours_kept() -> None:
    small = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    sheet = opened(contact_sheet([small]))
    np.testing.assert_array_equal(sheet[GAP_PX:-GAP_PX:5, GAP_PX:-GAP_PX:5], small)
    large = np.full((300, 1000), 90, dtype=np.uint8)
    sheet = opened(contact_sheet([large]))
    assert sheet.shape == (75 + 2 * GAP_PX, 250 + 2 * GAP_PX)
    assert max(sheet.shape) <= LARGE_PX + 2 * GAP_PX
    assert (sheet[GAP_PX:-GAP_PX, GAP_PX:-GAP_PX] == 90).all()


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures of one size"):
        contact_sheet([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)])
    with pytest.raises(ValueError, match="found"):
        contact_sheet([])
