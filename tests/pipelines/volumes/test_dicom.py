"""DICOM through whole jobs: in and out without the patient, and every real file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from anodiff.data.volumes import read_volume
from anodiff.errors import StorageError
from anodiff.pipelines import score


def test_dicom_in_and_out_without_the_patients_name(
    scans: Any, volumes_model: Path, tmp_path: Path, ct: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ct(tmp_path / "ct")
    score.run(volumes_model, [str(folder)], tmp_path / "out", device="cpu", dicom=["sc"])
    row = scans.table(tmp_path / "out" / "scores.csv")[0]
    found = nibabel.load(tmp_path / "out" / "maps" / f"{row['id']}.nii.gz")
    source = read_volume(folder)
    assert np.allclose(found.affine, source.affine)
    assert found.shape == source.shape == (16, 16, 8)
    assert len(list((tmp_path / "out" / "dicom").rglob("*.dcm"))) == 8
    said = capsys.readouterr()
    texts = [said.out, said.err, *(path.read_text() for path in (tmp_path / "out").glob("*.[ch]*"))]
    assert not any("SECRET" in text for text in texts)
    assert f"report.html, {tmp_path / 'out' / 'dicom'}" in said.err
    assert "volumes/s end to end" in said.err
    assert "images/s" not in said.err
    score.run(volumes_model, [str(folder)], tmp_path / "out", device="cpu", dicom=["sc"], show_phi=True)
    assert "SECRETID" in (tmp_path / "out" / "report.html").read_text()
    # what a shell makes of folder/*.dcm is the same series
    scans.run(volumes_model, tmp_path / "named", *sorted(folder.glob("*.dcm")))
    assert [each["score"] for each in scans.table(tmp_path / "named" / "scores.csv")] == [row["score"]]
    scans.run(volumes_model, tmp_path / "few", *sorted(folder.glob("[12].dcm")))
    assert len(scans.table(tmp_path / "few" / "scores.csv")) == 2


def test_damaged_files_are_rows_or_remarks_of_their_series(
    scans: Any, volumes_model: Path, tmp_path: Path, ct: Callable[..., Path]
) -> None:
    folder = ct(tmp_path / "in" / "ct")
    last = folder / "7.dcm"
    content = last.read_bytes()
    last.write_bytes(content[: content.index(b"\x28\x00\x10\x00")])  # up to Rows
    (folder / "text.dcm").write_bytes(b"this is no DICOM at all\n" * 20)
    first = folder / "0.dcm"
    first.write_bytes(first.read_bytes()[:-100])
    summary = scans.run(volumes_model, tmp_path / "out", tmp_path / "in")
    assert summary.exit_code == 1
    rows = {row["id"]: row for row in scans.table(tmp_path / "out" / "scores.csv")}
    assert len(rows) == 2
    (text,) = (row for name, row in rows.items() if name.endswith("text"))
    assert text["status"] == "failed"
    assert "text.dcm: expected a volume, found" in text["error"]
    (series,) = (row for name, row in rows.items() if not name.endswith("text"))
    assert series["status"] == "ok"
    assert f"{last}, of this series, is left out" in series["remarks"]
    assert f"{first}, of this series, is left out: a damaged DICOM file: expected 512 bytes" in series["remarks"]
    assert [row["path"] for row in scans.table(tmp_path / "out" / "skipped.csv")] == [str(first), str(last)]
    assert "7.dcm, of this series, is left out" in (tmp_path / "out" / "report.html").read_text()
    assert nibabel.load(tmp_path / "out" / "maps" / f"{series['id']}.nii.gz").shape == (16, 16, 6)


def test_ids_have_nothing_of_the_patient_nor_of_the_scanner(
    scans: Any, volumes_model: Path, tmp_path: Path, ct: Callable[..., Path]
) -> None:
    """The folder's name is the user's; the rest is the modality and a digest of the slices' identities."""
    ct(tmp_path / "in" / "a")
    scans.run(volumes_model, tmp_path / "out", tmp_path / "in", heatmaps=False)
    (row,) = scans.table(tmp_path / "out" / "scores.csv")
    assert re.fullmatch(r"(a__)?CT_[0-9a-f]{8}", row["id"])


def test_dicom_objects_may_be_asked_for_with_commas(
    anodiff: Callable[..., int], volumes_model: Path, tmp_path: Path, ct: Callable[..., Path]
) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    arguments = ("score", volumes_model, ct(tmp_path / "ct"), "--device", "cpu", "--no-heatmaps")
    assert anodiff(*arguments, "--dicom", "sc,pm", "--output", tmp_path / "out") == 0
    (single,) = (tmp_path / "out" / "dicom").glob("*.dcm")
    assert single.name.endswith("_pm.dcm")
    assert len(list((tmp_path / "out" / "dicom").glob("*_sc/*.dcm"))) == 8
    assert anodiff(*arguments, "--dicom", "sc,rt", "--output", tmp_path / "no") == 2


