"""What a person sees of a volume in one picture: three planes through the highest voxel, with the map over them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anodiff.data.volumes.geometry import Grid, reorient
from anodiff.data.volumes.volume import UNIT_MM, Volume
from anodiff.visualize.heatmap import HeatScale, display_image, overlay, render_heatmap

if TYPE_CHECKING:
    from anodiff.anomaly.calibration import Calibration

#: of every axis the slices look as on a screen: left, posterior, inferior
SCREEN = "LPI"
#: longer side of a plane
PLANE_PX = 320


def affine_mm(volume: Volume) -> NDArray[np.float64]:
    """float64 (4, 4), voxel to RAS+ mm."""
    return np.asarray(np.diag([*([UNIT_MM[volume.units]] * 3), 1.0]) @ volume.affine)


def shown_volume(volume: Volume, channel: int | None = None) -> NDArray[np.uint8]:
    """uint8 (I, J, K) of one channel, black and white at the 0.5 and 99.5 percentiles of the volume."""
    plane = volume.data[channel or 0]
    return display_image(plane.reshape(plane.shape[0], -1)).reshape(plane.shape)


def save_planes(
    path: Path,
    volume: Volume,
    shown: NDArray[np.uint8],
    values: NDArray[np.float32],
    scale: HeatScale,
    peak: tuple[int, int, int],
    mask: NDArray[np.bool_] | None = None,
) -> None:
    """Writes a PNG of the planes through voxel ``peak``: input, overlay and map of each, one below the other."""
    from PIL import Image

    from anodiff.files import atomic_write

    step = reorient(Grid(volume.shape, affine_mm(volume)), SCREEN)
    at = np.zeros(volume.shape, dtype=np.float32)
    at[peak] = 1
    place = np.unravel_index(int(step.forward(at).argmax()), step.target.shape)
    marked = None if mask is None else step.forward(mask)
    rows = []
    for axis in (2, 1, 0):
        if step.target.shape[axis] > 1 and min(step.target.shape) == 1:
            continue  # of a single slice there is one plane
        spacing = [side for other, side in enumerate(step.target.spacing) if other != axis]
        where = (axis, int(place[axis]), spacing)
        truth = None if marked is None else _plane(marked, *where) > 0
        rows.append(
            render_heatmap(_plane(step.forward(shown), *where), _plane(step.forward(values), *where), scale, truth)
        )
    canvas = Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height for row in rows)), rows[0].getpixel((0, 0))
    )
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


def _plane(array: NDArray[Any], axis: int, index: int, spacing: list[float]) -> NDArray[Any]:
    """One slice, the later axis down, with square pixels: (H, W), float32 or uint8."""
    from PIL import Image

    plane = np.ascontiguousarray(np.take(array, index, axis=axis).T)
    across, down = plane.shape[1] * spacing[0], plane.shape[0] * spacing[1]
    zoom = PLANE_PX / max(across, down)
    size = (max(1, round(across * zoom)), max(1, round(down * zoom)))
    # Every voxel keeps its value, so that nothing is seen that is not in the map.
    picture = Image.fromarray(plane.astype(np.uint8) if plane.dtype != np.float32 else plane)
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def volume_scale(calibration: Calibration | None, quantiles: dict[float, float] | None) -> HeatScale | None:
    """The one colour scale of a calibrated run: median normal voxel dark, the 1 % threshold in the middle."""
    if calibration is None or quantiles is None:
        return None
    return HeatScale.of_normals(quantiles)


def overlay_volume(shown: NDArray[np.uint8], values: NDArray[np.float32], scale: HeatScale) -> NDArray[np.uint8]:
    """RGB (I, J, K, 3) of the map over the image, slice by slice."""
    slices = [overlay(np.ascontiguousarray(shown[:, :, k]), values[:, :, k], scale) for k in range(shown.shape[2])]
    return np.stack(slices, axis=2)


def three_planes(
    volume: Volume, values: NDArray[np.float32], at: tuple[int, int, int], low: float, high: float
) -> NDArray[np.uint8]:
    """uint8 (H, W): the planes of values (I, J, K) through voxel ``at`` side by side, low black and high white."""
    step = reorient(Grid(volume.shape, affine_mm(volume)), SCREEN)
    marked = np.zeros(volume.shape, dtype=np.float32)
    marked[at] = 1
    place = np.unravel_index(int(step.forward(marked).argmax()), step.target.shape)
    turned = step.forward(np.asarray(values, dtype=np.float32))
    planes = []
    for axis in (2, 1, 0):
        if step.target.shape[axis] == 1 or min(step.target.shape) > 1:
            spacing = [side for other, side in enumerate(step.target.spacing) if other != axis]
            planes.append(display_image(_plane(turned, axis, int(place[axis]), spacing), low, high))
    tallest = max(len(plane) for plane in planes)
    padded = [np.pad(plane, ((0, tallest - len(plane)), (0, 0))) for plane in planes]
    return np.concatenate(padded, axis=1)
