"""Volumes through whole jobs: where a voxel comes back, what is written, what is refused."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from anodiff.anomaly.volumes import SliceScore
from anodiff.config import parse_config
from anodiff.data.volumes import read_volume
from anodiff.data.volumes.slices import VolumeSlicer
from anodiff.data.volumes.volume import Volume
from anodiff.engine.loop import Summary
from anodiff.errors import ConfigError, DataError, StorageError
from anodiff.model import DiffusionModel, build_denoiser
from anodiff.pipelines import score, volume_job, volume_scoring
from anodiff.pipelines.volume_job import native_slice

#: D = 0 whatever it is shown (a fresh network that predicts the image), so that a map is the image itself
MIRROR: dict[str, Any] = {
    "name": "mirror",
    "polarity": "brighter",
    "preset": "one-step",
    "presets": {"one-step": {"smooth_px": 0.0, "standardise": "none", "foreground": False, "antithetic": False}},
    "preprocess": {"size": [16, 16], "intensity": {"kind": "zscore"}},
    "network": {"channels": [8], "blocks": 1, "attention": [False], "stem": 1, "head_channels": 8},
    "diffusion": {"prediction": "x0"},
    "engine": {"network_batch": 16},
}
MARK = (3, 6, 1)
CODES = ["".join(c) for pair in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*pair)]


def mirror(path: Path, **changes: Any) -> Path:
    config = parse_config({**MIRROR, **changes})
    torch.manual_seed(0)
    DiffusionModel(config, build_denoiser(config)).save(path)
    return path


def oblique() -> np.ndarray:
    """RAS+ with unlike spacings, turned about two axes, the origin moved."""
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_k = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_i = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_i @ about_k @ np.diag([1.0, 1.5, 2.0])
    affine[:3, 3] = [-30.0, 12.5, 7.0]
    return affine


def head(seed: int, shape: tuple[int, int, int] = (16, 16, 16), lesion: bool = False) -> np.ndarray:
    """A ball of noise around 100 in air around 0; with ``lesion`` a bright cube of 3 voxels a side in it."""
    rng = np.random.default_rng(seed)
    middle = (np.array(shape) - 1) / 2
    inside = ((np.indices(shape) - middle[:, None, None, None]) ** 2).sum(axis=0) < (0.45 * min(shape)) ** 2
    values = np.where(inside, 100 + 6 * rng.normal(size=shape), np.abs(rng.normal(size=shape)))
    if lesion:
        values[6:9, 7:10, 5:8] += 120
    return values.astype(np.float32)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run(model: Path, output: Path, *inputs: Path | str, **options: Any) -> Summary:
    return score.run(model, [str(path) for path in inputs], output, device="cpu", quiet=True, **options)


@pytest.fixture(scope="module")
def volumes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of volumes, calibrated on 24 of them in two splits."""
    from anodiff.pipelines import calibrate

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("volumes")
    raw = mirror(root / "raw.safetensors", preprocess={"size": [16, 16], "intensity": {"kind": "robust", "clip": 5.0}},
                 volume={"axes": [2], "score_slices": 2, "min_foreground": 0.05, "statistics": "volume"})  # fmt: skip
    lines = ["path,label,group,split"]
    for n in range(26):
        save(root / f"n{n:02d}.nii.gz", head(n))
        lines.append(f"n{n:02d}.nii.gz,0,p{n},{'train' if n < 4 else 'val'}")
    (root / "normals.csv").write_text("\n".join(lines) + "\n")
    calibrate.run(raw, root / "normals.csv", root / "model.safetensors", device="cpu", quiet=True)
    return root / "model.safetensors"


AFFINES = {"plain": np.diag([1.0, 1.5, 2.0, 1.0]), "oblique": oblique()}


def turned(values: np.ndarray, affine: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """The RAS volume (values, affine) stored in another order of axes, by nibabel."""
    change = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(code)))
    return nibabel.orientations.apply_orientation(values, change), affine @ inv_ornt_aff(change, values.shape)


def marked_volume() -> np.ndarray:
    values = np.abs(np.random.default_rng(0).normal(size=(7, 8, 6))).astype(np.float32)
    values[MARK] = 40
    return values