@pytest.mark.parametrize("kind", ["pm", "seg"])
def test_dicom_objects_need_their_extra(
    scans: Any, volumes_model: Path, tmp_path: Path, ct: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from anodiff.data.volumes import dicom_write

    written = []

    def write(volume: Any, values: np.ndarray, path: Path) -> Path:
        assert values.shape == volume.shape
        written.append(path.name)
        return (path.write_bytes(b"") and path) or path

    with monkeypatch.context() as patch:
        patch.setattr(dicom_write, "import_highdicom", lambda path: None)
        patch.setattr(dicom_write, "write_parametric_map", write)
        patch.setattr(dicom_write, "write_segmentation", write)
        scans.run(volumes_model, tmp_path / "out", ct(tmp_path / "ct"), dicom=[kind])
    assert len(written) == 1
    assert written[0].endswith(f"_{kind}.dcm")
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(StorageError, match=r"anodiff\[dicom\]"):
        scans.run(volumes_model, tmp_path / "no", tmp_path / "ct", dicom=[kind])


@pytest.mark.data
def test_the_ct_series_is_scored_as_a_volume(scans: Any, data_root: Path, tmp_path: Path) -> None:
    window = {"size": [64, 64], "intensity": {"kind": "unit_range"}, "value_range": [-160, 240]}
    model = scans.mirror(tmp_path / "m.safetensors", preprocess=window, volume={"axes": [2]})
    assert scans.run(model, tmp_path / "out", data_root / "medical_io" / "ct_series", heatmaps=True).ok == 1
    source = read_volume(data_root / "medical_io" / "ct_series")
    found = nibabel.load(next((tmp_path / "out" / "maps").iterdir()))
    assert found.shape == source.shape
    assert found.shape[2] == 17
    assert np.allclose(found.affine, source.affine)


@pytest.mark.data
def test_every_medical_file_is_scored_or_refused_by_name(scans: Any, data_root: Path, tmp_path: Path) -> None:
    """Files of many formats and faults in one run: each is a row or is passed over, with a reason."""
    spread = {"size": [32, 32], "channel": 0, "intensity": {"kind": "percentile"}}
    model = scans.mirror(tmp_path / "m.safetensors", preprocess=spread)
    folder = data_root / "medical_io"
    scans.run(model, tmp_path / "out", folder / "dicom", folder / "nifti_and_friends", heatmaps=False)
    rows = scans.table(tmp_path / "out" / "scores.csv")
    skipped = scans.table(tmp_path / "out" / "skipped.csv")
    assert sum(row["status"] == "ok" for row in rows) > 20
    failed = [row for row in rows if row["status"] != "ok"]
    assert [row["error"] for row in failed if not ("expected" in row["error"] and "found" in row["error"])] == []
    # a decoder may be quoted in brackets; an error of Python's would come first, with its kind
    assert [row["error"] for row in rows if re.match(r"\w+(Error|Exception)\b", row["error"])] == []
    assert all(row["reason"] for row in skipped)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201"])
def test_compressed_slices_without_a_decoder_are_a_row_that_names_the_extra(
    scans: Any,
    volumes_model: Path,
    tmp_path: Path,
    ct: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    syntax: str,
) -> None:
    """JPEG lossless, JPEG-LS and HTJ2K, whatever is installed here."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    for file in ct(tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.save_as(file)
    monkeypatch.setattr(get_decoder(UID(syntax)), "_available", {})
    assert scans.run(volumes_model, tmp_path / "out", tmp_path / "ct").exit_code == 1
    (row,) = scans.table(tmp_path / "out" / "scores.csv")
    assert row["status"] == "failed"
    assert f"found {UID(syntax).name}; pip install 'anodiff[dicom]' reads it" in row["error"]


def test_several_series_are_told(
    scans: Any, volumes_model: Path, tmp_path: Path, ct: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ct(tmp_path / "one" / "a")
    score.run(volumes_model, [str(tmp_path / "one")], tmp_path / "out1", device="cpu", heatmaps=False)
    assert "each a volume" not in capsys.readouterr().err
    shutil.copytree(tmp_path / "one" / "a", tmp_path / "two" / "a")
    for path in shutil.copytree(tmp_path / "one" / "a", tmp_path / "two" / "b").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID += ".7"
        dataset.SOPInstanceUID += ".7"
        dataset.save_as(path)
    score.run(volumes_model, [str(tmp_path / "two")], tmp_path / "out2", device="cpu", heatmaps=False)
    said = capsys.readouterr().err
    assert "note: 2 DICOM series, each a volume: " in said
    assert "SECRET" not in said
    assert len(scans.table(tmp_path / "out2" / "scores.csv")) == 2
