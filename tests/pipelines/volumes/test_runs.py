"""Volumes through whole jobs: killed runs, batch mates, broken and foreign inputs."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anodiff.errors import ConfigError, DataError
from anodiff.pipelines import score, volume_job, volume_scoring


def test_few_volumes_are_in_memory_at_once(
    scans: Any, volumes_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(12):
        scans.save(tmp_path / "in" / f"{n}.nii.gz", scans.head(n))
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
    assert scans.run(volumes_model, tmp_path / "out", tmp_path / "in", heatmaps=False, maps=False).ok == 12
    # one that is read ahead, one computed, one or two at the queue, one a writer
    assert 2 <= most <= 6


def test_same_bits_whatever_the_mates_and_after_a_kill(
    scans: Any, volumes_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        scans.save(tmp_path / "in" / f"v{n}.nii.gz", scans.head(200 + n, lesion=n % 2 == 1))
    scans.run(volumes_model, tmp_path / "one", tmp_path / "in" / "v3.nii.gz")
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
        scans.run(volumes_model, tmp_path / "all", tmp_path / "in")
    monkeypatch.setattr(volume_job.VolumeJob, "write", before)
    with contextlib.closing(sqlite3.connect(tmp_path / "all" / ".anodiff" / "results.sqlite")) as store:
        done = {row[0] for row in store.execute("SELECT id FROM results")}
    assert len(done) == 2
    stamps = {name: (tmp_path / "all" / "maps" / f"{name}.nii.gz").stat().st_mtime_ns for name in done}
    assert scans.run(volumes_model, tmp_path / "all", tmp_path / "in").resumed == 2
    for name, stamp in stamps.items():
        assert (tmp_path / "all" / "maps" / f"{name}.nii.gz").stat().st_mtime_ns == stamp
    rows = {row["id"]: row for row in scans.table(tmp_path / "all" / "scores.csv")}
    assert len(rows) == 5
    assert rows["v3"]["score"] == scans.table(tmp_path / "one" / "scores.csv")[0]["score"]
    for part in ("maps/v3.nii.gz", "heatmaps/v3.png"):
        assert (tmp_path / "all" / part).read_bytes() == (tmp_path / "one" / part).read_bytes()


def test_broken_volumes_are_rows_with_their_error(scans: Any, volumes_model: Path, tmp_path: Path) -> None:
    scans.save(tmp_path / "in" / "good.nii.gz", scans.head(300))
    whole = (tmp_path / "in" / "good.nii.gz").read_bytes()
    (tmp_path / "in" / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "empty.nii.gz").write_bytes(b"")
    scans.save(tmp_path / "in" / "flat.nii.gz", np.full((16, 16, 16), 7, dtype=np.float32))
    scans.save(tmp_path / "in" / "two.nii.gz", np.stack([scans.head(1), scans.head(2)], axis=3))
    (tmp_path / "in" / "notes.txt").write_text("hello")
    summary = scans.run(volumes_model, tmp_path / "out", tmp_path / "in")
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"cut", "flat", "empty"}
    assert "found an empty file" in rows["empty"]["error"]
    assert set(rows) == {"good", "cut", "flat", "empty", "two_volume_1", "two_volume_2"}
    assert summary.exit_code == 1
    assert "cut.nii.gz" in rows["cut"]["error"]
    assert "constant" in rows["flat"]["error"]
    assert scans.table(tmp_path / "out" / "skipped.csv")[0]["path"].endswith("notes.txt")


def test_another_modality_is_refused_and_another_spacing_remarked(
    scans: Any, volumes_model: Path, tmp_path: Path
) -> None:
    from anodiff.anomaly.volume_origin import Origin

    origin = Origin.of(["MR", "MR"], [(1.0, 1.0, 5.0), (1.0, 1.0, 6.0)])
    assert origin.foreign_modality("CT") == "expected modality MR like the model's normal volumes, found CT"
    assert origin.foreign_modality("MR") is None
    assert origin.foreign_modality("") is None
    assert Origin.of(["", "MR"], [(1, 1, 1)] * 2).foreign_modality("CT") is None
    assert origin.foreign_spacing((1.0, 1.2, 7.0)) is None
    assert "1 x 1 x 5-6 mm" in str(origin.foreign_spacing((1.0, 1.0, 1.0)))
    scans.save(tmp_path / "coarse.nii.gz", scans.head(1), np.diag([4.0, 1.0, 1.0, 1.0]))
    scans.run(volumes_model, tmp_path / "out", tmp_path / "coarse.nii.gz")
    assert "voxels of 4 x 1 x 1 mm" in (tmp_path / "out" / "report.html").read_text()


def test_a_ct_is_remarked_by_a_model_of_nifti_that_names_no_modality(
    scans: Any, volumes_model: Path, tmp_path: Path
) -> None:
    """Neither says what it is: air at -1000 does. A name of BIDS tells the modality, and that of others is refused."""
    hounsfield = np.where(scans.head(1) > 50, scans.head(1), scans.head(1) - 1000)
    scans.save(tmp_path / "in" / "scan.nii.gz", hounsfield)
    scans.save(tmp_path / "in" / "head.nii.gz", scans.head(2))
    scans.run(volumes_model, tmp_path / "out", tmp_path / "in", heatmaps=False)
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert rows["head"]["remarks"] == ""
    assert "of its raw values are negative, where the model's normal volumes have 0%" in rows["scan"]["remarks"]
    assert "raw values are negative" in (tmp_path / "out" / "report.html").read_text()


def test_names_of_bids_tell_the_modality(scans: Any, tmp_path: Path) -> None:
    from anodiff.pipelines import calibrate

    raw = scans.mirror(tmp_path / "raw.safetensors", volume={"min_foreground": 0.0})
    for n in range(2):
        scans.save(tmp_path / f"bids/sub-0{n}/anat/sub-0{n}_FLAIR.nii.gz", scans.head(n))
    calibrate.run(raw, tmp_path / "bids", tmp_path / "m.safetensors", device="cpu", quiet=True)
    other = scans.save(tmp_path / "sub-09_ct.nii.gz", scans.head(3))
    same = scans.save(tmp_path / "sub-09_T1w.nii.gz", scans.head(3))
    scans.run(tmp_path / "m.safetensors", tmp_path / "out", other, same, heatmaps=False)
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert rows["sub-09_T1w"]["status"] == "ok"
    assert "expected modality MR like the model's normal volumes, found CT" in rows["sub-09_ct"]["error"]


def test_said_and_refused(
    scans: Any, world: Any, volumes_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = scans.save(tmp_path / "in" / "scan.nii.gz", scans.head(1).astype(np.uint8))
    score.run(world.model, [str(scan)], tmp_path / "a", device="cpu", overrides=["volume.axes=[0]"])
    assert "slices along i" in capsys.readouterr().err
    world.write_images(tmp_path / "in", 1, 0)
    with pytest.raises(DataError, match=r"i000\.png: expected volumes or images in one run, found both"):
        scans.run(world.model, tmp_path / "b", tmp_path / "in")
    with pytest.raises(ConfigError, match="fixed by training"):
        scans.run(volumes_model, tmp_path / "c", scan, overrides=["volume.orientation=RAS"])
    with pytest.raises(ConfigError, match="no neighbours"):
        scans.run(world.model, tmp_path / "d", scan, overrides=["volume.neighbours=1", "volume.statistics=volume"])
    with pytest.raises(ConfigError, match="expected one of pm, seg, sc"):
        scans.run(volumes_model, tmp_path / "e", scan, dicom=["rt"])
    with pytest.raises(ConfigError, match="calibrated"):
        scans.run(scans.mirror(tmp_path / "m.safetensors"), tmp_path / "f", scan, dicom=["seg"])
    with pytest.raises(DataError, match="expected volumes"):
        scans.run(volumes_model, tmp_path / "g", world.data)
    with pytest.raises(ConfigError, match="--map-format tiff: expected none for volumes"):
        scans.run(volumes_model, tmp_path / "h", scan, map_format="tiff")
    with pytest.raises(ConfigError, match="2-D images"):
        scans.run(world.model, tmp_path / "i", scan, overrides=["volume.overlap=0.2"])
    with pytest.raises(ConfigError, match="found 2-D images"):
        scans.run(world.model, tmp_path / "j", world.data, dicom=["sc"])


def test_concerns(world: Any, tmp_path: Path) -> None:
    import anodiff

    model = anodiff.load(world.model)
    (tmp_path / "1.2.3").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 16)
    for inputs, expected in (
        (["x.nii.gz"], True), (["y.MGZ"], True), (["f#stack"], True), (["a.nii#volume=2"], True),
        ([str(tmp_path)], True), ([str(world.data)], False), (["gone.png"], False), (["*.none"], False),
    ):  # fmt: skip
        assert volume_scoring.concerns(model, inputs) is expected