@pytest.mark.parametrize("statistics", ["volume", "slice"])
def test_a_marked_voxel_is_cut_and_joined_in_its_place_for_all_orders_flips_and_affines(statistics: str) -> None:
    config = parse_config({**MIRROR, "preprocess": {"size": [8, 8], "intensity": {"kind": "zscore"}, "resize": "pad"},
                           "volume": {"axes": [0, 1, 2], "min_foreground": 0.0, "statistics": statistics}})  # fmt: skip
    assert config.volume is not None
    slicer = VolumeSlicer(config.preprocess, config.volume)
    for code, (name, affine) in itertools.product(CODES, AFFINES.items()):
        stored, own = turned(marked_volume(), affine, code)
        volume = Volume(stored[None], own, 0.0, 1.0, "float32", f"{code} {name}", "nifti", ranged=True)
        prepared = slicer.prepare(volume)
        peak = np.unravel_index(int(prepared.image[0].argmax()), prepared.plan.model.shape)
        world = affine @ np.array([*MARK, 1.0])
        assert np.allclose(prepared.plan.model.affine @ np.array([*peak, 1.0]), world, atol=1e-4), (code, name)
        for axis in range(3):
            stack = slicer.cut(prepared, axis, volume)
            joined = prepared.back(slicer.join(stack.images[:, 0], stack))
            assert joined.shape == stored.shape
            assert np.unravel_index(joined.argmax(), joined.shape) == np.unravel_index(stored.argmax(), stored.shape)
            place = native_slice(prepared, SliceScore(axis, int(peak[axis]), 0.0, None))
            assert place["slice"] == np.unravel_index(stored.argmax(), stored.shape)[place["axis"]]
            letter = nibabel.aff2axcodes(prepared.plan.model.affine)[axis]
            assert code[place["axis"]] in next(pair for pair in ("RL", "AP", "SI") if letter in pair)


def test_a_marked_voxel_comes_back_through_the_whole_job(tmp_path: Path) -> None:
    """Every order of axes, every axis in both directions: each order with some flips and with the opposite ones."""
    model = mirror(tmp_path / "m.safetensors", preprocess={"size": [8, 8], "intensity": {"kind": "zscore"}})
    expected: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for order, flips in itertools.product(range(6), range(2)):
        code = CODES[8 * order + (order if flips else 7 - order)]
        name, affine = list(AFFINES.items())[(order + flips) % 2]
        stored, own = turned(marked_volume(), affine, code)
        save(tmp_path / "in" / f"{code}_{name}.nii.gz", stored, own)
        expected[f"{code}_{name}"] = (stored, affine @ np.array([*MARK, 1.0]))
    assert {(place, code[place]) for code in expected for place in range(3)} == set(
        itertools.product(range(3), "RLAPSI")
    )
    summary = run(model, tmp_path / "out", tmp_path / "in", overrides=["volume.axes=[0,1,2]"], heatmaps=False)
    assert summary.ok == len(expected) == 12
    for name, (stored, world) in expected.items():
        source = nibabel.load(tmp_path / "in" / f"{name}.nii.gz")
        found = nibabel.load(tmp_path / "out" / "maps" / f"{name}.nii.gz")
        assert found.get_data_dtype() == np.float32
        assert np.array_equal(found.affine, source.affine)
        assert found.header.get_zooms() == source.header.get_zooms()
        assert found.header.get_xyzt_units() == source.header.get_xyzt_units()
        peak = np.unravel_index(np.asarray(found.dataobj).argmax(), stored.shape)
        assert stored[peak] == 40
        assert np.allclose((found.affine @ np.array([*peak, 1.0]))[:3], world[:3], atol=1e-4)


def test_every_voxel_keeps_its_place_where_the_grids_agree(tmp_path: Path) -> None:
    """D = 0 and z-scores of the volume: the map is the z-score itself, voxel by voxel, in every orientation."""
    model = mirror(tmp_path / "m.safetensors", volume={"axes": [1], "min_foreground": 0.0})
    values = np.random.default_rng(1).normal(size=(16, 16, 16)).astype(np.float32)
    for n, code in enumerate(("RAS", "LPI", "SAL", "PIR")):
        change = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(code)))
        stored = nibabel.orientations.apply_orientation(values, change)
        save(tmp_path / "in" / f"{n}.nii", stored, oblique() @ inv_ornt_aff(change, values.shape))
        run(model, tmp_path / f"out{n}", tmp_path / "in" / f"{n}.nii", heatmaps=False)
        found = np.asarray(nibabel.load(next((tmp_path / f"out{n}" / "maps").iterdir())).dataobj)
        assert np.allclose(found, (stored - stored.mean()) / stored.std(), atol=1e-5)


