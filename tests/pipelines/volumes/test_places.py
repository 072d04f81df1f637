"""Volumes through whole jobs: a voxel of the map is the voxel of the input, whatever the axes and the grid."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from anodiff.anomaly.volumes import SliceScore
from anodiff.config import parse_config
from anodiff.data.volumes.slices import VolumeSlicer
from anodiff.data.volumes.volume import Volume
from anodiff.pipelines.volume_job import native_slice

MARK = (3, 6, 1)
CODES = ["".join(c) for pair in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*pair)]


def affines(scans: Any) -> dict[str, np.ndarray]:
    return {"plain": np.diag([1.0, 1.5, 2.0, 1.0]), "oblique": scans.oblique()}


def marked_volume() -> np.ndarray:
    values = np.abs(np.random.default_rng(0).normal(size=(7, 8, 6))).astype(np.float32)
    values[MARK] = 40
    return values


@pytest.mark.parametrize("statistics", ["volume", "slice"])
def test_a_marked_voxel_is_cut_and_joined_in_its_place_for_all_orders_flips_and_affines(
    scans: Any, statistics: str
) -> None:
    spread = {"size": [8, 8], "intensity": {"kind": "zscore"}, "resize": "pad"}
    config = parse_config({**scans.recipe, "preprocess": spread,
                           "volume": {"axes": [0, 1, 2], "min_foreground": 0.0, "statistics": statistics}})  # fmt: skip
    assert config.volume is not None
    slicer = VolumeSlicer(config.preprocess, config.volume)
    for code, (name, affine) in itertools.product(CODES, affines(scans).items()):
        stored, own = scans.turned(marked_volume(), affine, code)
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


def test_a_marked_voxel_comes_back_through_the_whole_job(scans: Any, tmp_path: Path) -> None:
    """Every order of axes, every axis in both directions: each order with some flips and with the opposite ones."""
    model = scans.mirror(tmp_path / "m.safetensors", preprocess={"size": [8, 8], "intensity": {"kind": "zscore"}})
    expected: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for order, flips in itertools.product(range(6), range(2)):
        code = CODES[8 * order + (order if flips else 7 - order)]
        name, affine = list(affines(scans).items())[(order + flips) % 2]
        stored, own = scans.turned(marked_volume(), affine, code)
        scans.save(tmp_path / "in" / f"{code}_{name}.nii.gz", stored, own)
        expected[f"{code}_{name}"] = (stored, affine @ np.array([*MARK, 1.0]))
    assert {(place, code[place]) for code in expected for place in range(3)} == set(
        itertools.product(range(3), "RLAPSI")
    )
    summary = scans.run(model, tmp_path / "out", tmp_path / "in", overrides=["volume.axes=[0,1,2]"], heatmaps=False)
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


def test_every_voxel_keeps_its_place_where_the_grids_agree(scans: Any, tmp_path: Path) -> None:
    """D = 0 and z-scores of the volume: the map is the z-score itself, voxel by voxel, in every orientation."""
    model = scans.mirror(tmp_path / "m.safetensors", volume={"axes": [1], "min_foreground": 0.0})
    values = np.random.default_rng(1).normal(size=(16, 16, 16)).astype(np.float32)
    for n, code in enumerate(("RAS", "LPI", "SAL", "PIR")):
        change = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(code)))
        stored = nibabel.orientations.apply_orientation(values, change)
        scans.save(tmp_path / "in" / f"{n}.nii", stored, scans.oblique() @ inv_ornt_aff(change, values.shape))
        scans.run(model, tmp_path / f"out{n}", tmp_path / "in" / f"{n}.nii", heatmaps=False)
        found = np.asarray(nibabel.load(next((tmp_path / f"out{n}" / "maps").iterdir())).dataobj)
        assert np.allclose(found, (stored - stored.mean()) / stored.std(), atol=1e-5)


def test_unlike_sides_and_spacing_come_back_too(scans: Any, tmp_path: Path) -> None:
    model = scans.mirror(tmp_path / "m.safetensors", preprocess={"size": [40, 40], "intensity": {"kind": "zscore"}},
                   volume={"axes": [0, 2], "spacing": [1.0, 1.0, 1.0], "min_foreground": 0.0})  # fmt: skip
    values = np.abs(np.random.default_rng(2).normal(size=(14, 10, 12))).astype(np.float32)
    values[4, 6, 8] = 60
    scans.save(tmp_path / "a.nii.gz", values, scans.oblique())
    scans.run(model, tmp_path / "out", tmp_path / "a.nii.gz", heatmaps=False)
    found = np.asarray(nibabel.load(tmp_path / "out" / "maps" / "a.nii.gz").dataobj)
    assert np.unravel_index(found.argmax(), found.shape) == (4, 6, 8)
