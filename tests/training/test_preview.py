"""The picture that training writes: its tiles are the images themselves, its labels stand above and beside them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.training import Trainer
from anodiff.training.preview import GAP_PX, GROUND, LINE_PX, MARGIN_PX, TILE_PX, labelled, preview


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 24)), (3, (40, 30)), (1, (80, 100))])
def test_tiles_are_enlarged_by_whole_factors_below_their_labels(channels: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 3, channels, *size), dtype=np.uint8)
    picture = opened(labelled(tiles, [("", "image"), ("sigma 1", "noisy"), ("", "denoised")]))
    zoom = next(n for n in range(1, 99) if n * size[1] >= TILE_PX)
    height, width = (side * zoom + 2 * GAP_PX for side in size)
    assert picture.shape[:2] == (2 * LINE_PX + 2 * height, MARGIN_PX + 3 * width)
    assert picture.ndim == (3 if channels == 3 else 2)
    for row in range(2):
        for column in range(3):
            top, left = 2 * LINE_PX + row * height + GAP_PX, MARGIN_PX + column * width + GAP_PX
            tile = picture[top : top + size[0] * zoom : zoom, left : left + size[1] * zoom : zoom]
            expected = tiles[row, column].transpose(1, 2, 0)
            assert np.array_equal(tile.reshape(expected.shape), expected)
    heads = [picture[:, MARGIN_PX + n * width : MARGIN_PX + (n + 1) * width] for n in range(3)]
    upper = [bool((head[:LINE_PX] != GROUND).any()) for head in heads]
    lower = [bool((head[LINE_PX : 2 * LINE_PX] != GROUND).any()) for head in heads]
    assert upper == [False, True, False]
    assert lower == [True, True, True]
    for row in range(2):
        beside = picture[2 * LINE_PX + row * height : 2 * LINE_PX + (row + 1) * height, :MARGIN_PX]
        assert (beside != GROUND).any()
    assert (picture[: 2 * LINE_PX, :MARGIN_PX] == GROUND).all()


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_row_is_an_image_and_its_middle_slice_is_shown(tiny_recipe: dict[str, Any], neighbours: int) -> None:
    config = parse_config(tiny_recipe | {"volume": {"neighbours": neighbours}})
    images = torch.rand(4, 1 + 2 * neighbours, 16, 16) * 2 - 1
    trainer = Trainer(config, images, images, device=torch.device("cpu"), precision="fp32")
    picture = opened(preview(trainer, count=3))
    side = 16 * 5 + 2 * GAP_PX
    assert picture.shape == (2 * LINE_PX + 3 * side, MARGIN_PX + 7 * side)
    first = picture[2 * LINE_PX + GAP_PX :, MARGIN_PX + GAP_PX :][: 16 * 5 : 5, : 16 * 5 : 5]
    assert np.array_equal(first, ((images[0, neighbours].numpy() + 1) * 127.5).astype(np.uint8))
