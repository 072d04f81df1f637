"""Lesion candidates of a volume: what hangs together above a threshold, how large it is and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from anodiff.anomaly.volume_calibration import voxel_p_values

#: voxels that share a face, an edge or a corner belong together
TOUCHING = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Candidate:
    """number: from 1, by peak; volume_mm3 of its voxels; centre_mm: their mean place (x, y, z), RAS+; peak: its largest
    map value, at voxel ``peak_voxel``; mean_p_value: of its voxels, see `voxel_p_values`, None without quantiles."""

    number: int
    voxels: int
    volume_mm3: float
    centre_mm: tuple[float, float, float]
    peak: float
    peak_voxel: tuple[int, int, int]
    mean_p_value: float | None


def find_candidates(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    threshold: float,
    affine_mm: NDArray[np.float64],
    quantiles: Mapping[float, float] | None = None,
    min_volume_mm3: float = 0.0,
) -> tuple[list[Candidate], NDArray[np.bool_]]:
    """(candidates by falling peak, bool (I, J, K): their voxels).

    values: map (I, J, K); inside: foreground, bool; threshold: map value that a candidate's voxels exceed; affine_mm:
    (4, 4), voxel to RAS+ mm; quantiles: of normal voxels. Components of less than ``min_volume_mm3`` are left out.
    """
    above = (values > threshold) & inside
    labels, count = ndimage.label(above, structure=TOUCHING)
    if not count:
        return [], above
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    voxel_mm3 = abs(float(np.linalg.det(affine_mm[:3, :3])))
    # the slack is for a volume of exactly the least, whose product may be rounded down
    kept = numbers[sizes * voxel_mm3 >= min_volume_mm3 * (1 - 1e-9)]
    peaks = ndimage.maximum_position(values, labels, kept) if len(kept) else []
    centres = ndimage.center_of_mass(above, labels, kept) if len(kept) else []
    p_values: list[float | None] = [None] * len(kept)
    if quantiles is not None and len(kept):
        bounds = np.ones(values.shape)
        bounds[above] = voxel_p_values(torch.from_numpy(values[above]), quantiles).numpy()
        p_values = [float(p) for p in ndimage.mean(bounds, labels, kept)]
    found = []
    for label, peak, centre, p_value in zip(kept, peaks, centres, p_values, strict=True):
        place = tuple(int(index) for index in peak)
        world = (affine_mm @ np.array([*centre, 1.0]))[:3]
        found.append((float(values[place]), int(sizes[label - 1]), tuple(world.tolist()), place, p_value))
    found.sort(key=lambda each: (-each[0], each[3]))
    return [
        Candidate(number, size, size * voxel_mm3, centre, peak, place, p)  # type: ignore[arg-type]
        for number, (peak, size, centre, place, p) in enumerate(found, start=1)
    ], np.isin(labels, kept)
