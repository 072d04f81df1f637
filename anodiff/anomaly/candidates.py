"""Lesion candidates of a volume: what hangs together above a threshold, how large it is and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

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


class Candidates(NamedTuple):
    """listed: by falling peak; marked: bool (I, J, K), the voxels of all of them, listed or not; left_out: how many are
    not listed, since there are more than were asked for."""

    listed: list[Candidate]
    marked: NDArray[np.bool_]
    left_out: int = 0


def find_candidates(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    threshold: float,
    affine_mm: NDArray[np.float64],
    quantiles: Mapping[float, float] | None = None,
    min_volume_mm3: float = 0.0,
    most: int | None = None,
) -> Candidates:
    """What hangs together above a threshold; of it the ``most`` highest peaks are listed.

    values: map (I, J, K); inside: foreground, bool; threshold: map value that a candidate's voxels exceed; affine_mm:
    (4, 4), voxel to RAS+ mm; quantiles: of normal voxels. Components of less than ``min_volume_mm3`` are no candidates.
    """
    above = (values > threshold) & inside
    labels, count = ndimage.label(above, structure=TOUCHING)
    if not count:
        return Candidates([], above)
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    voxel_mm3 = abs(float(np.linalg.det(affine_mm[:3, :3])))
    # the slack is for a volume of exactly the least, whose product may be rounded down
    least = min_volume_mm3 * (1 - 1e-9)
    kept = numbers[sizes * voxel_mm3 >= least]
    if not len(kept):
        return Candidates([], np.zeros_like(above))
    marked = np.concatenate([[False], sizes * voxel_mm3 >= least])[labels]
    places = np.array(ndimage.maximum_position(values, labels, kept))
    # What a noisy map has by the thousand is measured only as far as it is listed.
    chosen = np.lexsort((*places.T[::-1], -values[tuple(places.T)]))[:most]
    listed, places = kept[chosen], places[chosen]
    centres = ndimage.center_of_mass(above, labels, listed)
    p_values: list[float | None] = [None] * len(listed)
    if quantiles is not None:
        bounds = np.ones(values.shape)
        bounds[above] = voxel_p_values(torch.from_numpy(values[above]), quantiles).numpy()
        p_values = [float(p) for p in ndimage.mean(bounds, labels, listed)]
    found = []
    for number, (label, place, centre, p) in enumerate(zip(listed, places, centres, p_values, strict=True), start=1):
        x, y, z = (float(at) for at in (affine_mm @ np.array([*centre, 1.0]))[:3])
        i, j, k = (int(index) for index in place)
        size = int(sizes[label - 1])
        found.append(Candidate(number, size, size * voxel_mm3, (x, y, z), float(values[i, j, k]), (i, j, k), p))
    return Candidates(found, marked, len(kept) - len(listed))
