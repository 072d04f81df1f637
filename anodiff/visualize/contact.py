"""A contact sheet: many pictures of one size in one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np

from anodiff.visualize.heatmap import Pixels, as_rgb

GAP_PX = 2
#: tiles smaller than this are enlarged, and larger than that shrunk, by whole factors
SMALL_PX, LARGE_PX = 72, 256
GROUND = 32


def contact_sheet(pictures: Sequence[Pixels]) -> bytes:
    """Pictures of one size, uint8 (H, W) or (H, W, 3) -> PNG of about as many columns as rows, row by row.

    Raises ValueError without a picture, or for sizes that differ.
    """
    from PIL import Image

    shapes = {np.shape(picture)[:2] for picture in pictures}
    if len(shapes) != 1:
        raise ValueError(f"expected pictures of one size, found {sorted(shapes)}")
    tiles = [_tile(as_rgb(picture)) for picture in pictures]
    height, width = tiles[0].shape[:2]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    step = (height + GAP_PX, width + GAP_PX)
    sheet = np.full((rows * step[0] + GAP_PX, columns * step[1] + GAP_PX, 3), GROUND, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (GAP_PX + at * side for at, side in zip(divmod(number, columns), step, strict=True))
        sheet[top : top + height, left : left + width] = tile
    grey = bool((sheet == sheet[..., :1]).all())
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if grey else sheet).save(buffer, format="PNG")
    return buffer.getvalue()


def _tile(pixels: Pixels) -> Pixels:
    from PIL import Image

    longer = max(pixels.shape[:2])
    if longer > LARGE_PX:
        return np.asarray(Image.fromarray(pixels).reduce(math.ceil(longer / LARGE_PX)))
    zoom = max(1, math.ceil(SMALL_PX / longer))
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
