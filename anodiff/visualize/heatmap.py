"""Heatmaps that mean the same on every image: one colour scale a run, fixed by calibration, never stretched per image.

The scale runs from `low` (what is normal) over `centre` (the pixel threshold) to `high`. Below the threshold colours
are dark and cold, above it warm; lightness rises all the way, so the picture also reads in grey and to colour-blind
eyes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anodiff.files import atomic_write
from anodiff.visualize.png import png_bytes

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

_STOPS = (0.0, 0.25, 0.47, 0.54, 0.70, 0.85, 1.0)
_STOP_COLOURS = ("05070d", "0e1c36", "22456f", "a3305c", "e85b3f", "f9a94a", "fdf4c4")
#: longer side of a panel: about so much for a small image, as in the report, and at most so much for a large one
PANEL_PX, LARGEST_PX = 256, 1024
_MARGIN, _CAPTION = 16, 26
_GROUND, _INK, _FAINT, _MASK = (15, 17, 21), (232, 234, 237), (150, 156, 166), (64, 224, 208)


@dataclass(frozen=True)
class HeatScale:
    """Map values to positions on the colour scale: low -> 0, centre -> 0.5, high -> 1, linear between, clamped outside.

    Attributes:
        low: a typical normal value, e.g. the median of calibration normals; dark.
        centre: the pixel threshold; the middle of the scale.
        high: the value from which on all is brightest.
        calibrated: False when no threshold is known: `centre` is then just the middle, and pictures do not call it a
            threshold.

    Raises:
        ValueError: not finite, or not low < centre < high.
    """

    low: float
    centre: float
    high: float
    calibrated: bool = True

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.low, self.centre, self.high)):
            raise ValueError(f"a heat scale needs finite ends, found {self.low}, {self.centre}, {self.high}")
        if not self.low < self.centre < self.high:
            raise ValueError(f"a heat scale needs low < centre < high, found {self.low}, {self.centre}, {self.high}")

    @classmethod
    def around(cls, low: float, threshold: float, reach: float = 2.0) -> HeatScale:
        """The calibrated scale whose bright end lies `reach` times as far above the threshold as `low` lies below
        it."""
        return cls(low, threshold, threshold + reach * (threshold - low))

    @classmethod
    def of_normals(cls, quantiles: Mapping[float, float]) -> HeatScale:
        """From values of normal pixels by their share: the median dark, the 1 % pixel threshold in the middle."""
        low = quantiles[0.5]
        above = [value for share, value in sorted(quantiles.items()) if share >= 0.99 and value > low]
        return cls.around(low, above[0] if above else low + 1.0)

    def position(self, values: ArrayLike) -> NDArray[np.float32]:
        """Values of any shape -> positions in [0, 1], same shape; NaN -> 0."""
        at = np.interp(np.asarray(values, dtype=np.float64), (self.low, self.centre, self.high), (0.0, 0.5, 1.0))
        return np.nan_to_num(at).astype(np.float32)

    def index(self, values: ArrayLike) -> Pixels:
        """Values of any shape -> uint8 positions 0..255 (a value is above the threshold exactly where the index is >=
        128)."""
        at = np.asarray(values)
        below = np.floor((at - self.low) * (128.0 / (self.centre - self.low)))
        above = np.ceil((at - self.centre) * (128.0 / (self.high - self.centre))) + 127.0
        # fmax and fmin pass over NaN, which is drawn as normal.
        warm = np.fmin(np.fmax(above, 128.0), 255.0)
        return np.where(at > np.float64(self.centre), warm, np.fmin(np.fmax(below, 0.0), 127.0)).astype(np.uint8)


@lru_cache(maxsize=1)
def colour_table() -> Pixels:
    """(256, 3) RGB of the scale, interpolated in OKLab (Ottosson 2020) so that steps look even; read-only."""
    stops = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _STOP_COLOURS], dtype=np.float64)
    lab = _oklab(stops / 255.0)
    at = np.linspace(0.0, 1.0, 256)
    mixed = np.stack([np.interp(at, _STOPS, lab[:, channel]) for channel in range(3)], 1)
    table = np.round(_from_oklab(mixed) * 255.0).astype(np.uint8)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=1)
def opacity_table() -> NDArray[np.float64]:
    """(256,) how much of the heat colour covers the image: nothing where normal, all of it from the threshold on;
    read-only."""
    ramp = np.clip((np.linspace(0.0, 1.0, 256) - 0.3) / 0.22, 0.0, 1.0)
    table = ramp * ramp * (3.0 - 2.0 * ramp)
    table.setflags(write=False)
    return table


def colourise(values: ArrayLike, scale: HeatScale) -> Pixels:
    """Map (H, W) -> RGB (H, W, 3)."""
    return colour_table()[scale.index(values)]


def overlay(image: Pixels, values: ArrayLike, scale: HeatScale, opacity: float = 0.75) -> Pixels:
    """The map over the image it belongs to: uint8 (H, W) or (H, W, 3) and map (H, W) -> RGB (H, W, 3).

    Normal places stay as they are; from the threshold on the colour covers the image by `opacity` in [0, 1].

    Raises:
        ValueError: the image is not uint8, or image and map differ in size.
    """
    return _overlaid(as_rgb(image), scale.index(values), opacity)


def _overlaid(under: Pixels, index: Pixels, opacity: float = 0.75) -> Pixels:
    """RGB (H, W, 3) under the colours of positions (H, W)."""
    if index.shape != under.shape[:2]:
        raise ValueError(f"image and map must have one size, found {under.shape[:2]} and {index.shape}")
    cover = opacity * opacity_table()
    covered = (cover > 0.0)[index]
    mixed, above = under.copy(), index[covered]
    share = cover[above][:, None]
    mixed[covered] = np.round((1.0 - share) * under[covered] + share * colour_table()[above]).astype(np.uint8)
    return mixed


def display_image(pixels: ArrayLike, low: float | None = None, high: float | None = None) -> Pixels:
    """Pixels (H, W) or (H, W, C) of any number type -> uint8 (H, W) or (H, W, 3) for showing beside a map.

    Args:
        pixels: C = 1 or 3; with any other C the first channel is shown.
        low, high: values shown as black and white; where None, the 0.5 and 99.5 percentiles of these pixels (a display
            window for the *image*; maps always keep the run's scale).
    """
    values = np.asarray(pixels, dtype=np.float32)
    if values.ndim == 3 and values.shape[2] != 3:
        values = values[..., 0]
    finite = values[np.isfinite(values)]
    black = low if low is not None else (float(np.percentile(finite, 0.5)) if finite.size else 0.0)
    white = high if high is not None else (float(np.percentile(finite, 99.5)) if finite.size else 1.0)
    shown = (np.nan_to_num(values, nan=black, posinf=white, neginf=black) - black) / max(white - black, 1e-12)
    return np.round(shown.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def as_rgb(image: Pixels) -> Pixels:
    """uint8 (H, W), (H, W, 1) or (H, W, 3) -> (H, W, 3)."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(f"an image must be uint8 (H, W), (H, W, 1) or (H, W, 3), found {pixels.dtype} {pixels.shape}")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def mask_outline(mask: ArrayLike) -> NDArray[np.bool_]:
    """The one-pixel inner border of a bool mask (H, W); the frame of the image counts as outside."""
    inside = np.asarray(mask, dtype=bool)
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def format_value(value: float) -> str:
    """Three significant digits, as printed at the colour bar and in the report."""
    return f"{value:.3g}"


def render_heatmap(image: Pixels, values: ArrayLike, scale: HeatScale, mask: ArrayLike | None = None) -> Image.Image:
    """Input, overlay and map side by side with the colour bar of the run; a mask is outlined on the first two.

    Args:
        image: uint8 (H, W) or (H, W, 3), see `display_image`.
        values: map (H, W).
        scale: the run's scale.
        mask: bool (H, W), the true anomaly, where known.
    """
    from PIL import Image

    return Image.fromarray(_drawn(image, values, scale, mask))


def save_heatmap(
    path: str | os.PathLike[str], image: Pixels, values: ArrayLike, scale: HeatScale, mask: ArrayLike | None = None
) -> None:
    """Writes `render_heatmap` as a PNG, under a temporary name first.

    Raises:
        ValueError: see `overlay`.
        StorageError: it cannot be written.
    """
    atomic_write(path, png_bytes(_drawn(image, values, scale, mask)))


def _drawn(image: Pixels, values: ArrayLike, scale: HeatScale, mask: ArrayLike | None) -> Pixels:
    """The RGB pixels of `render_heatmap`: three panels set into the frame that all of the run share."""
    under, index = as_rgb(image), scale.index(values)
    panels = (under, _overlaid(under, index), colour_table()[index])
    height, width = under.shape[:2]
    zoom = max(1, round(PANEL_PX / max(height, width)))
    shrink = min(1.0, LARGEST_PX / max(height, width))
    size = (max(1, round(height * zoom * shrink)), max(1, round(width * zoom * shrink)))
    canvas = _frame(size, scale, mask is not None).copy()
    outline = None if mask is None else mask_outline(_enlarged(np.asarray(mask, dtype=bool), size, zoom))
    top = _MARGIN + _CAPTION
    for i, pixels in enumerate(panels):
        left = _MARGIN + i * (size[1] + _MARGIN)
        panel = canvas[top : top + size[0], left : left + size[1]]
        panel[:] = _enlarged(pixels, size, zoom)
        if outline is not None and i < 2:
            panel[outline] = _MASK
    return canvas


def _enlarged(pixels: NDArray[Any], size: tuple[int, int], zoom: int) -> NDArray[Any]:
    """(H, W) bool or (H, W, 3) uint8 -> (h, w) = ``size``: each pixel `zoom` times, or shrunk by box averages."""
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    if zoom > 1:
        return pixels.repeat(zoom, axis=1).repeat(zoom, axis=0)
    method = Image.Resampling.NEAREST if pixels.dtype == bool else Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], method))


