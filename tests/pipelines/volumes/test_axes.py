"""Several axes: one along which a volume has nothing to look at is left out for that volume, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anodiff
from anodiff.config import parse_config
from anodiff.errors import DataError
from anodiff.pipelines.volume_training import NormalDetector
from anodiff.training.volumes import NormalPart, read_normals

SPREAD = {"size": [16, 16], "intensity": {"kind": "robust", "clip": 5.0}, "foreground": "otsu"}


def plate() -> np.ndarray:
    """Foreground in four slices across i, whole ones; a quarter of every other slice."""
    values = np.abs(np.random.default_rng(0).normal(size=(16, 16, 16)))
    values[6:10] += 100
    return values.astype(np.float32)


def test_scoring_goes_on_along_the_other_axes_and_says_so(scans: Any, tmp_path: Path) -> None:
    section = {"axes": [0, 1, 2], "orientation": None, "min_foreground": 0.5}
    model = scans.mirror(tmp_path / "m.safetensors", preprocess=SPREAD, volume=section)
    scans.save(tmp_path / "in" / "plate.nii.gz", plate())
    scans.save(tmp_path / "in" / "speck.nii.gz", np.pad(np.arange(90, 98, dtype=np.float32).reshape(2, 2, 2), 7))
    scans.save(tmp_path / "in" / "whole.nii.gz", np.random.default_rng(1).normal(size=(16, 16, 16)).astype(np.float32))
    scans.run(model, tmp_path / "out", tmp_path / "in", overrides=["volume.min_foreground=0.3"])
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert rows["plate"]["status"] == "ok"
    assert rows["plate"]["remarks"].startswith("volume.axes: no slice along 1, 2 has 0.3 of foreground")
    assert rows["plate"]["remarks"].endswith("scored along 0 only")
    assert {row["axis"] for row in scans.table(tmp_path / "out" / "slices.csv") if row["id"] == "plate"} == {"0"}
    assert rows["speck"]["status"] == "failed"
    assert "expected a slice with at least 0.3 of foreground" in rows["speck"]["error"]
    assert rows["whole"]["remarks"] == ""
    assert "scored along 0 only" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture
def threaded(scans: Any, tmp_path: Path) -> list[NormalPart]:
    """Volumes of two patients with a lesion that passes through all slices across i, far from other slices' ends."""
    parts = []
    for n in range(2):
        path = scans.save(tmp_path / f"v{n}.nii.gz", scans.head(n))
        mask = np.zeros((16, 16, 16), np.uint8)
        mask[:, 8, 8] = 1
        parts.append(NormalPart(str(path), f"p{n}", str(scans.save(tmp_path / f"m{n}.nii.gz", mask))))
    return parts


def recipe(scans: Any, axes: list[int]) -> Any:
    section = {"axes": axes, "orientation": None, "min_foreground": 0.05}
    return parse_config({**scans.recipe, "preprocess": SPREAD, "volume": section})


def test_training_learns_along_the_axes_that_have_normal_slices(scans: Any, threaded: list[NormalPart]) -> None:
    kept = read_normals(threaded, recipe(scans, [0, 1, 2]))
    assert kept.groups == ("p0", "p1")
    assert kept.failed == ()
    assert set(kept.examples.planes.tolist()) == {1, 2}
    assert len(kept.remarks) == 2
    assert "v0.nii.gz: no slice along 0 is normal with enough foreground" in kept.remarks[0]
    # slices at least 3 mm from the lesion at 8, those with enough foreground among them
    alone = [len(read_normals(threaded, recipe(scans, [axis])).examples) for axis in (1, 2)]
    assert len(kept.examples) == sum(alone)
    with pytest.raises(DataError, match="expected a normal slice with enough foreground, found none"):
        read_normals(threaded, recipe(scans, [0]))


def test_calibration_looks_at_whole_normal_slices_of_each_axis(
    scans: Any, threaded: list[NormalPart], tmp_path: Path
) -> None:
    path = scans.mirror(tmp_path / "m.safetensors", preprocess=SPREAD,
                        volume={"axes": [0, 1, 2], "orientation": None, "min_foreground": 0.05})  # fmt: skip
    detector = NormalDetector(anodiff.load(path), "one-step", device="cpu")
    volume = detector.read(threaded[0])
    prepared = detector.prepare(volume)
    result = detector(prepared, volume)
    assert {each.axis for each in result.slices} == {1, 2}
    assert all(abs(each.index - 8) > 3 for each in result.slices)
    assert "no slice along 0" in result.remarks[0]
    # a slice's foreground is all of it, not only what is far from the lesion along the other axis too
    stack = detector.slicer.cut(prepared, 1, volume)
    whole = detector.slicer.cut(scans.replace(prepared, clear=None), 1, volume)
    for n, place in enumerate(stack.index):
        assert bool((stack.foreground[n] == whole.foreground[whole.index.index(place)]).all())
