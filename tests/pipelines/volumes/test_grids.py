"""One truth: decisions are of the model's grid; maps, candidates and pictures of the input's own, and agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import anodiff
from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.volumes import read_volume


@pytest.mark.parametrize("spacing", [[2.0, 2.0, 2.5], [0.6, 0.6, 0.7]], ids=["coarser", "finer"])
@pytest.mark.parametrize("mode", ["slices", "patches"])
def test_candidates_are_of_the_map_that_is_written_and_the_score_of_the_models_grid(
    scans: Any, tmp_path: Path, spacing: list[float], mode: str
) -> None:
    from anodiff.pipelines import calibrate

    section = {"spacing": spacing, "min_foreground": 0.01, "mode": mode, "patch": [8, 8, 8], "score_slices": 2}
    raw = scans.mirror(tmp_path / "raw.safetensors", volume=section,
                       preprocess={"size": [16, 16], "intensity": {"kind": "robust", "clip": 5.0}})  # fmt: skip
    for n in range(3):
        scans.save(tmp_path / "normals" / f"{n}.nii.gz", scans.head(n, (14, 12, 10)))
    model = tmp_path / "m.safetensors"
    calibrate.run(raw, tmp_path / "normals", model, device="cpu", quiet=True)
    source = scans.save(tmp_path / "sick.nii.gz", scans.head(9, (14, 12, 10), lesion=True), scans.oblique())
    scans.run(model, tmp_path / "out", source, heatmaps=False)
    written = np.asarray(nibabel.load(tmp_path / "out" / "maps" / "sick.nii.gz").dataobj)

    volume = read_volume(source)
    detector = VolumeDetector(anodiff.load(model), "one-step", device="cpu")
    prepared = detector.prepare(volume)
    result = detector(prepared, volume)
    assert result.map.shape != written.shape
    # decisions: of the model's grid
    row = scans.table(tmp_path / "out" / "scores.csv")[0]
    assert np.float32(row["score"]) == np.float32(result.score)
    if mode == "slices":
        top = sorted((each.score for each in result.slices), reverse=True)[:2]
        assert float(row["score"]) == pytest.approx(sum(top) / 2, rel=1e-6)
    # places and values: of the map as written, which is the model's map at the input's own voxels
    assert np.array_equal(written, prepared.back(result.map))
    assert written.max() <= result.map.max() + 1e-5
    lesions = scans.table(tmp_path / "out" / "lesions.csv")
    assert lesions
    for lesion in lesions:
        at = tuple(int(lesion[f"peak_{axis}"]) for axis in "ijk")
        assert written[at] == np.float32(lesion["peak"])
    inside = prepared.back(result.inside.astype(np.float32)) >= 0.5
    assert np.float32(lesions[0]["peak"]) == written[inside].max()
    # what is lost between the grids is what lies between two voxels of the input
    world = prepared.plan.native.affine @ np.array([*(int(lesions[0][f"peak_{axis}"]) for axis in "ijk"), 1.0])
    near = np.rint((np.linalg.inv(prepared.plan.model.affine) @ world)[:3]).astype(int)
    block = tuple(slice(max(place - 2, 0), place + 3) for place in near)
    assert result.map[block].min() <= float(lesions[0]["peak"]) <= result.map[block].max() + 1e-5