@lru_cache(maxsize=4)
def _frame(size: tuple[int, int], scale: HeatScale, masked: bool) -> Pixels:
    """Captions and colour bar around three empty panels of ``size`` = (h, w); read-only, and drawn once a run."""
    from PIL import Image, ImageDraw, ImageFont

    bar, tall = 96, max(size[0], 120)
    canvas = Image.new("RGB", (3 * size[1] + 4 * _MARGIN + bar, tall + _CAPTION + 2 * _MARGIN), _GROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for i, name in enumerate(("input", "overlay", "map")):
        caption = f"{name} · truth outlined" if masked and i < 2 else name
        draw.text((_MARGIN + i * (size[1] + _MARGIN), _MARGIN), caption, fill=_FAINT, font=font)
    _draw_bar(canvas, draw, font, scale, (canvas.width - bar - _MARGIN // 2, _MARGIN + _CAPTION, tall))
    pixels = np.array(canvas)
    pixels.setflags(write=False)
    return pixels


def _draw_bar(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    scale: HeatScale,
    place: tuple[int, int, int],
) -> None:
    from PIL import Image

    left, top, height = place
    column = colour_table()[np.rint(255 * (1 - np.arange(height) / (height - 1))).astype(int)]
    canvas.paste(Image.fromarray(np.repeat(column[:, None], 14, axis=1)), (left, top))
    draw.rectangle([left - 1, top - 1, left + 14, top + height], outline=(70, 76, 86))
    middle = top + height // 2
    draw.line([(left - 1, middle), (left + 18, middle)], fill=_INK)
    labels: list[tuple[int, float, Any]] = [(top, scale.high, _FAINT), (top + height - 15, scale.low, _FAINT)]
    for y, value, fill in [*labels, (middle - 15, scale.centre, _INK)]:
        draw.text((left + 21, y), format_value(value), fill=fill, font=font)
    if scale.calibrated:
        draw.text((left + 21, middle), "pixel thr.", fill=_FAINT, font=font)


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cone = np.cbrt(linear @ _LINEAR_TO_CONE.T)
    return cone @ _CONE_TO_LAB.T


def _from_oklab(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    cone = (lab @ np.linalg.inv(_CONE_TO_LAB).T) ** 3
    linear = (cone @ np.linalg.inv(_LINEAR_TO_CONE).T).clip(0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_LINEAR_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONE_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
