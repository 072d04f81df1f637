"""Given brain masks from training to evaluation: used, said, compared with the calibration's, and kept apart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from anodiff.anomaly.volumes import VolumeDetector
from anodiff.data.seen import SeenImages
from anodiff.data.volumes import read_volume
from anodiff.errors import ConfigError, DataError
from anodiff.model import load
from anodiff.pipelines import calibrate, cli, evaluate
from anodiff.training.volumes import volume_hash

QUIET: dict[str, Any] = {"device": "cpu", "quiet": True}
#: a map of this recipe is the image itself, (v - low) / (high - low) * 2 - 1 of the foreground's percentiles
PERCENTILE = {"size": [16, 16], "intensity": {"kind": "percentile", "low": 5, "high": 95}}
SECTION = {"axes": [2], "score_slices": 2, "min_foreground": 0.0, "statistics": "volume", "orientation": "RAS"}


def lump() -> np.ndarray:
    """A part of the head, off its middle."""
    mask = np.zeros((16, 16, 16), dtype=np.uint8)
    mask[5:11, 4:12, 4:9] = 1
    return mask


def map_of(out: Path, name: str) -> np.ndarray:
    return np.asarray(nibabel.load(out / "maps" / f"{name}.nii.gz").dataobj)


def expected_map(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values[mask > 0].astype(np.float64), (5, 95))
    return np.clip((values - low) / (high - low) * 2 - 1, -1, 1)


@pytest.mark.parametrize("how", ["name", "pattern", "file", "csv"])
def test_score_takes_it_from_wherever_it_is_named(scans: Any, tmp_path: Path, how: str) -> None:
    model = scans.mirror(tmp_path / "m.safetensors", preprocess=PERCENTILE, volume=SECTION)
    values, mask = scans.head(1), lump()
    affine = scans.oblique()
    scan = scans.save(tmp_path / "in" / "x.nii.gz", *scans.turned(values, affine, "LPI"))
    name = {"name": "x_brain_mask.nii.gz", "pattern": "x_bet.nii.gz"}.get(how, "elsewhere/m.nii.gz")
    home = tmp_path / ("in" if how in ("name", "pattern") else "")
    given = scans.save(home / name, *scans.turned(mask, affine, "ASL"))
    inputs: Path = tmp_path / "in"
    options = {"pattern": {"foreground": "{stem}_bet.nii.gz"}, "file": {"foreground": str(given)}}.get(how, {})
    if how == "csv":
        inputs = tmp_path / "t.csv"
        inputs.write_text("path,foreground\nin/x.nii.gz,elsewhere/m.nii.gz\n")
    summary = scans.run(model, tmp_path / "out", inputs, **options)
    assert (summary.ok, summary.failed) == (1, 0)  # the mask is no input
    found, _ = scans.turned(map_of(tmp_path / "out", scans.table(tmp_path / "out" / "scores.csv")[0]["id"]),
                            np.eye(4), "LPI")  # fmt: skip
    slices = mask.any(axis=(0, 1))  # slices without any of it are not scored
    np.testing.assert_allclose(found[:, :, slices], expected_map(values, mask)[:, :, slices], atol=1e-4)
    assert not found[:, :, ~slices].any()
    assert read_volume(scan).shape == (16, 16, 16)


def test_what_is_outside_is_no_candidate(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    values = scans.head(3)
    values[2:5, 7:10, 11:14] += 200  # anomalous, and outside the mask
    values[7:10, 6:9, 5:8] += 200
    scans.save(tmp_path / "x.nii.gz", values)
    scans.run(volumes_model, tmp_path / "all", tmp_path / "x.nii.gz")
    scans.save(tmp_path / "x_brainmask.nii.gz", lump())
    scans.run(volumes_model, tmp_path / "given", tmp_path / "x.nii.gz")
    everywhere, inside = (
        [[int(row[f"peak_{axis}"]) for axis in "ijk"] for row in scans.table(tmp_path / out / "lesions.csv")]
        for out in ("all", "given")
    )
    assert any(k >= 11 for _, _, k in everywhere)
    assert inside
    assert all(lump()[tuple(peak)] for peak in inside)


def test_a_changed_mask_is_a_changed_volume(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    lines = ["path,label,foreground"]
    for n, label in enumerate((0, 1)):
        scans.save(tmp_path / f"x{n}.nii.gz", scans.head(10 + n, lesion=bool(label)))
        scans.save(tmp_path / f"m{n}.nii.gz", lump())
        lines.append(f"x{n}.nii.gz,{label},m{n}.nii.gz")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    arguments = (volumes_model, tmp_path / "t.csv", tmp_path / "out")
    evaluate.run(*arguments, heatmaps=False, **QUIET)
    before = [map_of(tmp_path / "out", f"x{n}") for n in (0, 1)]
    summary, _ = evaluate.run(*arguments, heatmaps=False, **QUIET)
    assert summary.resumed == 2
    mask = lump()
    mask[:, :, :6] = 0
    os.utime(scans.save(tmp_path / "m1.nii.gz", mask), (1, 1))  # older than all others
    summary, _ = evaluate.run(*arguments, heatmaps=False, **QUIET)
    assert summary.resumed == 1
    after = [map_of(tmp_path / "out", f"x{n}") for n in (0, 1)]
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).mean() > 0.1
    summary, _ = evaluate.run(*arguments, heatmaps=False, foreground="none", **QUIET)
    assert summary.resumed == 0


def test_unlike_the_calibration_is_remarked(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    given = scans.save(tmp_path / "m.nii.gz", lump())
    scan = scans.save(tmp_path / "x.nii.gz", scans.head(30))
    scans.run(volumes_model, tmp_path / "plain", scan)
    scans.run(volumes_model, tmp_path / "given", scan, foreground=str(given))
    remarks = [scans.table(tmp_path / out / "scores.csv")[0]["remarks"] for out in ("plain", "given")]
    assert "foreground" not in remarks[0]
    assert "its foreground is given, where those of the model's normal volumes were estimated" in remarks[1]
    # and the other way about
    lines = ["path,label,group,foreground"]
    for n in range(4):
        scans.save(tmp_path / f"n{n}.nii.gz", scans.head(n))
        lines.append(f"n{n}.nii.gz,0,p{n},m.nii.gz")
    (tmp_path / "n.csv").write_text("\n".join(lines) + "\n")
    calibrate.run(volumes_model, tmp_path / "n.csv", tmp_path / "g.safetensors", allow_trained=True, **QUIET)
    calibration = load(tmp_path / "g.safetensors").calibrations["one-step"]
    assert calibration.origin.given == 1
    scans.run(tmp_path / "g.safetensors", tmp_path / "plain2", scan)
    scans.run(tmp_path / "g.safetensors", tmp_path / "given2", scan, foreground=str(given))
    remarks = [scans.table(tmp_path / out / "scores.csv")[0]["remarks"] for out in ("plain2", "given2")]
    assert "its foreground is estimated, where those of the model's normal volumes were given" in remarks[0]
    assert "foreground" not in remarks[1]


def test_a_given_mask_does_not_hide_what_was_learnt_from(
    scans: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,label,group,foreground"]
    for n in range(4):
        scans.save(tmp_path / f"n{n}.nii.gz", scans.head(n))
        lines.append(f"n{n}.nii.gz,0,p{n},m.nii.gz")
    scans.save(tmp_path / "m.nii.gz", lump())
    (tmp_path / "n.csv").write_text("\n".join(lines) + "\n")
    model = load(volumes_model)
    model.seen = SeenImages.of(volume_hash(read_volume(tmp_path / f"n{n}.nii.gz")) for n in range(3))
    model.save(tmp_path / "learnt.safetensors")
    arguments = (tmp_path / "learnt.safetensors", tmp_path / "n.csv")
    with pytest.raises(DataError, match="expected normal volumes that the model has not learnt from, found 3 of 4"):
        calibrate.run(*arguments, tmp_path / "a.safetensors", **QUIET)
    capsys.readouterr()
    calibrate.run(*arguments, tmp_path / "b.safetensors", allow_trained=True, device="cpu")
    said = capsys.readouterr().err
    assert "learnt from 3 of 4 of these normals" in said
    assert "the foreground of 4 of 4 volumes is given" in said
    assert "trained on images" not in said


def test_a_required_mask_that_is_not_there_is_a_row(scans: Any, tmp_path: Path) -> None:
    model = scans.mirror(tmp_path / "m.safetensors", preprocess={**PERCENTILE, "foreground": "given"}, volume=SECTION)
    for name in ("a", "b", "c", "d"):
        scans.save(tmp_path / "in" / f"{name}.nii.gz", scans.head(5))
    scans.save(tmp_path / "in" / "a_brain.nii.gz", lump())
    scans.save(tmp_path / "in" / "b_brain.nii.gz", lump()[:, :, :-1])
    scans.save(tmp_path / "in" / "c_brain.nii.gz", lump() * 0)
    scans.run(model, tmp_path / "out", tmp_path / "in")
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "ok", "b": "failed", "c": "failed", "d": "failed",
    }  # fmt: skip
    for name, match in (("b", "expected 16 x 16 x 16 voxels"), ("c", "an empty one"), ("d", "neither d_brain_mask")):
        assert match in rows[name]["error"]
        assert f"{name}.nii.gz" in rows[name]["error"]
    assert "b_brain.nii.gz" in rows["b"]["error"]
    with pytest.raises(ConfigError, match="found one file for"):
        scans.run(model, tmp_path / "no", tmp_path / "in", foreground="m.nii.gz")


def test_the_detector_takes_an_array_or_a_file(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    detector = VolumeDetector(load(volumes_model), "one-step", device="cpu")
    volume = read_volume(scans.save(tmp_path / "x.nii.gz", scans.head(8)))
    file = scans.save(tmp_path / "m.nii.gz", lump())
    by_array, by_file = detector.prepare(volume, foreground=lump()), detector.prepare(volume, foreground=file)
    assert by_array.foreground.equal(by_file.foreground)
    assert by_array.image.equal(by_file.image)
    assert not by_array.foreground.equal(detector.prepare(volume).foreground)
    np.testing.assert_array_equal(by_array.back(by_array.foreground.float()) > 0.5, lump() > 0)


def test_the_command_line_says_what_it_took(
    scans: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans.save(tmp_path / "in" / "x.nii.gz", scans.head(8))
    scans.save(tmp_path / "in" / "x_m.nii.gz", lump())
    arguments = [
        "score",
        str(volumes_model),
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert cli.main([*arguments, "--foreground", "{stem}_m.nii.gz"]) == 0
    said = capsys.readouterr().err
    assert "the foreground of 1 of 1 inputs is given (that of" in said
    assert "x_m.nii.gz" in said


def test_restoring_takes_it_by_its_name(scans: Any, tmp_path: Path) -> None:
    from anodiff.pipelines import denoise
    from anodiff.pipelines.common import Common

    common = Common(device="cpu", quiet=True)
    model = scans.mirror(tmp_path / "m.safetensors", preprocess={**PERCENTILE, "foreground": "given"}, volume=SECTION)
    values = scans.head(5)
    scans.save(tmp_path / "in" / "x.nii.gz", values)
    scans.save(tmp_path / "in" / "x_brain.nii.gz", lump())
    summary = denoise.run(model, [str(tmp_path / "in")], tmp_path / "out", sigma="0.2", common=common)
    assert (summary.ok, summary.failed) == (1, 0)
    # D = 0: every voxel of the model's range goes to the middle of the percentiles inside
    low, high = np.percentile(values[lump() > 0].astype(np.float64), (5, 95))
    restored = np.asarray(nibabel.load(tmp_path / "out" / "images" / "x.nii.gz").dataobj)
    within = (values > low) & (values < high)
    np.testing.assert_allclose(restored[within], (low + high) / 2, rtol=1e-3)
