"""Restoring jobs on volumes: the same grid and header codes, closed forms, masks, resumed runs."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from anodiff.config import parse_config
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.restoration.operators import gaussian_blur

Run = Callable[..., int]
QUICK = ("--device", "cpu", "--steps", "2")
SPREAD = 0.4
#: -1 and 1 of the model are 0 and 1000
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "preprocess": {"size": [16, 16], "value_range": [0, 1000]},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "diffusion": {"sigma_data": SPREAD},
    "engine": {"network_batch": 4},
}
KINDS: dict[str, dict[str, Any] | None] = {
    "patches": {"mode": "patches", "patch": [8, 8, 8], "orientation": "PIR", "spacing": [2.0, 0, 0]},
    "neighbours": {"axes": [1], "neighbours": 1, "orientation": "LPI"},
    "slices": {"axes": [0, 2]},
    "images": None,
}


def saved(path: Path, kind: str, **changes: Any) -> Path:
    """A model whose network is 0: with the prediction "edm" it is the exact denoiser of N(0, SPREAD^2)."""
    volume = KINDS[kind]
    config = parse_config({**RECIPE, **({} if volume is None else {"volume": volume}), **changes})
    DiffusionModel(config, build_denoiser(config)).save(path)
    return path


def oblique(shape: tuple[int, int, int] = (9, 12, 10)) -> tuple[np.ndarray, np.ndarray]:
    """int16 voxels, and an affine that is turned and has unlike spacings."""
    turn, cosine, sine = np.eye(4), math.cos(0.3), math.sin(0.3)
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    affine = turn @ np.diag([-1.5, 2.0, 1.25, 1.0])
    affine[:3, 3] = [10, -20, 5]
    return np.random.default_rng(0).integers(100, 900, shape).astype(np.int16), affine


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values, affine = oblique()
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def hole_of(path: Path, where: tuple[slice, slice, slice], like: Path) -> np.ndarray:
    """Writes a mask on the grid of a volume; returns it."""
    source = nibabel.load(like)
    mask = np.zeros(source.shape, dtype=np.uint8)
    mask[where] = 1
    nibabel.save(nibabel.Nifti1Image(mask, source.affine), path)
    return mask > 0


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_mask_that_is_taken_by_its_name_is_said(
    anodiff: Run, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model.safetensors", "patches")
    words = ("denoise", model, scan, "--sigma", 0.3, *QUICK)
    assert anodiff(*words, "--output", tmp_path / "without") == 0
    assert "foreground" not in capsys.readouterr().err
    hole_of(tmp_path / "scan_brain_mask.nii.gz", (slice(2, 7), slice(2, 9), slice(2, 8)), scan)
    assert anodiff(*words, "--output", tmp_path / "with") == 0
    said = "the foreground of 1 of 1 inputs is given"
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "with" / "report.html").read_text()


@pytest.mark.parametrize("kind", ["neighbours", "slices", "patches"])
def test_denoising_is_the_closed_form_on_the_same_grid(anodiff: Run, scan: Path, tmp_path: Path, kind: str) -> None:
    changes = {"volume": {**(KINDS[kind] or {}), "spacing": None}, "preprocess": {**RECIPE["preprocess"]}}
    height, width = (10, 9) if kind == "neighbours" else (16, 16)
    if kind == "neighbours":  # the planes' own size, so that nothing is resized
        changes["preprocess"]["size"] = [height, width]
    model = saved(tmp_path / "model.safetensors", kind, **changes)
    out, sigma = tmp_path / "out", 0.3
    assert anodiff("denoise", model, scan, "--sigma", sigma, "--output", out, *QUICK) == 0
    before, after = nibabel.load(scan), nibabel.load(out / "images" / "scan.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.shape == before.shape
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert after.header[name] == before.header[name]
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    row = table(out / "results.csv")[0]
    assert (row["status"], row["sigma"], row["sigma_from"]) == ("ok", "0.3", "given")
    assert (out / "report.html").read_text().count("data:image/") == 2
    assert (out / "slices.csv").exists() == (kind != "patches")
    if kind == "slices":  # planes that are resized come back smoothed; their mean stays
        np.testing.assert_allclose(voxels(out / "images" / "scan.nii.gz").mean(), 500, atol=20)
        return
    shrink = SPREAD**2 / (SPREAD**2 + sigma**2)
    expected = 500 + shrink * (voxels(scan).astype(float) - 500)
    np.testing.assert_allclose(after.get_fdata(), expected, atol=0.05)
    assert int(row["nfe"]) == (12 if kind == "neighbours" else 2 * 2 * 2)


def test_other_formats_become_nifti_in_the_same_place(anodiff: Run, tmp_path: Path) -> None:
    values, affine = oblique()
    nibabel.save(nibabel.MGHImage(values, affine), tmp_path / "a.mgz")
    model = saved(tmp_path / "model.safetensors", "neighbours")
    assert anodiff("denoise", model, tmp_path / "a.mgz", "--sigma", 0.1, "--output", tmp_path / "out", *QUICK) == 0
    found = nibabel.load(tmp_path / "out" / "images" / "a.nii.gz")
    assert found.shape == values.shape
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)


def test_resampled_volumes_come_back_on_their_own_grid(anodiff: Run, scan: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", "patches")
    assert anodiff("denoise", model, scan, "--sigma", 0.01, "--output", tmp_path / "out", *QUICK) == 0
    before, after = nibabel.load(scan), nibabel.load(tmp_path / "out" / "images" / "scan.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    # only the axis that is resampled loses detail: its mean over the plane stays
    assert abs(after.get_fdata().mean() - before.get_fdata().mean()) < 10
    assert np.corrcoef(after.get_fdata().ravel(), before.get_fdata().ravel())[0, 1] > 0.5


def test_levels_and_uncertainty_of_slices_and_volumes(anodiff: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sigmas = np.where(np.arange(12) < 6, 0.05, 0.2)
    x = rng.normal(0, 1, (16, 16, 12)) * sigmas
    nibabel.save(nibabel.Nifti1Image((500 * (x + 1)).astype(np.float32), np.eye(4)), tmp_path / "a.nii")
    slices = saved(tmp_path / "s.safetensors", "slices", volume={"axes": [2], "orientation": None})
    assert anodiff("denoise", slices, tmp_path / "a.nii", "--output", tmp_path / "s", *QUICK) == 0
    rows = table(tmp_path / "s" / "slices.csv")
    assert [row["slice"] for row in rows] == [str(n) for n in range(12)]
    np.testing.assert_allclose([float(row["sigma"]) for row in rows], sigmas, rtol=0.3)
    whole = saved(tmp_path / "p.safetensors", "patches", volume={**KINDS["patches"], "spacing": None})
    nibabel.save(nibabel.Nifti1Image((500 * (x[:8, :8, :9] + 1)).astype(np.float32), np.eye(4)), tmp_path / "b.nii")
    words = ("--sigma", 0.3, "--uncertainty", "--output", tmp_path / "p")
    assert anodiff("denoise", whole, tmp_path / "b.nii", *words, *QUICK) == 0
    deviation = 0.3 * math.sqrt(SPREAD**2 / (SPREAD**2 + 0.3**2))  # of the posterior of N(0, SPREAD^2)
    np.testing.assert_allclose(voxels(tmp_path / "p" / "uncertainty" / "b.nii.gz"), 500 * deviation, rtol=1e-3)


@pytest.mark.parametrize("kind", ["patches", "neighbours", "images"])
def test_inpainting_changes_the_hole_alone_and_does_not_look_into_it(
    anodiff: Run, scan: Path, tmp_path: Path, kind: str
) -> None:
    changes = {"volume": {**KINDS["patches"], "spacing": None}} if kind == "patches" else {}  # type: ignore[dict-item]
    model = saved(tmp_path / "model.safetensors", kind, **changes)
    hole = hole_of(tmp_path / "hole.nii.gz", (slice(3, 6), slice(4, 8), slice(2, 5)), scan)
    source = nibabel.load(scan)
    found = []
    for value in (0, 1000):
        values = voxels(scan).copy()
        values[hole] = value
        folder = tmp_path / f"in{value}"
        folder.mkdir()
        nibabel.save(nibabel.Nifti1Image(values, source.affine), folder / "x.nii.gz")
        words = ("--mask", tmp_path / "hole.nii.gz", "--output", tmp_path / f"out{value}")
        assert anodiff("inpaint", model, folder / "x.nii.gz", *words, *QUICK) == 0
        found.append(voxels(tmp_path / f"out{value}" / "images" / "x.nii.gz"))
        np.testing.assert_array_equal(found[-1][~hole], values[~hole])
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0][hole].std() > 1


@pytest.mark.parametrize("kind", ["patches", "neighbours", "images"])
def test_an_edit_starts_from_what_the_mask_holds(anodiff: Run, scan: Path, tmp_path: Path, kind: str) -> None:
    changes = {"volume": {**KINDS["patches"], "spacing": None}} if kind == "patches" else {}  # type: ignore[dict-item]
    model = saved(tmp_path / "model.safetensors", kind, **changes)
    hole = hole_of(tmp_path / "hole.nii.gz", (slice(3, 6), slice(4, 8), slice(2, 5)), scan)
    source, found = nibabel.load(scan), []
    for value in (200, 800):
        values = voxels(scan).copy()
        values[hole] = value
        nibabel.save(nibabel.Nifti1Image(values, source.affine), tmp_path / f"x{value}.nii.gz")
        words = ("--sigma", 0.2, "--mask", tmp_path / "hole.nii.gz", "--output", tmp_path / f"out{value}")
        assert anodiff("edit", model, tmp_path / f"x{value}.nii.gz", *words, *QUICK) == 0
        found.append(voxels(tmp_path / f"out{value}" / "images" / f"x{value}.nii.gz"))
        np.testing.assert_array_equal(found[-1][~hole], values[~hole])
        assert (found[-1][hole] != value).all()
    # 0.2 keeps most of it: the shrinkage of N(0, 0.4^2) is 0.8 of the way from 500
    assert found[1][hole].mean() - found[0][hole].mean() > 200
    assert anodiff("edit", model, scan, "--sigma", 0.2, "--output", tmp_path / "all", *QUICK) == 0
    after = nibabel.load(tmp_path / "all" / "images" / "scan.nii.gz")
    np.testing.assert_array_equal(after.affine, source.affine)
    assert (after.get_fdata() != voxels(scan)).mean() > 0.9


def test_missing_slices_of_a_volume_are_filled_unseen(anodiff: Run, scan: Path, tmp_path: Path) -> None:
    volume = {**KINDS["patches"], "spacing": None}  # type: ignore[dict-item]
    model = saved(tmp_path / "model.safetensors", "patches", volume=volume)
    missing = np.zeros((9, 12, 10), dtype=bool)
    missing[:, :, 2::3] = True
    hole = tmp_path / "missing.nii.gz"
    nibabel.save(nibabel.Nifti1Image(missing.astype(np.uint8), nibabel.load(scan).affine), hole)
    found = []
    runs = (("a", 0, "slices:missing:3"), ("b", 1000, "slices:missing:3"), ("c", 0, f"mask:{hole}"))
    for name, value, operator in runs:
        values = np.where(missing, value, voxels(scan)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, nibabel.load(scan).affine), tmp_path / "x.nii.gz")
        out = tmp_path / name
        assert anodiff("restore", model, tmp_path / "x.nii.gz", "--operator", operator, "--output", out, *QUICK) == 0
        found.append(voxels(out / "images" / "x.nii.gz"))
        np.testing.assert_array_equal(found[-1][~missing], values[~missing])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert found[0][missing].std() > 1


@pytest.mark.parametrize(
    ("kind", "axis", "says"),
    [
        ("neighbours", 1, ""),  # along its own axis: the slices beside are seen
        ("neighbours", 2, ""),
        ("images", 1, ""),
        ("images", -1, ""),
        ("images", 0, "found slices of which nothing was measured"),
        ("resized", 1, "as many slices along y on the model's grid as in the file, 12, found 8"),
        ("flat", 0, "found 1 along z, all of them measured"),
    ],
)
def test_slices_are_missing_along_any_axis_of_the_file(
    anodiff: Run, tmp_path: Path, kind: str, axis: int, says: str
) -> None:
    values, affine = oblique((9, 12, 1 if kind == "flat" else 10))
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "x.nii.gz")
    # the planes' own size, so that every slice is one of the model's; smaller where they are to be resized
    size = {"neighbours": [10, 9], "resized": [8, 8]}.get(kind, [12, 9])
    preprocess = {**RECIPE["preprocess"], "size": size}
    model = saved(tmp_path / "m.safetensors", kind if kind == "neighbours" else "images", preprocess=preprocess)
    words = ("--operator", f"slices:missing:3:{axis}", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", model, tmp_path / "x.nii.gz", *words) == int(bool(says))
    row = table(tmp_path / "out" / "results.csv")[0]
    if says:
        assert says in row["error"]
        assert "x.nii.gz" in row["error"]
        return
    changed = voxels(tmp_path / "out" / "images" / "x.nii.gz") != values
    lost = np.zeros(values.shape, dtype=bool)
    np.moveaxis(lost, 2 - axis % 3, 0)[2::3] = True
    np.testing.assert_array_equal(changed, lost)


def test_an_average_of_volumes_leaves_no_spread(anodiff: Run, scan: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", "patches")
    words = ("inpaint", model, scan, "--box", "3,2,1,2,3,4", *QUICK)
    found = []
    for average in (1, 3):
        out = tmp_path / str(average)
        assert anodiff(*words, "--average", average, "--output", out) == 0
        assert not (out / "uncertainty").exists()
        found.append(voxels(out / "images" / "scan.nii.gz"))
    changed = found[0] != voxels(scan)
    assert found[1][changed].std() < 0.85 * found[0][changed].std()  # of three independent samples: 0.58
    assert anodiff(*words, "--average", 3, "--grid", "log", "--output", tmp_path / "3") == 2  # another run


@pytest.mark.parametrize(("job", "along"), [("denoise", "i and k"), ("edit", "i")])
def test_the_axes_that_are_taken_are_said(
    anodiff: Run, scan: Path, tmp_path: Path, job: str, along: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model.safetensors", "images")
    words = ("--sigma", 0.2, "--set", "volume.axes=[0,2]", "--output", tmp_path / "out", *QUICK)
    assert anodiff(job, model, scan, *words) == 0
    assert f"slices along {along} of each volume" in capfd.readouterr().err
    calls = int(table(tmp_path / "out" / "results.csv")[0]["nfe"])
    assert calls == (9 + 10 if job == "denoise" else 2 * 9)


def test_what_is_of_images_alone_is_refused_at_once(
    anodiff: Run, scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    preprocess = {**RECIPE["preprocess"], "resize": "none"}
    every_size = saved(tmp_path / "any.safetensors", "images", preprocess=preprocess)
    out = tmp_path / "out"
    assert anodiff("edit", every_size, scan, "--sigma", 0.2, "--output", out, *QUICK) == 2
    assert "any.safetensors: expected a model that may resize slices" in capfd.readouterr().err
    assert anodiff("edit", every_size, scan, "--class", "healthy", "--sigma", 0.2, "--output", out, *QUICK) == 2
    assert f"--class: expected images, found the volume {scan}" in capfd.readouterr().err
    assert not out.exists()


def test_a_blurred_volume_agrees_with_what_was_measured(anodiff: Run, tmp_path: Path) -> None:
    volume = {"mode": "patches", "patch": [8, 8, 8], "spacing": None}
    model = saved(tmp_path / "model.safetensors", "patches", volume=volume)
    blur = gaussian_blur(0.8)
    truth = torch.from_numpy(np.random.default_rng(0).uniform(-0.6, 0.6, (1, 1, 8, 8, 8))).float()
    measured = ((blur(truth)[0, 0].numpy() + 1) * 500).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(measured, np.eye(4)), tmp_path / "x.nii.gz")
    words = ("--operator", "blur:gaussian:0.8", "--solver", "projected", "--output", tmp_path / "out", *QUICK)
    assert anodiff("restore", model, tmp_path / "x.nii.gz", *words) == 0
    found = torch.from_numpy(nibabel.load(tmp_path / "out" / "images" / "x.nii.gz").get_fdata() / 500 - 1)[None, None]
    np.testing.assert_allclose(blur(found.float()).numpy()[0, 0], measured / 500 - 1, atol=2e-3)
    # all frequencies but the highest of each axis were measured, and without noise
    np.testing.assert_allclose(found, truth, atol=0.02)
    assert float((truth - (torch.from_numpy(measured) / 500 - 1)).abs().max()) > 0.2


@pytest.mark.parametrize("kind", ["images", "slices"])
def test_volumes_are_styled_slice_by_slice(anodiff: Run, tmp_path: Path, kind: str) -> None:
    values, affine = oblique((14, 16, 12))
    scan = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), scan)
    # the planes' own size, so that nothing is resized
    preprocess = {**RECIPE["preprocess"], "size": [16, 14] if kind == "images" else [12, 16]}
    model = saved(tmp_path / "a.safetensors", kind, preprocess=preprocess)
    quiet = saved(tmp_path / "b.safetensors", kind, preprocess=preprocess, diffusion={"sigma_data": SPREAD / 2})
    words = ("--target-model", quiet, "--output", tmp_path / "out", "--device", "cpu", "--steps", 8)
    assert anodiff("stylize", model, scan, *words) == 0
    before, after = nibabel.load(scan), nibabel.load(tmp_path / "out" / "images" / "scan.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    # from N(0, SPREAD^2) to half the spread
    assert after.get_fdata().std() == pytest.approx(before.get_fdata().std() / 2, rel=0.15)
    row = table(tmp_path / "out" / "results.csv")[0]
    assert 0 < float(row["content_ssim"]) < 1
    assert float(row["cycle_rmse"]) < 0.05
    assert float(row["style_distance"]) < float(row["style_distance_before"])
    axes = ("--set", "volume.axes=[1]", "--output", tmp_path / "other", *QUICK)
    assert anodiff("stylize", model, scan, "--target-model", quiet, *axes) == 0
    if kind == "images":
        plane = (voxels(scan)[:, :, 0].astype(float) / 4).astype(np.uint8)
        Image.fromarray(plane).save(tmp_path / "look.png")
        words = ("--style", tmp_path / "look.png", "--no-cycle", "--output", tmp_path / "look", *QUICK)
        assert anodiff("stylize", model, scan, *words) == 0
        assert table(tmp_path / "look" / "results.csv")[0]["cycle_rmse"] == ""


def test_a_box_is_given_in_z_y_x_and_masks_by_name(anodiff: Run, scan: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors", "patches", volume={**KINDS["patches"], "spacing": None})
    (tmp_path / "masks").mkdir()
    hole = hole_of(tmp_path / "masks" / "scan_mask.nii.gz", (slice(1, 5), slice(2, 5), slice(3, 5)), scan)
    for name, words in (("box", ("--box", "3,2,1,2,3,4")), ("folder", ("--mask", tmp_path / "masks"))):
        assert anodiff("inpaint", model, scan, *words, "--output", tmp_path / name, *QUICK) == 0
        changed = voxels(tmp_path / name / "images" / "scan.nii.gz") != voxels(scan)
        np.testing.assert_array_equal(changed, hole)


def test_a_mask_of_another_grid_and_a_broken_volume_are_rows_and_the_run_resumes(
    anodiff: Run, scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model.safetensors", "neighbours")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels(scan)[:, :, :6], np.diag([1, 1, 2, 1])), folder / "other.nii.gz")
    (folder / "broken.nii").write_bytes(b"no volume at all")
    scan.rename(folder / "scan.nii.gz")
    hole_of(tmp_path / "hole.nii.gz", (slice(2, 4), slice(2, 4), slice(2, 4)), folder / "scan.nii.gz")
    words = ("inpaint", model, folder, "--mask", tmp_path / "hole.nii.gz", "--output", out, *QUICK)
    assert anodiff(*words) == 1
    rows = {row["id"]: row for row in table(out / "results.csv")}
    assert rows["scan"]["status"] == "ok"
    assert rows["other"]["status"] == "failed"
    assert "hole.nii.gz" in rows["other"]["error"]
    assert "expected a mask" in rows["other"]["error"]
    stamp = (out / "images" / "scan.nii.gz").stat().st_mtime_ns
    capfd.readouterr()
    assert anodiff(*words) == 1
    assert (out / "images" / "scan.nii.gz").stat().st_mtime_ns == stamp
    assert "from an earlier run" in capfd.readouterr().err
    assert anodiff(*words, "--seed", 5) == 2  # another seed is another run
    assert anodiff(*words, "--seed", 5, "--overwrite") == 1


def test_where_anomalous_paints_above_the_voxel_threshold(anodiff: Run, world: Any, tmp_path: Path) -> None:
    planes = np.stack([world.picture(300 + n, lesion=n > 2)[0].T for n in range(6)], axis=2)
    nibabel.save(nibabel.Nifti1Image(planes, np.diag([-1, -1, -1, 1])), tmp_path / "a.nii.gz")
    words = ("--where-anomalous", "--output", tmp_path / "out", *QUICK)
    assert anodiff("inpaint", world.raw, tmp_path / "a.nii.gz", *words) == 2
    assert anodiff("inpaint", world.model, tmp_path / "a.nii.gz", *words) == 0
    mask, after = voxels(tmp_path / "out" / "masks" / "a.nii.gz") > 0, voxels(tmp_path / "out" / "images" / "a.nii.gz")
    assert mask.any()
    np.testing.assert_array_equal(after[~mask], planes[~mask])
    assert (after[mask] != planes[mask]).mean() > 0.9


@pytest.mark.parametrize("kind", ["patches", "neighbours"])
def test_generated_volumes_have_the_recipe_s_grid(anodiff: Run, tmp_path: Path, kind: str) -> None:
    changes = {"volume": {**KINDS["patches"], "size": [8, 10, 12], "spacing": [2, 0, 3]}} if kind == "patches" else {}  # type: ignore[dict-item]
    model, out = saved(tmp_path / "model.safetensors", kind, **changes), tmp_path / "out"
    words = ("--device", "cpu", "--steps", 16)
    assert anodiff("generate", model, "-n", 1, "--output", out, *words) == 0
    first = nibabel.load(out / "images" / "000000.nii.gz")
    codes = "".join(nibabel.aff2axcodes(first.affine))
    if kind == "patches":
        assert (first.shape, codes) == ((8, 10, 12), "PIR")
        np.testing.assert_allclose(first.header.get_zooms(), (2, 1, 3))
    else:  # three neighbours across the second axis
        assert (first.shape, codes) == ((16, 3, 16), "LPI")
    np.testing.assert_allclose(first.affine @ [*(np.array(first.shape) - 1) / 2, 1], [0, 0, 0, 1], atol=1e-5)
    values = first.get_fdata()
    assert values.std() == pytest.approx(SPREAD, rel=0.15)  # what the model has learnt
    assert anodiff("generate", model, "-n", 2, "--output", out, *words) == 0
    np.testing.assert_array_equal(voxels(out / "images" / "000000.nii.gz"), values)
    assert not np.array_equal(voxels(out / "images" / "000001.nii.gz"), values)
    assert (out / "report.html").read_text().count("data:image/") == 2


def test_generated_volumes_may_be_larger_than_the_patch(anodiff: Run, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "model.safetensors", "patches"), tmp_path / "out"
    words = ("--device", "cpu", "--steps", 16, "--size", "20,9,24")
    assert anodiff("generate", model, "-n", 1, "--output", out, *words) == 0
    values = voxels(out / "images" / "000000.nii.gz")
    assert values.shape == (20, 9, 24)
    assert values.std() == pytest.approx(SPREAD, rel=0.1)
    assert values[:, :, 16:].std() == pytest.approx(SPREAD, rel=0.15)  # also beyond the first window


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("inpaint", "--box", "1,2,3,4"), "--box: expected Z,Y,X,D,H,W"),
        (("inpaint", "--mask", "nowhere.nii.gz"), "no such path"),
        (("inpaint", "--mask", "nowhere.nii.gz", "--box", "0,0,0,1,1,1"), "exactly one"),
        (("denoise", "--npy"), "--npy: expected none for volumes"),
        (("denoise", "--set", "volume.neighbours=2"), "volume.neighbours"),
        (("edit", "--sigma", "0.5", "--npy"), "--npy: expected none for volumes"),
        (("restore", "--operator", "superres:2"), "expected mask:FILE, slices or blur for volumes"),
        (("restore", "--operator", "slices:every:2", "--sigma-y", "0.1"), "--sigma-y: expected 0 for missing voxels"),
        (("stylize", "--style", "look.png"), "expected models of images or single slices"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unusable_arguments_are_one_sentence(
    anodiff: Run,
    scan: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = saved(tmp_path / "model.safetensors", "patches")
    assert anodiff(words[0], model, scan, *words[1:], "--output", tmp_path / "out", *QUICK) == 2
    error = capfd.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--animation",), "--animation: expected a model of images"),
        (("--real",), "--real: expected a model of images"),
        (("--size", "20,20"), "--size: expected 3 numbers from 1 between commas, found '20,20'"),
        (("--size", "20,20,0"), "--size: expected 3 numbers"),
        (("--size", "large"), "--size: expected 3 numbers"),
    ],
)
def test_volumes_are_neither_animated_nor_judged_nor_flat(
    anodiff: Run, tmp_path: Path, words: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model.safetensors", "patches")
    given = (*words, tmp_path) if "--real" in words else words
    assert anodiff("generate", model, *given, "--output", tmp_path / "out", *QUICK) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_gradient_through_windows_is_that_of_the_whole_volume() -> None:
    from anodiff.restoration import Restorer

    config = parse_config({**RECIPE, "volume": KINDS["patches"]})
    model = DiffusionModel(config, build_denoiser(config))
    for parameter in model.denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():  # layers that start at zero would hide the network
            torch.nn.init.normal_(parameter, std=0.05)
    denoiser = Restorer(model, device="cpu", precision="fp32").denoiser
    x, v, u = torch.randn(3, 1, 1, 10, 8, 9).unbind()
    values, pullback = denoiser.linearise(x, 0.5)
    torch.testing.assert_close(values, denoiser(x, 0.5))
    step = 1e-2
    slope = (denoiser(x + step * u, 0.5) - denoiser(x - step * u, 0.5)) / (2 * step)
    assert float((pullback(v) * u).sum()) == pytest.approx(float((v * slope).sum()), rel=2e-3, abs=1e-2)
