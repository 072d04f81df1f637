"""Every slice of a volume as an image to restore, with its intensities, and restored slices put back in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anodiff.data.foreground import nearest
from anodiff.data.preprocess import Geometry, resize
from anodiff.data.readers import RawImage
from anodiff.data.volumes.preprocess import PreparedVolume
from anodiff.data.volumes.slices import VolumeSlicer, cut_slices
from anodiff.data.volumes.volume import Volume
from anodiff.errors import InputError
from anodiff.restoration.intensity import Intensity, background_of, intensity_of

#: a pixel of the model's grid is missing where this share of it or more is
MISSING_SHARE = 1e-3


@dataclass(frozen=True)
class Slice:
    """One slice on the model's grid.

    image: (C * stack, h, w), with its neighbours as channels where the model sees them; foreground, background: bool
    (h, w); hole: bool (C * stack, h, w), None where all may change; number: its place along the axis.
    """

    number: int
    image: Tensor
    foreground: Tensor
    background: Tensor
    hole: Tensor | None
    intensity: Intensity
    geometry: Geometry


def whole_slices(
    slicer: VolumeSlicer,
    prepared: PreparedVolume,
    volume: Volume,
    axis: int,
    intensity: Intensity | None,
    background: NDArray[np.bool_] | None,
    hole: NDArray[np.bool_] | None,
) -> list[Slice]:
    """The slices along ``axis``, however little foreground they have; of a hole those that it reaches.

    intensity, background: of the volume, where intensities are of the whole; None where each slice has its own, those
    without spread being left out. hole: bool (I, J, K) on the model's grid.
    """
    if intensity is None:
        return _own_slices(slicer, prepared, volume, axis, hole)
    assert background is not None
    config = slicer.volume
    alone = config.model_copy(update={"neighbours": 0, "min_foreground": 0.0})
    everywhere = torch.ones_like(prepared.foreground)

    def cut(values: Tensor, neighbours: int) -> Tensor:
        section = alone.model_copy(update={"neighbours": neighbours})
        return cut_slices(values, everywhere, axis, slicer.preprocess, section).images

    stack = cut_slices(prepared.image, everywhere, axis, slicer.preprocess, alone)
    inside = stack.foreground
    images = stack.images if not config.neighbours else cut(prepared.image, config.neighbours)
    foreground = (cut(prepared.foreground[None].float(), 0)[:, 0] >= 0.5) & inside
    outside = (cut(torch.from_numpy(background)[None].float(), 0)[:, 0] >= 0.5) & inside
    holes: Sequence[Tensor | None] = [None] * len(stack)
    if hole is not None:
        missing = cut(torch.from_numpy(hole)[None].float(), config.neighbours) >= MISSING_SHARE
        holes = list(missing.repeat_interleave(len(prepared.image), dim=1))
    own = middle(slicer)
    found = [
        Slice(number, images[row], foreground[row], outside[row], holes[row], intensity, stack.geometry)
        for row, number in enumerate(stack.index)
    ]
    return [each for each in found if each.hole is None or bool(each.hole[own].any())]


def middle(slicer: VolumeSlicer) -> slice:
    """The channels of a slice itself among those of its neighbours."""
    channels, neighbours = slicer.preprocess.channels, slicer.volume.neighbours
    return slice(neighbours * channels, (neighbours + 1) * channels)


def put_back(values: NDArray[np.float32], axis: int, number: int, stored: NDArray[np.float32]) -> None:
    """Sets slice ``number`` of values (C, I, J, K) along ``axis`` to stored (H, W, C)."""
    np.moveaxis(values, axis + 1, 1)[:, number] = np.moveaxis(stored, 2, 0).swapaxes(1, 2)


def _own_slices(
    slicer: VolumeSlicer, prepared: PreparedVolume, volume: Volume, axis: int, hole: NDArray[np.bool_] | None
) -> list[Slice]:
    """Slices as images of their own, as `VolumeSlicer` makes them where statistics are of slices."""
    preprocessor = slicer.preprocessor
    planes = np.moveaxis(prepared.image.numpy(), axis + 1, 0).swapaxes(2, 3)
    valid = np.moveaxis(prepared.foreground.numpy(), axis, 0).swapaxes(1, 2)
    holes = None if hole is None else np.moveaxis(hole, axis, 0).swapaxes(1, 2)
    found = []
    for number, pixels in enumerate(planes):
        if pixels.min() == pixels.max() or (holes is not None and not holes[number].any()):
            continue
        raw = RawImage(np.moveaxis(pixels, 0, 2), volume.low, volume.high, volume.dtype, volume.path)
        if volume.ranged and slicer.preprocess.value_range is None:
            # The range of the stored type, through the file's scaling, is known: uint8 says so.
            raw = replace(raw, dtype="uint8")
        if prepared.given:
            # Beside the brain there is noise and there are holes, too: a slice without any of it counts whole.
            seen = nearest(valid[number], preprocessor.geometry(pixels.shape[1:]).box[2:]).any()
            raw = replace(raw, foreground=valid[number] if seen else np.ones_like(valid[number]))
        try:
            image = preprocessor(raw)
            intensity = intensity_of(raw, preprocessor)
        except InputError as error:
            if "no spread" in str(error):
                continue
            raise
        geometry = image.geometry
        # Of a given foreground the background is what it leaves out; else what the file holds no number for is neither.
        inside = torch.ones(geometry.model, dtype=torch.bool)
        if not prepared.given:
            inside = _on_grid(valid[number], geometry) >= 0.5
        missing = None if holes is None else _on_grid(holes[number], geometry) >= MISSING_SHARE
        found.append(
            Slice(
                number,
                image.image,
                image.foreground & inside,
                torch.from_numpy(background_of(raw, preprocessor)) & inside,
                None if missing is None else missing.expand(len(image.image), -1, -1),
                intensity,
                geometry,
            )
        )
    return found


def _on_grid(mask: NDArray[np.bool_], geometry: Geometry) -> Tensor:
    """Share of each pixel of the model's grid that the mask (H, W) covers; in padding as at its border."""
    top, left, height, width = geometry.box
    inner = resize(np.ascontiguousarray(mask, dtype=np.float32), (height, width))
    margin = ((top, geometry.model[0] - top - height), (left, geometry.model[1] - left - width))
    return torch.from_numpy(np.pad(inner, margin, mode="edge"))
