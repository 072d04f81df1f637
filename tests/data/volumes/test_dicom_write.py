from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pydicom
import pytest

from anodiff.data.volumes import Volume, dicom_write, find_volumes, read_volume
from anodiff.data.volumes.dicom_write import write_parametric_map, write_secondary_capture, write_segmentation
from anodiff.errors import StorageError

TILTED = tuple(np.round(np.concatenate([[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]]), 6))
KEPT = (
    "PatientName",
    "PatientID",
    "StudyInstanceUID",
    "StudyDate",
    "StudyID",
    "AccessionNumber",
    "FrameOfReferenceUID",
)


@pytest.fixture
def volume(write_series: Any, tmp_path: Path) -> Volume:
    normal = np.cross(TILTED[:3], TILTED[3:])
    write_series(
        tmp_path / "s", [tuple(np.array([1.0, 2, 3]) + 2.5 * k * normal) for k in range(4)], orientation=TILTED
    )
    return read_volume(tmp_path / "s")


def _map(volume: Volume) -> np.ndarray:
    return np.random.default_rng(0).normal(size=volume.shape).astype(np.float32)


def test_secondary_captures_lie_on_their_slices(volume: Volume, tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (*volume.shape, 3)).astype(np.uint8)
    files = write_secondary_capture(volume, rgb, tmp_path / "out")
    assert [file.name for file in files] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm"]
    source = pydicom.dcmread(volume.frames[0].path)
    written = [pydicom.dcmread(file) for file in files]
    for name in KEPT:
        assert {str(dataset[name].value) for dataset in written} == {str(source[name].value)}
    (series,) = {dataset.SeriesInstanceUID for dataset in written}
    assert series != source.SeriesInstanceUID
    assert len({dataset.SOPInstanceUID for dataset in written}) == 4
    for dataset, frame in zip(written, volume.frames, strict=True):
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == frame.instance
    again = read_volume(tmp_path / "out")
    assert np.allclose(again.affine, volume.affine)
    assert np.array_equal(again.data, np.moveaxis(rgb, 3, 0))
    assert write_secondary_capture(volume, rgb, tmp_path / "two")[0].read_bytes() != files[0].read_bytes()
    with pytest.raises(ValueError, match="pictures"):
        write_secondary_capture(volume, rgb[..., 0], tmp_path / "out")


def test_implicit_big_and_placeless_sources(write_slice: Any, make_slice: Any, save_dicom: Any, tmp_path: Path) -> None:
    from pydicom.uid import ImplicitVRLittleEndian

    pixels = np.random.default_rng(2).integers(0, 255, (5, 7)).astype(np.uint8)
    dataset = make_slice(pixels, None, None, PixelSpacing=None, Modality="CR", AccessionNumber=None)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    volume = read_volume(save_dicom(dataset, tmp_path / "a.dcm"))
    (file,) = write_secondary_capture(volume, np.repeat(pixels.T[:, :, None, None], 3, axis=3), tmp_path / "out")
    written = pydicom.dcmread(file)
    assert str(written.PatientName) == str(dataset.PatientName)
    assert written.AccessionNumber in (None, "")
    assert np.array_equal(written.pixel_array[:, :, 0], pixels)
    with pytest.raises(StorageError, match=r"position in the patient|anodiff\[dicom\]"):
        write_parametric_map(volume, np.zeros(volume.shape), tmp_path / "pm.dcm")


@pytest.mark.parametrize("stated", ["YES", "NO", None, ""])
def test_burnt_in_text_is_declared_as_in_the_source(write_slice: Any, tmp_path: Path, stated: str | None) -> None:
    """The pictures are drawn over the source: what is burnt into it is burnt into them."""
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    tags = {} if stated is None else {"BurnedInAnnotation": stated}
    volume = read_volume(write_slice(tmp_path / "a.dcm", pixels, **tags))
    (file,) = write_secondary_capture(volume, np.zeros((*volume.shape, 3)), tmp_path / "out")
    assert pydicom.dcmread(file).get("BurnedInAnnotation") == (stated or None)


def test_thickness_and_spacing_of_slices_are_two_things(write_slice: Any, tmp_path: Path) -> None:
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    volume = read_volume(write_slice(tmp_path / "a.dcm", pixels, SliceThickness=3.0, SpacingBetweenSlices=4.5))
    assert volume.spacing_mm[2] == 4.5
    rgb = np.random.default_rng(0).integers(0, 255, (*volume.shape, 3)).astype(np.uint8)
    (file,) = write_secondary_capture(volume, rgb, tmp_path / "out")
    written = pydicom.dcmread(file)
    assert (written.SliceThickness, written.SpacingBetweenSlices) == (3.0, 4.5)
    assert read_volume(file).spacing_mm == volume.spacing_mm
    volume = read_volume(write_slice(tmp_path / "b.dcm", pixels, SliceThickness=None, SpacingBetweenSlices=4.5))
    (file,) = write_secondary_capture(volume, np.zeros((*volume.shape, 3)), tmp_path / "two")
    assert "SliceThickness" not in pydicom.dcmread(file)


