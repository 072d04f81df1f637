"""The part of a single patient that is held out of training, and the gap between it and the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: between the part of a single patient that is learnt from and the part that is held out
SLAB_GAP_MM = 10.0
#: how far through the normal slices the held-out slab lies: what is at an end of a body is like nothing else in it
SLAB_CENTRE = 1 / 3


@dataclass(frozen=True)
class Slab:
    """A part of one patient's volume along ``axis`` of the model's grid: the held-out ``share``, or all but it.

    least: slices that it has at least (a patch has to fit). reach: slices that are added to the gap, for neighbours.
    """

    axis: int
    share: float
    held: bool
    least: int = 0
    reach: int = 0


def slab_slices(slab: Slab, normal: np.ndarray, spacing: float) -> np.ndarray:
    """bool (n,) along the slab's axis, by how many voxels of ``normal`` (I, J, K) lie in each slice.

    Held out is the run of slices that has the ``share`` of them about SLAB_CENTRE of the way; where it must be
    ``least`` slices thick, it is at the end that has more of them. The rest keeps away from it by the gap.
    """
    others = tuple(axis for axis in range(3) if axis != slab.axis)
    weight = normal.sum(axis=others, dtype=np.float64)
    passed = np.cumsum(weight) / max(weight.sum(), 1)
    place = np.arange(len(weight))
    middle = SLAB_CENTRE if not slab.least else (slab.share / 2 if _front_heavy(weight) else 1 - slab.share / 2)
    first = int(np.searchsorted(passed, max(0.0, middle - slab.share / 2) + 1e-9))
    last = int(np.searchsorted(passed, min(1.0, middle + slab.share / 2) - 1e-9))
    if slab.least and _front_heavy(weight):
        last = max(last, first + slab.least)
    elif slab.least:
        first = min(first, last - slab.least)
    gap = slab_gap(slab, spacing)
    if slab.held:
        return np.asarray((place >= first) & (place <= last))
    return np.asarray((place < first - gap) | (place > last + gap))


def slab_gap(slab: Slab, spacing: float) -> int:
    """Slices on either side of the held-out slab from which nothing is learnt."""
    return int(np.ceil(SLAB_GAP_MM / spacing)) + slab.reach


def _front_heavy(weight: np.ndarray) -> bool:
    """Whether the first half of a row of numbers has more than the second."""
    return bool(weight[: len(weight) // 2].sum() >= weight[len(weight) // 2 :].sum())
