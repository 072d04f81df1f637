"""Volumes through whole jobs: what is written of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from anodiff.errors import ConfigError
from anodiff.pipelines import volume_scoring


def test_outputs_of_a_calibrated_run(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    affine = scans.oblique()
    scans.save(tmp_path / "in" / "sick.nii.gz", scans.head(100, lesion=True), affine)
    scans.save(tmp_path / "in" / "well.nii.gz", scans.head(101), affine)
    assert scans.run(volumes_model, tmp_path / "out", tmp_path / "in").exit_code == 0
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert rows["sick"]["is_anomalous"] == "true"
    assert float(rows["sick"]["p_value"]) <= 0.05 < float(rows["well"]["p_value"])
    assert float(rows["sick"]["score"]) > float(rows["sick"]["threshold"]) == float(rows["well"]["threshold"])
    slices = [row for row in scans.table(tmp_path / "out" / "slices.csv") if row["id"] == "sick"]
    assert {row["axis"] for row in slices} == {"2"}
    ranked = sorted(slices, key=lambda row: -float(row["score"]))
    assert {int(row["slice"]) for row in ranked[:3]} == {5, 6, 7}
    top = [float(row["score"]) for row in ranked[:2]]
    assert float(rows["sick"]["score"]) == pytest.approx(sum(top) / 2, rel=1e-5)
    lesion = next(row for row in scans.table(tmp_path / "out" / "lesions.csv") if row["id"] == "sick")
    assert int(lesion["voxels"]) >= 27
    assert float(lesion["volume_mm3"]) == pytest.approx(int(lesion["voxels"]) * 3.0, rel=1e-4)
    world = affine @ np.array([7.0, 8.0, 6.0, 1.0])
    assert np.allclose([float(lesion[f"{axis}_mm"]) for axis in "xyz"], world[:3], atol=1.0)
    assert 0.001 <= float(lesion["mean_p_value"]) <= 0.01
    values = np.asarray(nibabel.load(tmp_path / "out" / "maps" / "sick.nii.gz").dataobj)
    peak = tuple(int(lesion[f"peak_{axis}"]) for axis in "ijk")
    assert values[peak] == pytest.approx(float(lesion["peak"]), rel=1e-6)
    with Image.open(tmp_path / "out" / "heatmaps" / "sick.png") as picture:
        assert picture.height > 900
    page = (tmp_path / "out" / "report.html").read_text()
    assert "sick" in page
    assert "2 highest slice scores" in page


def test_a_model_of_patches_scores_through_the_job(scans: Any, tmp_path: Path) -> None:
    """D = 0: the map is the z-score of the volume, whatever the windows; a mark comes back to its voxel."""
    model = scans.mirror(
        tmp_path / "m.safetensors", volume={"mode": "patches", "patch": [8, 8, 8], "min_foreground": 0.0}
    )
    values = np.random.default_rng(1).normal(size=(12, 8, 10)).astype(np.float32)
    stored, own = scans.turned(values, scans.oblique(), "PIR")
    scans.save(tmp_path / "a.nii.gz", stored, own)
    assert scans.run(model, tmp_path / "out", tmp_path / "a.nii.gz").exit_code == 0
    found = np.asarray(nibabel.load(tmp_path / "out" / "maps" / "a.nii.gz").dataobj)
    assert np.allclose(found, (stored - stored.mean()) / stored.std(), atol=1e-5)
    assert len(scans.table(tmp_path / "out" / "slices.csv")) == 10
    assert scans.run(model, tmp_path / "out", tmp_path / "a.nii.gz").resumed == 1
    with pytest.raises(ConfigError, match=r"volume\.axes"):
        scans.run(model, tmp_path / "no", tmp_path / "a.nii.gz", overrides=["volume.axes=[0]"])


def test_a_channel_is_chosen_once(scans: Any, tmp_path: Path) -> None:
    """Of a volume of two channels the second is scored, also where each slice is prepared as an image."""
    spread = {"size": [16, 16], "channel": 1, "intensity": {"kind": "zscore"}}
    model = scans.mirror(tmp_path / "m.safetensors", preprocess=spread)
    for name in ("a", "b"):
        scans.save(tmp_path / f"x_{name}.nii.gz", scans.head(1 if name == "a" else 2))
    scans.save(tmp_path / "alone.nii.gz", scans.head(2))
    scans.run(model, tmp_path / "two", f"{tmp_path / 'x_'}#channels=a.nii.gz,b.nii.gz")
    assert scans.table(tmp_path / "two" / "scores.csv")[0]["error"] == ""
    plain = scans.mirror(tmp_path / "p.safetensors", preprocess={**spread, "channel": None})
    scans.run(plain, tmp_path / "one", tmp_path / "alone.nii.gz")
    first, second = (scans.table(tmp_path / name / "scores.csv")[0]["score"] for name in ("two", "one"))
    assert first == second


def test_slices_cut_otherwise_have_no_p_value(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    source = scans.save(tmp_path / "s.nii.gz", scans.head(100, lesion=True))
    scans.run(volumes_model, tmp_path / "other", source, heatmaps=False, overrides=["volume.axes=[0]"])
    assert {row["p_value"] for row in scans.table(tmp_path / "other" / "slices.csv")} == {""}
    assert {row["axis"] for row in scans.table(tmp_path / "other" / "slices.csv")} == {"0"}
    page = (tmp_path / "other" / "report.html").read_text()
    assert "volumes and slices have no p-value" in page
    scans.run(volumes_model, tmp_path / "top", source, heatmaps=False, overrides=["volume.score_slices=1"])
    assert all(row["p_value"] for row in scans.table(tmp_path / "top" / "slices.csv"))
    assert scans.table(tmp_path / "top" / "scores.csv")[0]["p_value"] == ""


def test_small_candidates_and_a_median_are_switches(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    source = scans.save(tmp_path / "s.nii.gz", scans.head(100, lesion=True))
    scans.run(volumes_model, tmp_path / "all", source, heatmaps=False)
    scans.run(volumes_model, tmp_path / "big", source, heatmaps=False, overrides=["volume.min_volume_mm3=20"])
    every, large = (scans.table(tmp_path / name / "lesions.csv") for name in ("all", "big"))
    assert [row for row in every if float(row["volume_mm3"]) >= 20] == large
    assert len(large) < len(every)
    scans.run(volumes_model, tmp_path / "median", source, heatmaps=False, overrides=["volume.median=3"])
    plain, smoothed = (
        np.asarray(nibabel.load(tmp_path / name / "maps" / "s.nii.gz").dataobj) for name in ("all", "median")
    )
    assert smoothed[8, 8, 8] == pytest.approx(float(np.median(plain[7:10, 7:10, 7:10])), rel=1e-5)
    row = scans.table(tmp_path / "median" / "scores.csv")[0]
    assert row["p_value"] == row["threshold"] == ""


def test_a_model_of_images_scores_a_stack_as_its_images(scans: Any, world: Any, tmp_path: Path) -> None:
    """Slices are prepared as the images that the model was trained on: the same scores to the bit."""
    world.write_images(tmp_path / "s", 4, 700)
    scans.run(world.model, tmp_path / "images", tmp_path / "s")
    scans.run(world.model, tmp_path / "volume", f"{tmp_path / 's'}#stack")
    images = [row["score"] for row in scans.table(tmp_path / "images" / "scores.csv")]
    slices = scans.table(tmp_path / "volume" / "slices.csv")
    assert [row["score"] for row in sorted(slices, key=lambda row: int(row["slice"]))] == images
    assert all(row["p_value"] for row in slices)
    row = scans.table(tmp_path / "volume" / "scores.csv")[0]
    assert float(row["score"]) == pytest.approx(sum(sorted(map(float, images))[-3:]) / 3, rel=1e-5)
    assert row["p_value"] == ""
    stored = np.asarray(nibabel.load(next((tmp_path / "volume" / "maps").iterdir())).dataobj)
    for n, path in enumerate(sorted((tmp_path / "images" / "maps").iterdir())):
        assert np.array_equal(stored[:, :, n], np.load(path).T)


def test_uncalibrated_runs_draw_on_one_scale(scans: Any, tmp_path: Path) -> None:
    model = scans.mirror(tmp_path / "m.safetensors", volume={"min_foreground": 0.0})
    for n in range(2):
        scans.save(tmp_path / "in" / f"{n}.nii.gz", scans.head(n))
    scans.run(model, tmp_path / "out", tmp_path / "in")
    assert len(list((tmp_path / "out" / "heatmaps").glob("*.png"))) == 2
    assert scans.table(tmp_path / "out" / "lesions.csv") == []


def test_a_slice_of_the_file_has_one_row_the_loudest_of_those_the_model_saw() -> None:
    found = [
        {"axis": 2, "slice": 1, "score": 0.5, "p_value": 0.2},
        {"axis": 2, "slice": 0, "score": 4.8, "p_value": 0.1},
        {"axis": 2, "slice": 0, "score": 4.7, "p_value": 0.3},
    ]
    rows = list(volume_scoring.slice_rows([{"id": "a", "slices": found}, {"id": "failed"}]))
    assert [(row["slice"], row["score"], row["p_value"]) for row in rows] == [(0, 4.8, 0.1), (1, 0.5, 0.2)]