def test_a_source_without_its_class_is_not_referred_to(make_slice: Any, tmp_path: Path) -> None:
    dataset = make_slice(np.arange(20, dtype=np.int16).reshape(4, 5), SOPClassUID=None)
    dataset.save_as(tmp_path / "a.dcm")
    volume = read_volume(tmp_path / "a.dcm")
    (file,) = write_secondary_capture(volume, np.zeros((*volume.shape, 3)), tmp_path / "out")
    assert "SourceImageSequence" not in pydicom.dcmread(file)


def test_values_that_are_not_finite_are_written_as_0(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _map(volume).astype(np.float64)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0], values[3, 0, 0] = np.nan, np.inf, -np.inf, 1e300
    written: list[np.ndarray] = []
    monkeypatch.setitem(sys.modules, "highdicom", mock.MagicMock())
    monkeypatch.setattr(dicom_write, "_write_with_highdicom", lambda _b, _v, array, path, **_: written.append(array))
    write_parametric_map(volume, values, tmp_path / "pm.dcm")
    values[:4, 0, 0] = 0
    assert np.array_equal(written[0], values.astype(np.float32).transpose(2, 1, 0))


def test_only_dicom_goes_to_dicom(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), tmp_path / "n.nii")
    volume = read_volume(tmp_path / "n.nii")
    with pytest.raises(StorageError, match="expected a volume read from DICOM, found nifti"):
        write_secondary_capture(volume, np.zeros((2, 3, 4, 3)), tmp_path / "out")


def test_without_highdicom_the_extra_is_named(volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    for write in (write_parametric_map, write_segmentation):
        with pytest.raises(StorageError, match=r"anodiff\[dicom\]"):
            write(volume, _map(volume), tmp_path / "x.dcm")


def _place(dataset: Any, frame: int) -> np.ndarray:
    groups = dataset.PerFrameFunctionalGroupsSequence[frame]
    return np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)


def test_parametric_map_holds_the_floats_at_their_places(volume: Volume, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    values = _map(volume)
    dataset = pydicom.dcmread(write_parametric_map(volume, values, tmp_path / "pm.dcm"))
    source = pydicom.dcmread(volume.frames[0].path)
    for name in KEPT:
        assert str(dataset[name].value) == str(source[name].value)
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    planes = dataset.pixel_array
    for number in range(4):
        distances = [np.linalg.norm(_place(dataset, number) - np.array(frame.position)) for frame in volume.frames]
        assert min(distances) < 1e-4
        assert np.array_equal(planes[number].T, values[:, :, int(np.argmin(distances))])
    assert "a parametric map" in find_volumes(tmp_path / "pm.dcm").skipped[0][1]


def test_segmentation_holds_the_mask(volume: Volume, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    mask = _map(volume) > 1
    mask[:, :, 1] = False
    dataset = pydicom.dcmread(write_segmentation(volume, mask, tmp_path / "seg.dcm"))
    found = np.zeros_like(mask)
    planes = dataset.pixel_array.reshape(-1, *dataset.pixel_array.shape[-2:])
    for number, plane in enumerate(planes):
        distances = [np.linalg.norm(_place(dataset, number) - np.array(frame.position)) for frame in volume.frames]
        found[:, :, int(np.argmin(distances))] = plane.T
    assert np.array_equal(found, mask)
    assert dataset.StudyInstanceUID == "1.2.3"
    write_segmentation(volume, np.zeros_like(mask), tmp_path / "none.dcm")
    assert not pydicom.dcmread(tmp_path / "none.dcm").pixel_array.any()
    with pytest.raises(ValueError, match="grid"):
        write_segmentation(volume, mask[1:], tmp_path / "x.dcm")


def test_the_series_are_told_apart_and_say_as_little_of_the_patient(write_series: Any, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    write_series(tmp_path / "in", [(0.0, 0.0, 2.0 * k) for k in range(3)], PatientComments="fell", PatientWeight="70")
    volume = read_volume(tmp_path / "in")
    paths = (
        write_secondary_capture(volume, np.zeros((*volume.shape, 3)), tmp_path / "sc")[0],
        write_parametric_map(volume, _map(volume), tmp_path / "pm.dcm"),
        write_segmentation(volume, _map(volume) > 0, tmp_path / "seg.dcm"),
    )
    written = [pydicom.dcmread(path) for path in paths]
    assert len({int(dataset.SeriesNumber) for dataset in written}) == 3
    assert len({str(dataset.SeriesDescription) for dataset in written} - {""}) == 3
    about = [{element.keyword for element in dataset.group_dataset(0x0010)} for dataset in written]
    assert about[0] == about[1] == about[2]
    assert "PatientID" in about[0]
    assert not about[0] & {"PatientComments", "PatientWeight"}


def test_writing_says_nothing_of_the_patient(
    volume: Volume, tmp_path: Path, secrets: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """The source's birth date is no date: a library that checks it would quote it."""
    said = []
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        write_secondary_capture(volume, np.zeros((*volume.shape, 3)), tmp_path / "out")
        for write in (write_parametric_map, write_segmentation):
            try:
                write(volume, _map(volume), tmp_path / "x.dcm")
            except StorageError as error:
                said.append(str(error))
    assert b"SECRET" in (tmp_path / "out" / "0001.dcm").read_bytes()
    text = "\n".join([*said, caplog.text, *(str(warning.message) for warning in caught)])
    assert not [word for word in secrets if word in text]
