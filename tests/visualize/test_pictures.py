"""Embedded pictures: what is decoded from the page is what was given, and shrinking never hides a hot spot."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from anodiff.visualize.heatmap import HeatScale, colour_table, opacity_table
from anodiff.visualize.pictures import (
    block_maxima,
    image_uri,
    map_uris,
    mask_uri,
    outline_path,
    scale_uri,
    shrink_factor,
)

SCALE = HeatScale(0.0, 1.0, 2.0)


def _decoded(uri: str) -> Image.Image:
    found = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", uri)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[2])))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_small_images_come_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    back = np.array(_decoded(image_uri(image)))
    assert np.array_equal(back, image.reshape(shape[:2]) if shape[2:] == (1,) else image)


def test_large_images_are_shrunk_and_busy_ones_become_jpeg() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    uri = image_uri(noise, 256)
    assert uri.startswith("data:image/jpeg")
    assert max(_decoded(uri).size) <= 256
    assert image_uri(np.zeros((500, 700, 3), np.uint8)).startswith("data:image/png")


def test_maps_carry_the_scale_and_its_opacity() -> None:
    values = np.linspace(0, 2, 256).reshape(16, 16)
    opaque, layer = map_uris(values, SCALE)
    index = SCALE.index(values)
    assert np.array_equal(np.array(_decoded(opaque).convert("RGB")), colour_table()[index])
    rgba = np.array(_decoded(layer).convert("RGBA"))
    assert np.array_equal(rgba[..., :3], colour_table()[index])
    assert np.array_equal(rgba[..., 3], np.round(opacity_table() * 255)[index])
    assert map_uris(index, SCALE) == (opaque, layer)


def test_one_hot_pixel_survives_shrinking() -> None:
    values = np.zeros((1001, 999), np.float32)
    values[777, 998] = 2.0
    shrunk = np.array(_decoded(map_uris(values, SCALE, 128)[0]).convert("RGB"))
    assert max(shrunk.shape[:2]) <= 128
    assert (shrunk == colour_table()[255]).all(-1).sum() == 1


def test_images_maps_and_masks_are_shrunk_alike() -> None:
    side = (301, 517)
    sizes = {_decoded(image_uri(np.zeros(side, np.uint8), 100)).size}
    sizes.add(_decoded(map_uris(np.zeros(side), SCALE, 100)[0]).size)
    sizes.add(_decoded(mask_uri(np.zeros(side, bool), 100)).size)
    sizes.add(outline_path(np.zeros(side, bool), 100)[1:])
    assert len(sizes) == 1


def test_shrink_factor_and_block_maxima() -> None:
    assert [shrink_factor((n, 10), 256) for n in (1, 256, 257, 512, 513)] == [1, 1, 2, 2, 3]
    values = np.arange(35, dtype=float).reshape(5, 7) - 100
    assert block_maxima(values, 3).tolist() == [[-84, -81, -80], [-70, -67, -66]]
    assert block_maxima(values, 1).tolist() == values.tolist()


def test_the_outline_is_as_long_as_the_border_of_the_mask() -> None:
    mask = np.random.default_rng(1).random((23, 31)) < 0.4
    path, width, height = outline_path(mask)
    assert (width, height) == (31, 23)
    steps = re.findall(r"M(\d+) (\d+)([hv])(\d+)", path)
    assert "".join(f"M{x} {y}{way}{n}" for x, y, way, n in steps) == path
    padded = np.pad(mask, 1).astype(int)
    perimeter = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    assert sum(int(n) for *_, n in steps) == perimeter
    for x, y, way, n in steps:
        assert int(x) + (int(n) if way == "h" else 0) <= 31
        assert int(y) + (int(n) if way == "v" else 0) <= 23


def test_a_square_is_outlined_at_its_pixel_edges() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:4, 2:5] = True
    assert outline_path(mask)[0] == "M2 1h3M2 4h3M2 1v3M5 1v3"
    assert outline_path(np.zeros((3, 3), bool))[0] == ""


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        image_uri(np.zeros((4, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="map must be"):
        map_uris(np.zeros((4, 4, 3), np.uint8), SCALE)
    with pytest.raises(ValueError, match="mask must be"):
        mask_uri(np.zeros((2, 4, 4), bool))


def test_the_scale_picture_is_the_colour_table() -> None:
    assert np.array_equal(np.array(_decoded(scale_uri()))[0], colour_table())