def test_unlike_sides_and_spacing_come_back_too(tmp_path: Path) -> None:
    model = mirror(tmp_path / "m.safetensors", preprocess={"size": [40, 40], "intensity": {"kind": "zscore"}},
                   volume={"axes": [0, 2], "spacing": [1.0, 1.0, 1.0], "min_foreground": 0.0})  # fmt: skip
    values = np.abs(np.random.default_rng(2).normal(size=(14, 10, 12))).astype(np.float32)
    values[4, 6, 8] = 60
    save(tmp_path / "a.nii.gz", values, oblique())
    run(model, tmp_path / "out", tmp_path / "a.nii.gz", heatmaps=False)
    found = np.asarray(nibabel.load(tmp_path / "out" / "maps" / "a.nii.gz").dataobj)
    assert np.unravel_index(found.argmax(), found.shape) == (4, 6, 8)


def test_outputs_of_a_calibrated_run(volumes_model: Path, tmp_path: Path) -> None:
    affine = oblique()
    save(tmp_path / "in" / "sick.nii.gz", head(100, lesion=True), affine)
    save(tmp_path / "in" / "well.nii.gz", head(101), affine)
    assert run(volumes_model, tmp_path / "out", tmp_path / "in").exit_code == 0
    rows = {row["id"]: row for row in table(tmp_path / "out" / "scores.csv")}
    assert rows["sick"]["is_anomalous"] == "true"
    assert float(rows["sick"]["p_value"]) <= 0.05 < float(rows["well"]["p_value"])
    assert float(rows["sick"]["score"]) > float(rows["sick"]["threshold"]) == float(rows["well"]["threshold"])
    slices = [row for row in table(tmp_path / "out" / "slices.csv") if row["id"] == "sick"]
    assert {row["axis"] for row in slices} == {"2"}
    ranked = sorted(slices, key=lambda row: -float(row["score"]))
    assert {int(row["slice"]) for row in ranked[:3]} == {5, 6, 7}
    top = [float(row["score"]) for row in ranked[:2]]
    assert float(rows["sick"]["score"]) == pytest.approx(sum(top) / 2, rel=1e-5)
    lesion = next(row for row in table(tmp_path / "out" / "lesions.csv") if row["id"] == "sick")
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


def test_a_model_of_patches_scores_through_the_job(tmp_path: Path) -> None:
    """D = 0: the map is the z-score of the volume, whatever the windows; a mark comes back to its voxel."""
    model = mirror(tmp_path / "m.safetensors", volume={"mode": "patches", "patch": [8, 8, 8], "min_foreground": 0.0})
    values = np.random.default_rng(1).normal(size=(12, 8, 10)).astype(np.float32)
    stored, own = turned(values, oblique(), "PIR")
    save(tmp_path / "a.nii.gz", stored, own)
    assert run(model, tmp_path / "out", tmp_path / "a.nii.gz").exit_code == 0
    found = np.asarray(nibabel.load(tmp_path / "out" / "maps" / "a.nii.gz").dataobj)
    assert np.allclose(found, (stored - stored.mean()) / stored.std(), atol=1e-5)
    assert len(table(tmp_path / "out" / "slices.csv")) == 10
    assert run(model, tmp_path / "out", tmp_path / "a.nii.gz").resumed == 1
    with pytest.raises(ConfigError, match=r"volume\.axes"):
        run(model, tmp_path / "no", tmp_path / "a.nii.gz", overrides=["volume.axes=[0]"])


def test_a_channel_is_chosen_once(tmp_path: Path) -> None:
    """Of a volume of two channels the second is scored, also where each slice is prepared as an image."""
    spread = {"size": [16, 16], "channel": 1, "intensity": {"kind": "zscore"}}
    model = mirror(tmp_path / "m.safetensors", preprocess=spread)
    for name in ("a", "b"):
        save(tmp_path / f"x_{name}.nii.gz", head(1 if name == "a" else 2))
    save(tmp_path / "alone.nii.gz", head(2))
    run(model, tmp_path / "two", f"{tmp_path / 'x_'}#channels=a.nii.gz,b.nii.gz")
    assert table(tmp_path / "two" / "scores.csv")[0]["error"] == ""
    plain = mirror(tmp_path / "p.safetensors", preprocess={**spread, "channel": None})
    run(plain, tmp_path / "one", tmp_path / "alone.nii.gz")
    first, second = (table(tmp_path / name / "scores.csv")[0]["score"] for name in ("two", "one"))
    assert first == second


