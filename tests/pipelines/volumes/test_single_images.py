"""DICOM objects of one image through `anodiff score`: map, heatmap and overlay; and a CT that meets a model of MR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from anodiff.data.volumes import read_volume
from anodiff.pipelines import calibrate

#: of each kind its SOP class, and whether it has a place in the patient
KINDS = {
    "CR": ("1.2.840.10008.5.1.4.1.1.1", False),
    "DX": ("1.2.840.10008.5.1.4.1.1.1.1", False),
    "CT": ("1.2.840.10008.5.1.4.1.1.2", True),
    "MR": ("1.2.840.10008.5.1.4.1.1.4", True),
}
#: rows and columns of the bright square that is put into a disc
LESION = (slice(6, 9), slice(9, 12))
Run = Callable[..., int]


def disc(seed: int, lesion: bool = True) -> np.ndarray:
    """int16 (rows 18, columns 20): tissue around 1000 in air around 0."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:18, :20]
    inside = np.hypot(rows - 8.5, columns - 9.5) < 8
    values = np.where(inside, 1000 + 40 * rng.normal(size=inside.shape), np.abs(10 * rng.normal(size=inside.shape)))
    if lesion:
        values[LESION] += 900
    return values.astype(np.int16)


def write_image(path: Path, kind: str, stored: np.ndarray, position: float = 0.0, series: str = "1.2.3.1") -> Path:
    """One image of a patient whose name must not appear; a radiograph is stored with light and dark exchanged."""
    sop_class, placed = KINDS[kind]
    one = Dataset()
    one.PatientName, one.PatientID, one.PatientBirthDate = "SECRET^ANNA", "SECRETID", "19500101"
    one.SOPClassUID, one.SOPInstanceUID = UID(sop_class), generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID = "1.2.3", series
    one.Modality, one.SeriesNumber, one.InstanceNumber = kind, 5, 1
    one.Rows, one.Columns = stored.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    if placed:
        one.FrameOfReferenceUID, one.PixelSpacing, one.SliceThickness = "1.2.3.9", [2.0, 1.5], 3.0
        one.ImageOrientationPatient, one.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [position, -20.0, 30.0]
    else:
        one.ImagerPixelSpacing = [0.2, 0.2]
    if kind == "CT":
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
    if kind == "CR":
        one.PhotometricInterpretation, one.BitsStored, one.HighBit, one.PixelRepresentation = "MONOCHROME1", 12, 11, 0
        stored = (4095 - stored).astype(np.uint16)
    one.PixelData = np.ascontiguousarray(stored).tobytes()
    one["PixelData"].VR = "OW"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def discs_model(scans: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says that everything is 0, calibrated on single slices of no known modality, whatever their intensities."""
    root = tmp_path_factory.mktemp("discs")
    robust = {"size": [20, 20], "intensity": {"kind": "robust", "clip": 5.0}, "foreground": "otsu"}
    raw = scans.mirror(root / "raw.safetensors", preprocess=robust, volume={"axes": [2], "statistics": "volume"})
    for n in range(6):
        values = disc(50 + n, lesion=False).T[:, :, None].astype(np.float32)
        scans.save(root / "normals" / f"p{n}.nii.gz", values, np.diag([1.5, 2.0, 3.0, 1.0]))
    calibrate.run(raw, root / "normals", root / "model.safetensors", device="cpu", quiet=True)
    return root / "model.safetensors"


def colour(rgb: np.ndarray) -> np.ndarray:
    """How far the pixels (..., 3) are from grey."""
    return rgb.max(axis=-1).astype(int) - rgb.min(axis=-1)


def check_overlay(source: Path, folder: Path) -> None:
    """One secondary capture of the same study, patient and place, of a series of its own, coloured at the lesion."""
    (file,) = folder.iterdir()
    before, after = pydicom.dcmread(source), pydicom.dcmread(file)
    assert after.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert after.SeriesInstanceUID != before.SeriesInstanceUID
    assert after.SOPInstanceUID != before.SOPInstanceUID
    for tag in ("StudyInstanceUID", "PatientID", "PatientName", "Rows", "Columns"):
        assert after[tag].value == before[tag].value
    for tag in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"):
        assert after.get(tag) == before.get(tag)
    assert after.PixelSpacing == before.get("PixelSpacing", before.get("ImagerPixelSpacing"))
    # measured at the detector it is given under both names, which says that nobody calibrated it
    assert after.get("ImagerPixelSpacing") == before.get("ImagerPixelSpacing")
    found = colour(after.pixel_array)
    assert found[LESION].min() > 60
    assert found[:3, :3].max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_has_its_map_heatmap_and_overlay(
    scans: Any,
    discs_model: Path,
    anodiff: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """With a model of axial slices, of an image that is named and lies alone; D = 0, so the map is the image itself."""
    source = write_image(tmp_path / "in" / "image.dcm", kind, disc(1))
    assert anodiff("score", discs_model, source, "--output", tmp_path / "out", "--dicom", "sc") == 0
    (row,) = scans.table(tmp_path / "out" / "scores.csv")
    assert (row["id"], row["path"], row["status"]) == ("image", str(source), "ok")
    assert np.isfinite(float(row["score"]))
    found, volume = nibabel.load(tmp_path / "out" / "maps" / "image.nii.gz"), read_volume(source)
    assert found.get_data_dtype() == np.float32
    assert np.allclose(found.affine, volume.affine)
    # (columns, rows, 1), as nibabel has it
    values = found.get_fdata()[:, :, 0].T
    assert values.shape == (18, 20)
    marked = np.zeros(values.shape, bool)
    marked[LESION] = True
    assert values[marked].min() > values[~marked].max()
    with Image.open(tmp_path / "out" / "heatmaps" / "image.png") as heatmap:
        pixels = np.asarray(heatmap.convert("RGB"))
    assert colour(pixels).max() > 60
    check_overlay(source, tmp_path / "out" / "dicom" / "image_sc")
    texts = ["".join(capsys.readouterr()), *(path.read_text() for path in (tmp_path / "out").glob("*.[ch]*"))]
    assert not [text for text in texts if "SECRET" in text]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_images_scores_them_too(world: Any, scans: Any, anodiff: Run, tmp_path: Path, kind: str) -> None:
    """As images of its own kind: a score with the p-value of a slice, a map on the image's pixels, and the pictures."""
    source = write_image(tmp_path / "in" / "image.dcm", kind, disc(2))
    assert anodiff("score", world.model, source, "--output", tmp_path / "out", "--dicom", "sc") == 0
    (row,) = scans.table(tmp_path / "out" / "scores.csv")
    assert row["status"] == "ok"
    (piece,) = scans.table(tmp_path / "out" / "slices.csv")
    assert 0 < float(piece["p_value"]) <= 1
    values = nibabel.load(tmp_path / "out" / "maps" / "image.nii.gz").get_fdata()
    assert values.shape == (20, 18, 1)
    assert values.std() > 0
    assert (tmp_path / "out" / "heatmaps" / "image.png").stat().st_size > 500
    (overlay,) = (tmp_path / "out" / "dicom" / "image_sc").iterdir()
    assert pydicom.dcmread(overlay).pixel_array.shape == (18, 20, 3)


def test_each_image_of_a_folder_is_a_row(scans: Any, discs_model: Path, anodiff: Run, tmp_path: Path) -> None:
    """Four studies of one image each, given as a folder and file by file: the same scores, and no word of another."""
    files = [
        write_image(tmp_path / "in" / f"{kind}.dcm", kind, disc(n), series=f"1.2.3.{n}")
        for n, kind in enumerate(KINDS, 3)
    ]
    found = []
    for name, inputs in (("folder", [tmp_path / "in"]), ("files", files)):
        assert anodiff("score", discs_model, *inputs, "--output", tmp_path / name, "--no-heatmaps") == 0
        rows = scans.table(tmp_path / name / "scores.csv")
        assert not [row["remarks"] for row in rows if "left out" in row["remarks"]]
        found.append({Path(row["path"]).name: row["score"] for row in rows})
    assert found[0] == found[1]
    assert sorted(found[0]) == sorted(f"{kind}.dcm" for kind in KINDS)


def test_a_lone_file_has_no_remark_on_its_neighbours(
    scans: Any, discs_model: Path, anodiff: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight copies of it and slices of another series lie in its folder; so does what else was named."""
    lone = write_image(tmp_path / "in" / "lone.dcm", "MR", disc(1))
    other = write_image(tmp_path / "in" / "other.dcm", "MR", disc(2), series="1.2.3.2")
    for n in range(8):
        (tmp_path / "in" / f"copy{n}.dcm").write_bytes(lone.read_bytes())
    for n in range(3):
        write_image(tmp_path / "in" / f"slice{n}.dcm", "MR", disc(n), position=3.0 * n, series="1.2.3.7")
    for name, files in (("one", [lone]), ("two", [lone, other])):
        assert anodiff("score", discs_model, *files, "--output", tmp_path / name, "--no-heatmaps") == 0
        rows = scans.table(tmp_path / name / "scores.csv")
        assert [row["path"] for row in rows] == [str(file) for file in files]
        assert not [row["remarks"] for row in rows if "left out" in row["remarks"] or "series" in row["remarks"]]
        said = capsys.readouterr().err
        assert "copies" not in said
        assert "slice0" not in said
    assert anodiff("score", discs_model, tmp_path / "in", "--output", tmp_path / "all", "--no-heatmaps") == 0
    assert "8 copies of slices were left out" in (tmp_path / "all" / "scores.csv").read_text()


def series(folder: Path, kind: str, seed: int) -> Path:
    """Six slices of one patient."""
    for k in range(6):
        write_image(folder / f"{k}.dcm", kind, disc(100 * seed + k, lesion=False), 3.0 * k, f"1.2.{seed + 4}")
    return folder


def test_a_ct_is_refused_by_a_model_calibrated_on_mr_and_the_batch_goes_on(
    scans: Any, anodiff: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = scans.mirror(tmp_path / "raw.safetensors", volume={"axes": [0], "min_foreground": 0.0})
    lines = ["path,label,group"]
    for seed in range(4):
        lines.append(f"{series(tmp_path / 'normals' / str(seed), 'MR', seed)},0,p{seed}")
    (tmp_path / "normals.csv").write_text("\n".join(lines) + "\n")
    model = tmp_path / "mr.safetensors"
    assert anodiff("calibrate", raw, tmp_path / "normals.csv", "--output", model) == 0
    series(tmp_path / "in" / "a_ct", "CT", 10)
    write_image(tmp_path / "in" / "b_lone" / "ct.dcm", "CT", disc(5), series="1.2.80")
    write_image(tmp_path / "in" / "c_lone" / "mr.dcm", "MR", disc(6), series="1.2.81")
    series(tmp_path / "in" / "d_mr", "MR", 11)
    capsys.readouterr()
    assert anodiff("score", model, tmp_path / "in", "--output", tmp_path / "out") == 1
    rows = scans.table(tmp_path / "out" / "scores.csv")
    assert len(rows) == 4
    refused = {row["path"]: row["error"] for row in rows if row["status"] == "failed"}
    assert len(refused) == 2
    for path, error in refused.items():
        assert error == f"{path}: expected modality MR like the model's normal volumes, found CT"
    assert {Path(path).name.partition("#")[0] for path in refused} == {"in", "ct.dcm"}
    scored = [row for row in rows if row["status"] == "ok"]
    assert len(scored) == len(list((tmp_path / "out" / "maps").iterdir())) == 2
    assert all(np.isfinite(float(row["score"])) and float(row["p_value"]) > 0 for row in scored)
    assert "found CT" in (tmp_path / "out" / "report.html").read_text()
