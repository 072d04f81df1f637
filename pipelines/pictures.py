"""What a person sees of an image: its display, the reconstruction in the same window, the run's one colour scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.visualize.heatmap import HeatScale, display_image

if TYPE_CHECKING:
    from torch import Tensor

    from anodiff.anomaly.calibration import Calibration
    from anodiff.config import PreprocessConfig
    from anodiff.data.preprocess import Geometry, Prepared
    from anodiff.data.readers import RawImage

Pixels = NDArray[np.uint8]

#: longer side of what is shown; scores and stored maps keep the native size
DISPLAY_PX = 1024


def display_geometry(geometry: Geometry) -> Geometry:
    """The geometry of the picture on show: native, or shrunk to DISPLAY_PX."""
    height, width = geometry.native
    shrink = min(1.0, DISPLAY_PX / max(height, width))
    return replace(geometry, native=(max(1, round(height * shrink)), max(1, round(width * shrink))))


def display_input(raw: RawImage, geometry: Geometry, config: PreprocessConfig) -> Pixels:
    """The decoded image as the model's channels show it: uint8 (H, W) or (H, W, 3) on the display grid."""
    from PIL import Image

    from anodiff.data.preprocess import select_channels

    pixels = select_channels(raw, config.channels, config.channel)
    whole = config.intensity.kind == "unit_range"
    shown = display_image(pixels, *((raw.low, raw.high) if whole else (None, None)))
    height, width = display_geometry(geometry).native
    if shown.shape[:2] == (height, width):
        return shown
    return np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.BOX))


def display_reconstruction(reconstruction: Tensor, prepared: Prepared, config: PreprocessConfig) -> Pixels:
    """A reconstruction (C, h, w) in the window of its input: uint8 on the model's grid, padding cut off."""
    top, left, height, width = prepared.geometry.box
    inside = (slice(None), slice(top, top + height), slice(left, left + width))
    low, high = -1.0, 1.0
    if config.intensity.kind != "unit_range":
        low, high = (float(value) for value in np.percentile(prepared.image[inside].numpy(), (0.5, 99.5)))
    return display_image(np.moveaxis(reconstruction[inside].numpy(), 0, 2), low, high)


def calibrated_scale(calibration: Calibration | None) -> HeatScale | None:
    """The one colour scale of a calibrated preset: median normal pixel dark, the 1 % pixel threshold in the middle."""
    return None if calibration is None else HeatScale.of_normals(calibration.pixel_quantiles)


def raw_scale(rows: Iterable[Mapping[str, Any]]) -> HeatScale | None:
    """One colour scale for a run without calibration, from the spread of all its maps; None without a map."""
    spreads = [row["map_spread"] for row in rows if row.get("map_spread")]
    if not spreads:
        return None
    low = median(spread[0] for spread in spreads)
    centre = median(spread[1] for spread in spreads)
    high = max(spread[2] for spread in spreads)
    centre = centre if centre > low else low + max(abs(low), 1.0) * 1e-3
    return replace(HeatScale.around(low, centre), high=max(high, 2 * centre - low), calibrated=False)


def map_spread(anomaly_map: NDArray[np.float32]) -> list[float]:
    """Median, 99 % quantile and maximum of a map: what `raw_scale` needs to know of it."""
    middle, upper = np.percentile(anomaly_map, (50, 99))
    return [float(middle), float(upper), float(anomaly_map.max())]
