"""PNG files: another reader decodes the pixels that were given, and the format's own checks hold."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anodiff.visualize.png import indexed_png_bytes, packed, png_bytes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (1,), (3,)]), st.integers(0, 2**32 - 1))
def test_another_reader_finds_the_same_pixels(height: int, width: int, channels: tuple[int, ...], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    file = png_bytes(pixels)
    Image.open(io.BytesIO(file)).verify()  # the checksum of every chunk
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.format == "PNG"
        assert picture.mode == ("RGB" if channels == (3,) else "L")
        assert np.array_equal(np.array(picture), pixels[..., 0] if channels == (1,) else pixels)


def test_rows_that_do_not_lie_together_in_memory_are_packed_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    strided = np.repeat(pixels, 2, axis=1)[:, ::2]
    assert png_bytes(strided) == png_bytes(pixels)
    assert png_bytes(pixels[::-1]) == png_bytes(pixels[::-1].copy())


def test_indexed_pictures_share_their_rows_and_differ_in_opacity() -> None:
    rng = np.random.default_rng(1)
    index = rng.integers(0, 256, (13, 7), dtype=np.uint8)
    palette, opacity = rng.integers(0, 256, (256, 3), dtype=np.uint8), rng.integers(0, 256, 256, dtype=np.uint8)
    rows = packed(index)
    with Image.open(io.BytesIO(indexed_png_bytes(index, palette, rows))) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture.convert("RGB")), palette[index])
    with Image.open(io.BytesIO(indexed_png_bytes(index, palette, rows, opacity))) as picture:
        rgba = np.array(picture.convert("RGBA"))
    assert np.array_equal(rgba[..., :3], palette[index])
    assert np.array_equal(rgba[..., 3], opacity[index])


def test_repeated_rows_cost_next_to_nothing() -> None:
    row = np.random.default_rng(2).integers(0, 256, (1, 300, 3), dtype=np.uint8)
    assert len(packed(row.repeat(100, axis=0))) < 3 * len(packed(row))


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2), np.uint8)])
def test_what_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="PNG needs uint8"):
        png_bytes(pixels)
