"""Simplex noise: the opensimplex package (numba) beside ours, 64 fields of 256x256 in 6 octaves.

    python -m benchmarks.speed.simplex

The peer computes each octave with `opensimplex.noise2array` after its compilation and adds them as AnoDDPM does
(frequency 1/64, doubled, amplitude times 0.8); ours makes all fields at once on the device. The two are different
hashes of the same lattice, so their fields are compared by what they share: zero mean, and the correlation of
neighbouring pixels. Prints a table, writes simplex.json beside this file.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from numpy.typing import NDArray

from anodiff.diffusion.noise import sample_noise
from benchmarks.speed.side_by_side import Comparison, device_of, finish, in_turns, options

OCTAVES, FREQUENCY, PERSISTENCE = 6, 64, 0.8
#: largest difference between the two sides' correlations of neighbouring pixels
AGREEMENT = 0.05


def main(arguments: list[str] | None = None) -> list[Comparison]:
    """Measure, print, write."""
    parser = options(__doc__, "simplex", turns=5)
    parser.add_argument("--fields", type=int, default=64)
    parser.add_argument("--side", type=int, default=256)
    chosen = parser.parse_args(arguments)
    require_numba("simplex")
    device = device_of(chosen)
    keys = torch.arange(chosen.fields, device=device) + chosen.seed

    def ours() -> torch.Tensor:
        return sample_noise("simplex", keys, (1, chosen.side, chosen.side), scale="published")

    def theirs() -> NDArray[np.float64]:
        return np.stack([opensimplex_field(chosen.seed + i, chosen.side) for i in range(chosen.fields)])

    correlations = {"ours": neighbours(ours()[:, 0].double().cpu().numpy()), "peer": neighbours(theirs())}
    if abs(correlations["ours"] - correlations["peer"]) > AGREEMENT:
        raise SystemExit(f"simplex: expected fields as smooth as each other, found correlations {correlations}")
    work = f"{chosen.fields} fields of {chosen.side}x{chosen.side}, {OCTAVES} octaves"
    found = [in_turns(work, ours, theirs, chosen.turns, device, correlations=correlations)]
    finish(found, chosen.output, "simplex noise", device)
    return found


def require_numba(work: str) -> None:
    """Ends the benchmark where the package would run without its compiler, which nobody would choose."""
    if importlib.util.find_spec("numba") is None:
        raise SystemExit(f"{work}: expected numba, without which opensimplex is slow; found none (pip install numba)")


def opensimplex_field(seed: int, side: int) -> NDArray[np.float64]:
    """One field (side, side) by the package, octaves added."""
    import opensimplex

    opensimplex.seed(seed)
    field = np.zeros((side, side))
    for octave in range(OCTAVES):
        axis = np.arange(side) * 2.0**octave / FREQUENCY
        field += PERSISTENCE**octave * opensimplex.noise2array(axis, axis)
    return field


def neighbours(fields: NDArray[np.float64]) -> float:
    """Correlation of pixels one apart along the rows."""
    return float(np.corrcoef(fields[:, :, 1:].ravel(), fields[:, :, :-1].ravel())[0, 1])


if __name__ == "__main__":
    main()