def test_slices_cut_otherwise_have_no_p_value(volumes_model: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.nii.gz", head(100, lesion=True))
    run(volumes_model, tmp_path / "other", source, heatmaps=False, overrides=["volume.axes=[0]"])
    assert {row["p_value"] for row in table(tmp_path / "other" / "slices.csv")} == {""}
    assert {row["axis"] for row in table(tmp_path / "other" / "slices.csv")} == {"0"}
    page = (tmp_path / "other" / "report.html").read_text()
    assert "volumes and slices have no p-value" in page
    run(volumes_model, tmp_path / "top", source, heatmaps=False, overrides=["volume.score_slices=1"])
    assert all(row["p_value"] for row in table(tmp_path / "top" / "slices.csv"))
    assert table(tmp_path / "top" / "scores.csv")[0]["p_value"] == ""


def test_few_volumes_are_in_memory_at_once(
    volumes_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(12):
        save(tmp_path / "in" / f"{n}.nii.gz", head(n))
    lock, flying, most = threading.Lock(), 0, 0
    read, write = volume_job.VolumeJob.read, volume_job.VolumeJob.write

    def counted(job: Any, item: Any) -> Any:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        return read(job, item)

    def slow(job: Any, item: Any, computed: Any) -> Any:
        nonlocal flying
        time.sleep(0.1)
        with lock:
            flying -= 1
        return write(job, item, computed)

    monkeypatch.setattr(volume_job.VolumeJob, "read", counted)
    monkeypatch.setattr(volume_job.VolumeJob, "write", slow)
    assert run(volumes_model, tmp_path / "out", tmp_path / "in", heatmaps=False, maps=False).ok == 12
    # one that is read ahead, one computed, one or two at the queue, one a writer
    assert 2 <= most <= 6


def test_small_candidates_and_a_median_are_switches(volumes_model: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "s.nii.gz", head(100, lesion=True))
    run(volumes_model, tmp_path / "all", source, heatmaps=False)
    run(volumes_model, tmp_path / "big", source, heatmaps=False, overrides=["volume.min_volume_mm3=20"])
    every, large = (table(tmp_path / name / "lesions.csv") for name in ("all", "big"))
    assert [row for row in every if float(row["volume_mm3"]) >= 20] == large
    assert len(large) < len(every)
    run(volumes_model, tmp_path / "median", source, heatmaps=False, overrides=["volume.median=3"])
    plain, smoothed = (
        np.asarray(nibabel.load(tmp_path / name / "maps" / "s.nii.gz").dataobj) for name in ("all", "median")
    )
    assert smoothed[8, 8, 8] == pytest.approx(float(np.median(plain[7:10, 7:10, 7:10])), rel=1e-5)
    row = table(tmp_path / "median" / "scores.csv")[0]
    assert row["p_value"] == row["threshold"] == ""


def test_same_bits_whatever_the_mates_and_after_a_kill(
    volumes_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        save(tmp_path / "in" / f"v{n}.nii.gz", head(200 + n, lesion=n % 2 == 1))
    run(volumes_model, tmp_path / "one", tmp_path / "in" / "v3.nii.gz")
    before = volume_job.VolumeJob.write
    calls = 0

    def killed(job: Any, item: Any, computed: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return before(job, item, computed)

    monkeypatch.setattr(volume_job.VolumeJob, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(volumes_model, tmp_path / "all", tmp_path / "in")
    monkeypatch.setattr(volume_job.VolumeJob, "write", before)
    with contextlib.closing(sqlite3.connect(tmp_path / "all" / ".anodiff" / "results.sqlite")) as store:
        done = {row[0] for row in store.execute("SELECT id FROM results")}
    assert len(done) == 2
    stamps = {name: (tmp_path / "all" / "maps" / f"{name}.nii.gz").stat().st_mtime_ns for name in done}
    assert run(volumes_model, tmp_path / "all", tmp_path / "in").resumed == 2
    for name, stamp in stamps.items():
        assert (tmp_path / "all" / "maps" / f"{name}.nii.gz").stat().st_mtime_ns == stamp
    rows = {row["id"]: row for row in table(tmp_path / "all" / "scores.csv")}
    assert len(rows) == 5
    assert rows["v3"]["score"] == table(tmp_path / "one" / "scores.csv")[0]["score"]
    for part in ("maps/v3.nii.gz", "heatmaps/v3.png"):
        assert (tmp_path / "all" / part).read_bytes() == (tmp_path / "one" / part).read_bytes()


def test_broken_volumes_are_rows_with_their_error(volumes_model: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "good.nii.gz", head(300))
    whole = (tmp_path / "in" / "good.nii.gz").read_bytes()
    (tmp_path / "in" / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "empty.nii.gz").write_bytes(b"")
    save(tmp_path / "in" / "flat.nii.gz", np.full((16, 16, 16), 7, dtype=np.float32))
    save(tmp_path / "in" / "two.nii.gz", np.stack([head(1), head(2)], axis=3))
    (tmp_path / "in" / "notes.txt").write_text("hello")
    summary = run(volumes_model, tmp_path / "out", tmp_path / "in")
    rows = {row["id"]: row for row in table(tmp_path / "out" / "scores.csv")}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"cut", "flat", "empty"}
    assert "found an empty file" in rows["empty"]["error"]
    assert set(rows) == {"good", "cut", "flat", "empty", "two_volume_1", "two_volume_2"}
    assert summary.exit_code == 1
    assert "cut.nii.gz" in rows["cut"]["error"]
    assert "constant" in rows["flat"]["error"]
    assert table(tmp_path / "out" / "skipped.csv")[0]["path"].endswith("notes.txt")


def test_another_modality_is_refused_and_another_spacing_remarked(volumes_model: Path, tmp_path: Path) -> None:
    from anodiff.anomaly.volume_calibration import Origin

    origin = Origin.of(["MR", "MR"], [(1.0, 1.0, 5.0), (1.0, 1.0, 6.0)])
    assert origin.foreign_modality("CT") == "expected modality MR like the model's normal volumes, found CT"
    assert origin.foreign_modality("MR") is None
    assert origin.foreign_modality("") is None
    assert Origin.of(["", "MR"], [(1, 1, 1)] * 2).foreign_modality("CT") is None
    assert origin.foreign_spacing((1.0, 1.2, 7.0)) is None
    assert "1 x 1 x 5-6 mm" in str(origin.foreign_spacing((1.0, 1.0, 1.0)))
    save(tmp_path / "coarse.nii.gz", head(1), np.diag([4.0, 1.0, 1.0, 1.0]))
    run(volumes_model, tmp_path / "out", tmp_path / "coarse.nii.gz")
    assert "voxels of 4 x 1 x 1 mm" in (tmp_path / "out" / "report.html").read_text()


def test_a_model_of_images_scores_a_stack_as_its_images(world: Any, tmp_path: Path) -> None:
    """Slices are prepared as the images that the model was trained on: the same scores to the bit."""
    world.write_images(tmp_path / "s", 4, 700)
    run(world.model, tmp_path / "images", tmp_path / "s")
    run(world.model, tmp_path / "volume", f"{tmp_path / 's'}#stack")
    images = [row["score"] for row in table(tmp_path / "images" / "scores.csv")]
    slices = table(tmp_path / "volume" / "slices.csv")
    assert [row["score"] for row in sorted(slices, key=lambda row: int(row["slice"]))] == images
    assert all(row["p_value"] for row in slices)
    row = table(tmp_path / "volume" / "scores.csv")[0]
    assert float(row["score"]) == pytest.approx(sum(sorted(map(float, images))[-3:]) / 3, rel=1e-5)
    assert row["p_value"] == ""
    stored = np.asarray(nibabel.load(next((tmp_path / "volume" / "maps").iterdir())).dataobj)
    for n, path in enumerate(sorted((tmp_path / "images" / "maps").iterdir())):
        assert np.array_equal(stored[:, :, n], np.load(path).T)


def test_said_and_refused(world: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = save(tmp_path / "in" / "scan.nii.gz", head(1).astype(np.uint8))
    score.run(world.model, [str(scan)], tmp_path / "a", device="cpu", overrides=["volume.axes=[0]"])
    assert "slices along i" in capsys.readouterr().err
    world.write_images(tmp_path / "in", 1, 0)
    with pytest.raises(DataError, match=r"i000\.png: expected volumes or images in one run, found both"):
        run(world.model, tmp_path / "b", tmp_path / "in")
    with pytest.raises(ConfigError, match="fixed by training"):
        run(volumes_model, tmp_path / "c", scan, overrides=["volume.orientation=RAS"])
    with pytest.raises(ConfigError, match="no neighbours"):
        run(world.model, tmp_path / "d", scan, overrides=["volume.neighbours=1", "volume.statistics=volume"])
    with pytest.raises(ConfigError, match="expected one of pm, seg, sc"):
        run(volumes_model, tmp_path / "e", scan, dicom=["rt"])
    with pytest.raises(ConfigError, match="calibrated"):
        run(mirror(tmp_path / "m.safetensors"), tmp_path / "f", scan, dicom=["seg"])
    with pytest.raises(DataError, match="expected volumes"):
        run(volumes_model, tmp_path / "g", world.data)
    with pytest.raises(ConfigError, match="--map-format tiff: expected none for volumes"):
        run(volumes_model, tmp_path / "h", scan, map_format="tiff")
    with pytest.raises(ConfigError, match="2-D images"):
        run(world.model, tmp_path / "i", scan, overrides=["volume.overlap=0.2"])
    with pytest.raises(ConfigError, match="found 2-D images"):
        run(world.model, tmp_path / "j", world.data, dicom=["sc"])


def test_uncalibrated_runs_draw_on_one_scale(tmp_path: Path) -> None:
    model = mirror(tmp_path / "m.safetensors", volume={"min_foreground": 0.0})
    for n in range(2):
        save(tmp_path / "in" / f"{n}.nii.gz", head(n))
    run(model, tmp_path / "out", tmp_path / "in")
    assert len(list((tmp_path / "out" / "heatmaps").glob("*.png"))) == 2
    assert table(tmp_path / "out" / "lesions.csv") == []


def test_evaluate_measures_inside_the_foreground(volumes_model: Path, tmp_path: Path) -> None:
    from anodiff.pipelines import evaluate

    lines = ["path,label,mask,group"]
    for n in range(3):
        sick = head(400 + n, lesion=True)
        save(tmp_path / f"sick{n}.nii.gz", sick)
        mask = np.zeros(sick.shape, dtype=np.uint8)
        mask[6:9, 7:10, 5:8] = 1
        save(tmp_path / f"mask{n}.nii.gz", mask)
        save(tmp_path / f"well{n}.nii.gz", head(500 + n))
        lines += [f"sick{n}.nii.gz,1,mask{n}.nii.gz,s{n}", f"well{n}.nii.gz,0,,w{n}"]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    summary, metrics = evaluate.run(
        volumes_model, tmp_path / "test.csv", tmp_path / "out", device="cpu", quiet=True, heatmaps=False
    )
    assert summary.ok == 6
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.99
    assert metrics["n_images"] == 6
    assert metrics["froc"] > 0.9
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["pixel_ap"] == metrics["pixel_ap"]
    assert {row["id"] for row in table(tmp_path / "out" / "truth.csv")} == {
        f"{k}{n}" for k in ("sick", "well") for n in range(3)
    }
    options: dict[str, Any] = {"device": "cpu", "quiet": True, "heatmaps": False}
    _, again = evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "out", **options)
    assert again == metrics
    # a mask that was mended is measured, although its volume is the same
    mask[6:9, 7:10, 5:7] = 0
    save(tmp_path / "mask0.nii.gz", mask)
    summary, changed = evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "out", **options)
    assert summary.resumed == 5
    assert changed["pixel_ap"] != metrics["pixel_ap"]
    with pytest.raises(ConfigError, match="--baselines: expected 2-D images"):
        evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "no", baselines=True, **options)
    with pytest.raises(ConfigError, match="--map-format npy"):
        evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "no", map_format="npy", **options)
    # what score wrote has no masks beside it
    inputs = [str(tmp_path / f"{kind}{n}.nii.gz") for n in range(3) for kind in ("sick", "well")]
    score.run(volumes_model, inputs, tmp_path / "scored", **options)
    with pytest.raises(StorageError, match="measured was false"):
        evaluate.run(volumes_model, tmp_path / "test.csv", tmp_path / "scored", **options)


def test_what_was_learnt_from_is_known_again(
    volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import anodiff
    from anodiff.data.seen import SeenImages
    from anodiff.pipelines import calibrate, evaluate
    from anodiff.training.volumes import volume_hash

    lines = ["path,label,group,split"]
    for n in range(4):
        save(tmp_path / f"n{n}.nii.gz", head(n))
        lines.append(f"n{n}.nii.gz,0,p{n},")
    save(tmp_path / "sick.nii.gz", head(9, lesion=True))
    (tmp_path / "normals.csv").write_text("\n".join(lines) + "\n")
    model = anodiff.load(volumes_model)
    model.seen = SeenImages.of(volume_hash(read_volume(tmp_path / f"n{n}.nii.gz")) for n in range(3))
    model.save(tmp_path / "learnt.safetensors")
    options: dict[str, Any] = {"device": "cpu"}
    with pytest.raises(DataError, match="expected normal volumes that the model has not learnt from, found 3 of 4"):
        calibrate.run(tmp_path / "learnt.safetensors", tmp_path / "normals.csv", tmp_path / "a.safetensors", **options)
    calibrate.run(
        tmp_path / "learnt.safetensors", tmp_path / "normals.csv", tmp_path / "b.safetensors", allow_trained=True,
        **options,
    )  # fmt: skip
    assert "learnt from 3 of 4 of these normals" in capsys.readouterr().err
    (tmp_path / "test.csv").write_text("\n".join([*lines, "sick.nii.gz,1,s,"]) + "\n")
    evaluate.run(tmp_path / "learnt.safetensors", tmp_path / "test.csv", tmp_path / "out", heatmaps=False, **options)
    assert "learnt from 3 of these 5 volumes" in capsys.readouterr().err
    assert "learnt from 3 of these 5 volumes" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture
def ct(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CT series of 8 slices with a patient whose name must not appear."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True)
        values = head(3).astype(np.int16)
        for k in range(8):
            one = Dataset()
            one.PatientName, one.PatientID, one.PatientBirthDate = "SECRET^ANNA", "SECRETID", "19500101"
            one.SOPClassUID, one.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.2"), generate_uid()
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
            one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 5, 8 - k
            one.PixelSpacing, one.SliceThickness = [2.0, 1.5], 3.0
            one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * k]
            one.Rows, one.Columns, one.SamplesPerPixel = 16, 16, 1
            one.PhotometricInterpretation = "MONOCHROME2"
            one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
            one.PixelData = np.ascontiguousarray(values[:, :, k + 4].T).tobytes()
            one["PixelData"].VR = "OW"
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        return folder

    return write


def test_dicom_in_and_out_without_the_patients_name(
    volumes_model: Path, tmp_path: Path, ct: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ct(tmp_path / "ct")
    score.run(volumes_model, [str(folder)], tmp_path / "out", device="cpu", dicom=["sc"])
    row = table(tmp_path / "out" / "scores.csv")[0]
    found = nibabel.load(tmp_path / "out" / "maps" / f"{row['id']}.nii.gz")
    source = read_volume(folder)
    assert np.allclose(found.affine, source.affine)
    assert found.shape == source.shape == (16, 16, 8)
    assert len(list((tmp_path / "out" / "dicom").rglob("*.dcm"))) == 8
    said = capsys.readouterr()
    texts = [said.out, said.err, *(path.read_text() for path in (tmp_path / "out").glob("*.[ch]*"))]
    assert not any("SECRET" in text for text in texts)
    score.run(volumes_model, [str(folder)], tmp_path / "out", device="cpu", dicom=["sc"], show_phi=True)
    assert "SECRETID" in (tmp_path / "out" / "report.html").read_text()
    # what a shell makes of folder/*.dcm is the same series
    run(volumes_model, tmp_path / "named", *sorted(folder.glob("*.dcm")))
    assert [each["score"] for each in table(tmp_path / "named" / "scores.csv")] == [row["score"]]
    run(volumes_model, tmp_path / "few", *sorted(folder.glob("[12].dcm")))
    assert len(table(tmp_path / "few" / "scores.csv")) == 2


@pytest.mark.parametrize("kind", ["pm", "seg"])
def test_dicom_objects_need_their_extra(
    volumes_model: Path, tmp_path: Path, ct: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from anodiff.data.volumes import dicom_write
    from anodiff.errors import StorageError

    written = []

    def write(volume: Any, values: np.ndarray, path: Path) -> Path:
        assert values.shape == volume.shape
        written.append(path.name)
        return (path.write_bytes(b"") and path) or path

    with monkeypatch.context() as patch:
        patch.setattr(dicom_write, "import_highdicom", lambda path: None)
        patch.setattr(dicom_write, "write_parametric_map", write)
        patch.setattr(dicom_write, "write_segmentation", write)
        run(volumes_model, tmp_path / "out", ct(tmp_path / "ct"), dicom=[kind])
    assert len(written) == 1
    assert written[0].endswith(f"_{kind}.dcm")
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(StorageError, match=r"anodiff\[dicom\]"):
        run(volumes_model, tmp_path / "no", tmp_path / "ct", dicom=[kind])


@pytest.mark.data
def test_the_ct_series_is_scored_as_a_volume(data_root: Path, tmp_path: Path) -> None:
    window = {"size": [64, 64], "intensity": {"kind": "unit_range"}, "value_range": [-160, 240]}
    model = mirror(tmp_path / "m.safetensors", preprocess=window, volume={"axes": [2]})
    assert run(model, tmp_path / "out", data_root / "medical_io" / "ct_series", heatmaps=True).ok == 1
    source = read_volume(data_root / "medical_io" / "ct_series")
    found = nibabel.load(next((tmp_path / "out" / "maps").iterdir()))
    assert found.shape == source.shape
    assert found.shape[2] == 17
    assert np.allclose(found.affine, source.affine)


@pytest.mark.data
def test_every_medical_file_is_scored_or_refused_by_name(data_root: Path, tmp_path: Path) -> None:
    """Files of many formats and faults in one run: each is a row or is passed over, with a reason."""
    spread = {"size": [32, 32], "channel": 0, "intensity": {"kind": "percentile"}}
    model = mirror(tmp_path / "m.safetensors", preprocess=spread)
    folder = data_root / "medical_io"
    run(model, tmp_path / "out", folder / "dicom", folder / "nifti_and_friends", heatmaps=False)
    rows = table(tmp_path / "out" / "scores.csv")
    skipped = table(tmp_path / "out" / "skipped.csv")
    assert sum(row["status"] == "ok" for row in rows) > 20
    failed = [row for row in rows if row["status"] != "ok"]
    assert all("expected" in row["error"] and "found" in row["error"] for row in failed)
    assert all("Error" not in row["error"] for row in rows)
    assert all(row["reason"] for row in skipped)


def test_concerns(world: Any, tmp_path: Path) -> None:
    import anodiff

    model = anodiff.load(world.model)
    (tmp_path / "1.2.3").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 16)
    for inputs, expected in (
        (["x.nii.gz"], True), (["y.MGZ"], True), (["f#stack"], True), (["a.nii#volume=2"], True),
        ([str(tmp_path)], True), ([str(world.data)], False), (["gone.png"], False), (["*.none"], False),
    ):  # fmt: skip
        assert volume_scoring.concerns(model, inputs) is expected


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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_volume_of_256_voxels_a_side_stays_below_six_gibibytes(tmp_path: Path) -> None:
    """The whole job in a process of its own: read, prepare, denoise, map, planes, candidates, report."""
    from anodiff.pipelines import calibrate

    section = {"axes": [2], "neighbours": 1, "min_foreground": 0.01}
    network = {"channels": [8, 16], "blocks": 1, "attention": [False, False], "stem": 2, "head_channels": 8}
    settings = {**MIRROR["presets"]["one-step"], "foreground": True, "antithetic": True, "levels": [0.5, 1.0]}
    prepared = {"size": [256, 256], "intensity": {"kind": "robust", "clip": 5.0}, "foreground": "otsu"}
    presets = {"one-step": settings}
    raw = mirror(tmp_path / "raw.safetensors", network=network, volume=section, presets=presets, preprocess=prepared)
    rng = np.random.default_rng(0)
    grid = np.indices((256, 256, 256), dtype=np.float32) - 127.5
    ball = (grid**2).sum(axis=0) < 110**2
    big = np.where(ball, 100 + 6 * rng.standard_normal(ball.shape, dtype=np.float32), 1).astype(np.float32)
    save(tmp_path / "big.nii.gz", big)
    for n in range(2):
        save(tmp_path / "normals" / f"{n}.nii.gz", big[:, :, 100 + 8 * n : 104 + 8 * n])
    calibrate.run(raw, tmp_path / "normals", tmp_path / "model.safetensors", device="cpu", quiet=True)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "model.safetensors", tmp_path / "big.nii.gz", tmp_path / "out"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    peak = int(found.stdout.split()[-1]) / 2**20
    print(f"peak {peak:.2f} GiB")
    assert 0.3 < peak < 6
    assert table(tmp_path / "out" / "lesions.csv")


def test_a_slice_of_the_file_has_one_row_the_loudest_of_those_the_model_saw() -> None:
    found = [
        {"axis": 2, "slice": 1, "score": 0.5, "p_value": 0.2},
        {"axis": 2, "slice": 0, "score": 4.8, "p_value": 0.1},
        {"axis": 2, "slice": 0, "score": 4.7, "p_value": 0.3},
    ]
    rows = list(volume_scoring.slice_rows([{"id": "a", "slices": found}, {"id": "failed"}]))
    assert [(row["slice"], row["score"], row["p_value"]) for row in rows] == [(0, 4.8, 0.1), (1, 0.5, 0.2)]
