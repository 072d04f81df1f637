"""The peak memory of a large volume, of whole jobs: read, prepare, denoise, map, planes, candidates, report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIDE = 256
PEAK = """
import sys
from pathlib import Path
from anodiff.pipelines import score
summary = score.run(Path(sys.argv[1]), sys.argv[2:3], Path(sys.argv[3]), device="cpu", quiet=True)
assert summary.ok == 1, summary
# not getrusage: a new process inherits what its parent had
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
KINDS: dict[str, dict[str, Any]] = {
    "slices": {"axes": [2], "neighbours": 1, "min_foreground": 0.01},
    "three axes": {"axes": [0, 1, 2], "neighbours": 1, "min_foreground": 0.01},
    # 125 windows
    "windows": {"mode": "patches", "patch": [64, 64, 64], "overlap": 0.25},
}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_of_256_voxels_a_side_stays_below_six_gibibytes(kind: str, scans: Any, tmp_path: Path) -> None:
    """In a process of its own. The network is tiny, so that what is measured is the loop."""
    from anodiff.pipelines import calibrate

    network = {"channels": [8, 16], "blocks": 1, "attention": [False, False], "stem": 2, "head_channels": 8}
    settings = {**scans.recipe["presets"]["one-step"], "foreground": True, "antithetic": True, "levels": [0.5, 1.0]}
    prepared = {"size": [SIDE, SIDE], "intensity": {"kind": "robust", "clip": 5.0}, "foreground": "otsu"}
    presets = {"one-step": settings}
    raw = scans.mirror(
        tmp_path / "raw.safetensors", network=network, volume=KINDS[kind], presets=presets, preprocess=prepared
    )
    rng = np.random.default_rng(0)
    grid = np.indices((SIDE,) * 3, dtype=np.float32) - (SIDE - 1) / 2
    ball = (grid**2).sum(axis=0) < 110**2
    big = np.where(ball, 100 + 6 * rng.standard_normal(ball.shape, dtype=np.float32), 1).astype(np.float32)
    scans.save(tmp_path / "big.nii.gz", big)
    for n in range(2):
        first = 100 + 24 * n
        scans.save(tmp_path / "normals" / f"{n}.nii.gz", big[first : first + 24, 100:124, 100:124])
    calibrate.run(raw, tmp_path / "normals", tmp_path / "model.safetensors", device="cpu", quiet=True)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "model.safetensors", tmp_path / "big.nii.gz", tmp_path / "out"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    peak = int(found.stdout.split()[-1]) / 2**20
    print(f"{kind}: peak {peak:.2f} GiB")
    assert 0.3 < peak < 6
    assert scans.table(tmp_path / "out" / "lesions.csv")
