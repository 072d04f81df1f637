"""Pictures as text: small PNG and JPEG data URIs and vector outlines that an offline HTML page can hold."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.visualize.heatmap import HeatScale, Pixels, as_rgb, colour_table, opacity_table
from anodiff.visualize.png import indexed_png_bytes, packed, png_bytes

if TYPE_CHECKING:
    from PIL import Image

LARGE_PNG = 24_000


def image_uri(image: Pixels, max_px: int = 256) -> str:
    """uint8 (H, W) or (H, W, 3) -> data URI, its longer side at most `max_px` (by whole-number box averages).

    PNG, or JPEG where the PNG is large and the JPEG smaller.
    """
    from PIL import Image

    pixels = np.asarray(image)
    as_rgb(pixels)
    grey = pixels.ndim == 2 or pixels.shape[2] == 1
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey and pixels.ndim == 3 else pixels))
    factor = shrink_factor(pixels.shape[:2], max_px)
    picture = picture.reduce(factor) if factor > 1 else picture
    png = png_bytes(np.asarray(picture))
    jpeg = _encoded(picture, "JPEG", quality=90) if len(png) > LARGE_PNG else png
    return _uri(jpeg, "jpeg") if len(jpeg) < len(png) else _uri(png, "png")


def map_uris(values: ArrayLike, scale: HeatScale, max_px: int = 256) -> tuple[str, str]:
    """Map (H, W) -> data URIs of (the opaque map, the layer to lay over the image).

    A map that is too large is shrunk by block *maxima*: a small hot spot never fades into its surroundings.

    Args:
        values: the float map, or uint8 positions that `HeatScale.index` gave.
        scale: the run's scale.
    """
    pixels = np.asarray(values)
    if pixels.ndim != 2:
        raise ValueError(f"a map must be (H, W), found {pixels.shape}")
    small = block_maxima(pixels, shrink_factor(pixels.shape, max_px))
    index = small if small.dtype == np.uint8 else scale.index(small)
    rows, palette = packed(index), colour_table()
    alpha = np.round(opacity_table() * 255.0).astype(np.uint8)
    layers = (indexed_png_bytes(index, palette, rows), indexed_png_bytes(index, palette, rows, alpha))
    return _uri(layers[0], "png"), _uri(layers[1], "png")


def mask_uri(mask: ArrayLike, max_px: int = 256) -> str:
    """bool (H, W) -> data URI of a black and white PNG."""
    inside = _shrunk_mask(mask, max_px)
    return _uri(png_bytes(np.where(inside, np.uint8(255), np.uint8(0))), "png")


def outline_path(mask: ArrayLike, max_px: int = 256) -> tuple[str, int, int]:
    """The border of a bool mask (H, W) along its pixel edges -> (SVG path, width, height of the view box), sharp at
    any zoom."""
    inside = np.pad(_shrunk_mask(mask, max_px), 1)
    horizontal = inside[1:, 1:-1] != inside[:-1, 1:-1]
    vertical = (inside[1:-1, 1:] != inside[1:-1, :-1]).T
    steps = [f"M{x} {y}h{n}" for y, x, n in _runs(horizontal)] + [f"M{x} {y}v{n}" for x, y, n in _runs(vertical)]
    return "".join(steps), inside.shape[1] - 2, inside.shape[0] - 2


def scale_uri() -> str:
    """The colour scale from low to high, one pixel high."""
    return _uri(png_bytes(colour_table()[None]), "png")


def shrink_factor(shape: tuple[int, ...], max_px: int) -> int:
    """The smallest whole number by which the longer side of (H, W) must be divided to be at most `max_px`."""
    return max(1, -(-max(shape) // max_px))


def block_maxima(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Maxima of factor x factor blocks of (H, W); blocks at the far border may be smaller."""
    if factor == 1:
        return np.ascontiguousarray(values)
    height, width = (-(-side // factor) for side in values.shape)
    padding = ((0, height * factor - values.shape[0]), (0, width * factor - values.shape[1]))
    padded = np.pad(values, padding, mode="edge")
    return padded.reshape(height, factor, width, factor).max((1, 3))


def _shrunk_mask(mask: ArrayLike, max_px: int) -> NDArray[np.bool_]:
    inside = np.asarray(mask)
    if inside.ndim != 2:
        raise ValueError(f"a mask must be (H, W), found {inside.shape}")
    return block_maxima((inside != 0).astype(np.uint8), shrink_factor(inside.shape, max_px)).astype(bool)


def _runs(edges: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(row, start, length) of every run of True along the rows."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(row), int(a), int(b - a)) for (row, a), (_, b) in zip(starts, ends, strict=True)]


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
